"""The metrics: arithmetic on features, one value per image where it can be. Importing this does not import torch.

A new metric is a class in a file of its own and a line in the table; the tests pick it up.
"""

from __future__ import annotations

from collections.abc import Sequence

from diffusion_lab.evaluation.metrics.aesthetics import Aesthetics
from diffusion_lab.evaluation.metrics.class_drift import ClassDrift, ClassLeak
from diffusion_lab.evaluation.metrics.clip import ClipImage, ClipText
from diffusion_lab.evaluation.metrics.dino import Dino
from diffusion_lab.evaluation.metrics.diversity import Diversity
from diffusion_lab.evaluation.metrics.editability import ImageSimilarity, PromptBaseline, PromptSimilarity
from diffusion_lab.evaluation.metrics.face_rate import FaceRate
from diffusion_lab.evaluation.metrics.memorisation import Memorisation
from diffusion_lab.evaluation.metrics.set_distances import Fid, Kid
from diffusion_lab.evaluation.metrics.similarity import Similarity, SimilarityHeldout
from diffusion_lab.evaluation.metrics.vendi import Vendi
from diffusion_lab.records import AnyMetric, UserError
from diffusion_lab.values.checks import closest

_ALL: tuple[AnyMetric, ...] = (
    Similarity(),
    SimilarityHeldout(),
    FaceRate(),
    Aesthetics(),
    Diversity(),
    ClipText(),
    ClipImage(),
    Memorisation(),
    # optional (metrics.names): they need another encoder, other prompts, or time
    Dino(),
    Kid("kid", "inception", "Distance to the pictures (KID)"),
    Kid("kid_clip", "clip_image", "Distance to the pictures (KID on CLIP)"),
    Fid("fid", "inception", "Distance to the pictures (FID)"),
    Fid("fid_clip", "clip_image", "Distance to the pictures (Frechet, on CLIP)"),
    Fid(
        "fid_legacy",
        "inception",
        "Distance to the pictures (FID as some code had it: complex root, float32)",
        legacy=True,
    ),
    Vendi(),
    ImageSimilarity(),
    PromptSimilarity(),
    PromptBaseline(),
    ClassDrift(),
    ClassLeak(),
)
NEEDS_TWINS = frozenset(
    {"image_similarity", "prompt_similarity", "prompt_baseline", "class_drift", "class_leak"}
)
"""Those that speak of prompts with and without the identifier, which only some sets have."""

METRICS: dict[str, AnyMetric] = {metric.name: metric for metric in _ALL}


def select(names: Sequence[str]) -> tuple[AnyMetric, ...]:
    """The metrics of these names, in this order; UserError names an unknown one and those there are."""
    for name in names:
        if name not in METRICS:
            raise UserError(
                f"metrics.names: there is no metric {name}; there are {', '.join(METRICS)}"
                f"{closest(name, METRICS)}"
            )
    return tuple(METRICS[name] for name in dict.fromkeys(names))
