"""Portraits from seeds: the miniature's data set without files.

Seeds of identities are disjoint by purpose: pretraining below 1,000,000; held-out evaluation
2,000,000 to 2,999,999; subjects of fine-tuning from 3,000,000. Without a given identity,
`draw_portrait(seed)` draws the person of the same seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffusion_lab.miniature.identity import Identity, sample_identity
from diffusion_lab.miniature.phrases import MAGIC, NOUNS, SLOTS, SPOILT, Phrase
from diffusion_lab.miniature.renderer import face_box, render
from diffusion_lab.miniature.scene import Scene, sample_scene

__all__ = ["Portrait", "draw_portrait", "face_box", "identity_from_seed", "rating_of"]

EVALUATION_SEEDS = 2_000_000
SUBJECT_SEEDS = 3_000_000

_CLEAN_STYLE = "photo"
_LIGHT_MERIT = {"soft": 0.9, "side": 0.7, "sunset": 1.0, "neon": 0.6, "daylight": 0.85, "dim": 0.1}
_STYLE_MERIT = {
    "photo": 0.7, "oil": 1.0, "pencil": 0.5, "watercolour": 0.8, "bw": 0.8, "cartoon": 0.3, "sepia": 0.5
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Portrait:
    """A picture and the truth about it."""

    image: NDArray[np.uint8]  # [64, 64, 3]
    noun: str
    identity: Identity
    scene: Scene
    phrases: dict[str, Phrase]  # slots that are drawn and have words
    rating: float  # 0 ugly .. 10 beautiful


def rating_of(scene: Scene) -> float:
    """The world's aesthetic truth, 0..10.

    10 * (0.70 quality + 0.12 light + 0.12 composition + 0.06 style), where quality is
    `scene.quality`; light and style are fixed merits in [0, 1] of the named light and style;
    composition is exp(-(d / 6)^2) * exp(-((scale - 1.03) / 0.12)^2) with d the distance of the head's
    centre from its best place, in pixels.
    """
    distance = np.hypot(scene.dx, scene.dy)
    composition = np.exp(-((distance / 6) ** 2) - ((scene.scale - 1.03) / 0.12) ** 2)
    merit = 0.70 * scene.quality + 0.12 * _LIGHT_MERIT[scene.lighting] + 0.12 * composition
    return float(10 * (merit + 0.06 * _STYLE_MERIT[scene.style]))


def identity_from_seed(seed: int, noun: str | None = None) -> Identity:
    """The person of `seed`; without `noun`, an even seed is a man and an odd one a woman."""
    return sample_identity(np.random.default_rng([seed, 11]), noun or NOUNS[seed % 2])


def sample_phrases(rng: np.random.Generator, clean: bool = False) -> dict[str, Phrase]:
    """A phrase for every slot. `clean`: photo style and no spoilt quality."""
    chosen = {slot: options[int(rng.integers(len(options)))] for slot, options in SLOTS.items()}
    share, pick = rng.uniform(), rng.uniform()
    if clean:
        chosen["style"] = SLOTS["style"][0]
        share *= 0.75
    if share < 0.45:
        chosen["quality"] = SLOTS["quality"][0]
    else:
        words = MAGIC if share < 0.75 else SPOILT
        chosen["quality"] = words[int(pick * len(words))]
    # Photos are what most prompts ask for, and half of all heads carry nothing.
    if rng.uniform() < 0.3:
        chosen["style"] = SLOTS["style"][0]
    if rng.uniform() < 0.4:
        chosen["accessory"] = SLOTS["accessory"][0]
    return chosen


def draw_portrait(
    seed: int,
    *,
    noun: str | None = None,
    identity: Identity | None = None,
    phrases: Mapping[str, Phrase] | None = None,
    clean: bool = False,
) -> Portrait:
    """Portrait of `seed`, a pure function of the arguments.

    Phrases given override the drawn ones slot by slot and leave all other draws as they were.
    Raises ValueError when `noun` contradicts `identity`.
    """
    if identity is None:
        identity = identity_from_seed(seed, noun)
    elif noun is not None and noun != identity.noun:
        raise ValueError(f"noun {noun!r} contradicts identity.noun {identity.noun!r}")
    chosen = sample_phrases(np.random.default_rng([seed, 12]), clean) | dict(phrases or {})
    scene = sample_scene(np.random.default_rng([seed, 13]), chosen)
    return Portrait(
        image=render(identity, scene),
        noun=identity.noun,
        identity=identity,
        scene=scene,
        phrases={slot: chosen[slot] for slot in SLOTS if chosen[slot].text},
        rating=rating_of(scene),
    )
