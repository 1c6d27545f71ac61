"""The metrics, computed from features, with one value per image where possible. Importing this does not import torch.

To add a metric, write a class in its own file and add a line to the table. The tests find it automatically.
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
    # optional (metrics.names): they need another encoder, other prompts, or more time
    Dino(),
    Kid("kid", "inception", "Distance to the training photos (KID)"),
    Kid("kid_clip", "clip_image", "Distance to the training photos (KID on CLIP)"),
    Fid("fid", "inception", "Distance to the training photos (FID)"),
    Fid("fid_clip", "clip_image", "Distance to the training photos (Frechet, on CLIP)"),
    Fid(
        "fid_legacy",
        "inception",
        "Distance to the training photos (FID as some code had it: complex root, float32)",
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
"""Metrics that need prompts with and without the identifier, which only some prompt sets have."""

METRICS: dict[str, AnyMetric] = {metric.name: metric for metric in _ALL}


def select(names: Sequence[str]) -> tuple[AnyMetric, ...]:
    """The metrics with these names, in this order. UserError for an unknown name; it lists the known ones."""
    for name in names:
        if name not in METRICS:
            raise UserError(
                f"metrics.names: there is no metric {name}; choose from {', '.join(METRICS)}"
                f"{closest(name, METRICS)}"
            )
    return tuple(METRICS[name] for name in dict.fromkeys(names))
