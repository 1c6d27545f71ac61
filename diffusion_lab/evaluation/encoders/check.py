"""Checks the names of the full-size encoders that the metrics need, before anything slow. Does not import torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from diffusion_lab.evaluation.encoders.weights import PUBLISHED, why_not_published
from diffusion_lab.records import UserError

if TYPE_CHECKING:
    from diffusion_lab.config.schema import Metrics


def check_encoders(metrics: Metrics) -> None:
    """UserError naming the key: a file that is not there, an unknown model or tag, a head for another CLIP."""
    from diffusion_lab.evaluation.encoders import clip_tags
    from diffusion_lab.evaluation.encoders.published import FACE_FILES, looks_like_hub_id

    needs = configured_fields(metrics)
    head = metrics.aesthetics_weights
    if head is not None and head != PUBLISHED and not Path(head).expanduser().is_file():
        raise UserError(
            f"metrics.aesthetics_weights={head}: there is no such file; give a file, or {PUBLISHED} for the published head"
        )
    if "inception" in needs and metrics.inception_weights is not None:
        _check_file("inception_weights", metrics.inception_weights)
    if metrics.encoders != "full":
        return
    if "face" in needs and metrics.face_weights not in FACE_FILES:
        known = f"nor is it one of {', '.join(FACE_FILES)}"
        _check_file("face_weights", metrics.face_weights, known)
    if not needs & {"clip_image", "clip_text", "aesthetics"}:
        return
    if "/" in metrics.clip_weights or "." in metrics.clip_weights:
        _check_file("clip_weights", metrics.clip_weights)
    folder = Path(metrics.clip_model).expanduser().is_dir()
    hub_id = looks_like_hub_id(metrics.clip_model)
    if not folder and not (hub_id and metrics.clip_model.replace("/", "-") not in clip_tags.models()):
        clip_tags.check(metrics.clip_model, metrics.clip_weights)
    if "aesthetics" in needs and head == PUBLISHED:
        problem = why_not_published(metrics.clip_model, metrics.clip_weights)
        if problem:
            raise UserError(
                f"metrics.aesthetics_weights={PUBLISHED}: was trained on OpenAI's CLIP ViT-L/14, but {problem}; give "
                "a head of your own, or null"
            )


def encoder_warnings(metrics: Metrics) -> list[str]:
    """Warnings for the plan: a missing aesthetics head, and the bias of the published one."""
    if metrics.encoders != "full" or "aesthetics" not in metrics.names:
        return []
    if metrics.aesthetics_weights is None:
        problem = why_not_published(metrics.clip_model, metrics.clip_weights)
        why = f": the published head is for OpenAI's CLIP ViT-L/14, but {problem}" if problem else ""
        return [f"metrics.aesthetics_weights is null: aesthetics will have no value{why}"]
    if metrics.aesthetics_weights == PUBLISHED:
        return [
            "metrics.aesthetics_weights=laion: Stable Diffusion was trained on images selected with this head, so "
            "its scores may be biased; job=train_aesthetics trains a head on other ratings, such as AVA's"
        ]
    return []


def configured_fields(metrics: Metrics) -> set[str]:
    """Fields of `Features` that the named metrics read."""
    from diffusion_lab.evaluation.metrics import METRICS

    return {need for name in metrics.names if name in METRICS for need in METRICS[name].needs}


def _check_file(key: str, value: str, otherwise: str = "") -> None:
    if not Path(value).expanduser().is_file():
        raise UserError(
            f"metrics.{key}={value}: there is no such file{f' ({otherwise})' if otherwise else ''}"
        )
