"""Checks that the metrics get enough images. Uses the prompts only, before anything is loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from diffusion_lab.data.prompts import without_identifier
from diffusion_lab.evaluation.metrics.editability import EDIT
from diffusion_lab.records import AnyMetric, Prompt, UserError

TOO_FEW_FOR_ADVICE = 2  # images per evaluation
WITH, WITHOUT = "with", "without"


def check_enough(metrics: Iterable[AnyMetric], prompts: Sequence[Prompt], *, scored: bool = False) -> None:
    """UserError if a metric that compares images with each other gets too few.

    ``prompts``: one entry per image of an evaluation. ``scored``: the images are those of job=score.
    """
    if not prompts:
        raise UserError("prompts.n: there is no prompt to evaluate")
    counts = _counts(prompts)
    for metric in metrics:
        have, least = counts[_group(metric)], least_images(metric)
        if not 0 < have < least:
            continue
        split = "" if have == len(prompts) else (
            f" (of the {len(prompts)} images of an evaluation {have} is of a prompt {_group(metric)} the identifier)"
        )  # fmt: skip
        key, remedy = ("job.images", "add images") if scored else ("prompts.n", _remedy(prompts, have, least))
        raise UserError(
            f"{key}: {metric.name} compares images with each other, and a single image has no value{split}; {remedy}, or "
            f"remove {metric.name} from metrics.names"
        )


def without_value(metrics: Iterable[AnyMetric], prompts: Sequence[Prompt], n_training: int) -> list[str]:
    """Warnings: metrics that will have no value, and too few images for intervals or a recommendation."""
    counts = _counts(prompts)
    warnings = []
    for metric in metrics:
        why = ""
        if not counts[_group(metric)]:
            why = f"no prompt of the set is {_group(metric)} the identifier"
        elif metric.name in ("kid", "kid_clip", "fid", "fid_clip", "fid_legacy") and n_training < 2:
            why = f"it needs two training photos, and data.n_images={n_training}"
        elif metric.name == "image_similarity" and not any(_plain(p) for p in prompts):
            why = "the set has no plain prompt (slot edit empty)"
        elif metric.name == "prompt_similarity" and not _edits(prompts):
            why = "no edit of the set occurs both with and without the identifier; raise prompts.n"
        elif metric.name == "prompt_baseline" and max(Counter(_class_texts(prompts)).values(), default=0) < 2:
            why = "it compares images of one prompt, and there is one per prompt; set prompts.images_per_prompt=2"
        if why:
            warnings.append(f"{metric.name} will have no value: {why}")
    images = max(counts.values())
    if images <= TOO_FEW_FOR_ADVICE:
        number = "one image" if images == 1 else "two images"
        warnings.append(
            f"{number} per evaluation: too few for a reliable recommended step and for most intervals; "
            "raise prompts.n"
        )
    elif len({prompt.id for prompt in prompts if not without_identifier(prompt)}) == 1:
        warnings.append(
            "all images have the same prompt: intervals will cover the noise only; raise prompts.n"
        )
    return warnings


def least_images(metric: AnyMetric) -> int:
    """The minimum number of images: 2 for a metric that compares images with each other."""
    return int(getattr(metric, "least_images", 1))


def _counts(prompts: Sequence[Prompt]) -> dict[str, int]:
    klass = sum(map(without_identifier, prompts))
    return {WITH: len(prompts) - klass, WITHOUT: klass}


def _group(metric: AnyMetric) -> str:
    return WITHOUT if metric.over == "class" else WITH


def _remedy(prompts: Sequence[Prompt], have: int, least: int) -> str:
    per_image = -(-len(prompts) // have)  # images of an evaluation for each one that is used
    return f"set prompts.n to {least * per_image} or more, or prompts.images_per_prompt to {least}"


def _plain(prompt: Prompt) -> bool:
    return not without_identifier(prompt) and prompt.slots.get(EDIT) == ""


def _class_texts(prompts: Sequence[Prompt]) -> list[str]:
    return [prompt.plain for prompt in prompts if without_identifier(prompt)]


def _edits(prompts: Sequence[Prompt]) -> list[Prompt]:
    twins = set(_class_texts(prompts))
    return [p for p in prompts if not without_identifier(p) and p.slots.get(EDIT) and p.plain in twins]
