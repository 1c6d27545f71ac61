"""Groups of runs that differ only by their seed: means over runs, with intervals between runs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diffusion_lab.analysis.intervals import ALIKE, student_t
from diffusion_lab.analysis.limits import value_of
from diffusion_lab.runs.reading import Run
from diffusion_lab.studies.copies import distinct
from diffusion_lab.studies.costs import run_costs
from diffusion_lab.values.mappings import flatten

SEEDS = ("seed", "data.subset_seed", "prompts.seed", "prompts.noise_seed")
FIRST = (
    "method.name",
    "method.variant",
    "model.name",
    "data.subject",
    "data.n_images",
)  # listed before others


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over runs with half its 95 % interval (Student's t between runs; None for a single run)."""

    mean: float
    half: float | None
    n: int


@dataclass(frozen=True, slots=True)
class Group:
    """Runs with the same settings except for their seeds, and their results at the recommended steps."""

    settings: Mapping[str, Any]
    runs: int
    values: Mapping[str, Mean | None]  # by metric or cost


def telling(configs: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> list[str]:
    """Those of `keys` that distinguish the runs, without keys that are determined by those before them.

    If five methods are compared, their own settings differ too; the method's name is sufficient.
    """
    flat = [flatten(config) for config in configs]
    ordered = [key for key in FIRST if key in keys] + [key for key in keys if key not in FIRST]
    taken: list[str] = []
    parts: list[tuple[str, ...]] = [() for _ in flat]
    for key in ordered:
        finer = [(*part, json.dumps(c.get(key), default=str)) for part, c in zip(parts, flat, strict=True)]
        if len(set(finer)) > len(set(parts)):
            taken, parts = [*taken, key], finer
    return taken


def grouped(runs: Sequence[Run], keys: Sequence[str]) -> list[Group]:
    """One group for each combination of `keys` without the seeds; only runs with a recommended step.

    Copies of a run count once: see `distinct`.
    """
    runs, _ = distinct(runs)
    keys = [key for key in keys if key not in SEEDS]
    members: dict[str, list[Run]] = {}
    for run in runs:
        if run.recommendation is not None:
            flat = flatten(run.config)
            members.setdefault(json.dumps([flat.get(key) for key in keys], default=str), []).append(run)
    groups = []
    for some in members.values():
        flat = flatten(some[0].config)
        stop_values = [at_stop(run) for run in some]
        names = {name: None for values in stop_values for name in values}
        groups.append(
            Group(
                settings={key: flat.get(key) for key in keys},
                runs=len(some),
                values={
                    name: mean([v[name] for v in stop_values if v.get(name) is not None]) for name in names
                },
            )
        )
    return groups


def mean(values: Sequence[float | None]) -> Mean | None:
    """Mean and half interval of values of independent runs; None without values.

    There is no interval for a single run or for equal values, because the variation between runs is unknown.
    """
    known = [value for value in values if value is not None]
    n = len(known)
    if n == 0:
        return None
    middle = math.fsum(known) / n
    if n == 1:
        return Mean(middle, None, 1)
    error = math.sqrt(math.fsum((value - middle) ** 2 for value in known) / (n - 1) / n)
    if error <= ALIKE * max(abs(middle), 1e-12):
        return Mean(middle, None, n)
    return Mean(middle, student_t(n - 1) * error, n)


def at_stop(run: Run) -> dict[str, float | None]:
    """Every metric at the recommended step (images without a face are counted), and the run's costs."""
    if run.recommendation is None:
        return {}
    summaries = run.summaries[run.recommendation.step]
    return {name: value_of(summary) for name, summary in summaries.items()} | run_costs(run.folder, run.cost)
