"""The metrics: arithmetic on features, one value an image. Importing this does not import torch.

A new metric is a class in a file of its own and a line in the table; the tests pick it up.
"""

from __future__ import annotations

from collections.abc import Sequence

from diffusion_lab.interfaces import Metric, UserError
from diffusion_lab.metrics.aesthetics import Aesthetics
from diffusion_lab.metrics.clip import ClipImage, ClipText
from diffusion_lab.metrics.diversity import Diversity
from diffusion_lab.metrics.face_rate import FaceRate
from diffusion_lab.metrics.memorisation import Memorisation
from diffusion_lab.metrics.similarity import Similarity, SimilarityHeldout

_ALL: tuple[Metric, ...] = (
    Similarity(),
    SimilarityHeldout(),
    FaceRate(),
    Aesthetics(),
    Diversity(),
    ClipText(),
    ClipImage(),
    Memorisation(),
)

METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}


def select(names: Sequence[str]) -> tuple[Metric, ...]:
    """The metrics of these names, in this order; UserError names an unknown one and those there are."""
    for name in names:
        if name not in METRICS:
            raise UserError(f"metrics.names: there is no metric {name}; there are {', '.join(METRICS)}")
    return tuple(METRICS[name] for name in dict.fromkeys(names))
