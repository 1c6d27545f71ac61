"""When a run evaluates."""

from __future__ import annotations

from typing import Protocol


class HasSteps(Protocol):
    """`config.schema.Steps`."""

    total: int | None
    every: int | None


def evaluation_steps(steps: HasSteps) -> tuple[int, ...]:
    """Every multiple of `every` below `total`, and `total`; defaults filled. ValueError where they are not."""
    if steps.total is None or steps.every is None:
        raise ValueError("steps.total and steps.every are not filled in: see plan.defaults.fill_defaults")
    return (*range(0, steps.total, steps.every), steps.total)


def number_of_evaluations(total: int, every: int) -> int:
    """How many steps `evaluation_steps` gives, without making them."""
    return -(-total // every) + 1
