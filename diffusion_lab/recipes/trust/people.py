"""Photos of people on whom no encoder was trained, and their metric values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from diffusion_lab.evaluation.metrics import METRICS
from diffusion_lab.miniature import world
from diffusion_lab.miniature.identity import Identity
from diffusion_lab.miniature.phrases import SLOTS, Phrase, phrase_of

if TYPE_CHECKING:
    from diffusion_lab.evaluation.encoders.bank import EncoderBank
    from diffusion_lab.records import Features

Pixels = NDArray[np.uint8]
FIRST_PERSON = world.EVALUATION_SEEDS + 400_000


def person(k: int) -> Identity:
    """The k-th person of the study; women and men alternate."""
    return world.identity_from_seed(FIRST_PERSON + k)


def photos(identity: Identity, first: int, n: int, **values: str) -> list[Pixels]:
    """``n`` photographs of ``identity`` in random scenes that are not spoilt; ``values`` fix slots."""
    phrases: dict[str, Phrase] = {"style": SLOTS["style"][0], "quality": SLOTS["quality"][0]}
    phrases |= {slot: phrase_of(slot, value) for slot, value in values.items()}
    return [world.draw_portrait(first + i, identity=identity, phrases=phrases).image for i in range(n)]


def scores(
    bank: EncoderBank,
    metric: str,
    images: Sequence[Pixels],
    references: Features,
    texts: list[str] | None = None,
) -> NDArray[np.float64]:
    """The metric's value for each image, float64 [n], NaN if undefined."""
    from diffusion_lab.records import Metric, References

    seen = bank.features(images, texts=texts, needs=set(METRICS[metric].needs))
    measure = METRICS[metric]
    assert isinstance(measure, Metric), f"{metric} has no value an image"
    values = measure(seen, References(train=references, heldout=None, impostors=None))
    return np.asarray(values, dtype=np.float64)


def reference(bank: EncoderBank, metric: str, images: Sequence[Pixels]) -> Features:
    """What the metric compares with."""
    return bank.features(images, texts=None, needs=set(METRICS[metric].needs) - {"clip_text"})


def no_reference(bank: EncoderBank, image: Pixels) -> Features:
    """A reference for metrics that need none."""
    return bank.features([image], texts=None, needs=set())
