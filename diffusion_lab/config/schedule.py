"""When a run evaluates and how its images are sampled, from a configuration whose defaults are filled in."""

from __future__ import annotations

from typing import Protocol


class HasSteps(Protocol):
    """`config.schema.Steps`."""

    total: int | None
    every: int | None


def evaluation_steps(steps: HasSteps) -> tuple[int, ...]:
    """Every multiple of `every` below `total`, and `total`. ValueError if the defaults are not filled in."""
    if steps.total is None or steps.every is None:
        raise ValueError("steps.total and steps.every are not filled in: see plan.defaults.fill_defaults")
    return (*range(0, steps.total, steps.every), steps.total)


def number_of_evaluations(total: int, every: int) -> int:
    """Length of `evaluation_steps`, computed without creating them."""
    return -(-total // every) + 1


class HasSampler(Protocol):
    """`config.schema.Prompts`."""

    sampling_steps: int | None
    guidance_scale: float | None


def sampler(prompts: HasSampler) -> tuple[int, float]:
    """Sampling steps and guidance scale. ValueError if they are not filled in."""
    if prompts.sampling_steps is None or prompts.guidance_scale is None:
        raise ValueError(
            "prompts.sampling_steps and prompts.guidance_scale are not filled in: see plan.defaults.fill_defaults"
        )
    return prompts.sampling_steps, prompts.guidance_scale
