"""The plan's checks of evaluations, before anything is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffusion_lab.families.guidance import is_guided

if TYPE_CHECKING:
    from diffusion_lab.config.schema import Config, Prompts
    from diffusion_lab.families.family import Family
    from diffusion_lab.records import PromptSet


def enough_images(config: Config, prompts: PromptSet) -> list[str]:
    """Warnings about metrics without a value and evaluations with few images.

    UserError if a metric cannot be computed.
    """
    from diffusion_lab.data.prompts import images_per_prompt
    from diffusion_lab.evaluation.metrics import select
    from diffusion_lab.evaluation.metrics.enough import check_enough, without_value

    metrics = select(config.metrics.names)
    seen = [prompt for prompt in prompts for _ in range(images_per_prompt(config.prompts, prompts))]
    check_enough(metrics, seen)
    return without_value(metrics, seen, config.data.n_images)


def ignored_negative(settings: Prompts, prompts: PromptSet, family: Family) -> list[str]:
    """A warning if a negative prompt has no effect: a guidance scale of 1 or less does not use it."""
    scale = settings.guidance_scale
    if not prompts.negative or scale is None or is_guided(family, scale):
        return []
    if family.guidance == "embedded":
        return [
            f"{family.title} has its guidance scale as an input and no unconditional branch, so the negative prompt is "
            "ignored; set prompts.negative=''"
        ]
    return [
        f"prompts.guidance_scale={scale:g}: there is no guidance at 1 or less, so the negative prompt "
        "is ignored; raise it above 1, or set prompts.negative=''"
    ]
