"""The tables behind the charts, for the default weights and ranges: what the page's script computes, in Python.

Each function returns rows with the same columns as the page's own CSV files. The replicates here are all those of
`studies.bootstrap`, of which the page may have only the first ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffusion_lab.report.study.keys import keys_of
from diffusion_lab.studies import bootstrap, measures
from diffusion_lab.studies.costs import COSTS
from diffusion_lab.studies.measures import prompts_of
from diffusion_lab.studies.run import StudyRun
from diffusion_lab.studies.slope import least_variance
from diffusion_lab.studies.stops import curve as curve_of
from diffusion_lab.studies.table import Table

Floats = NDArray[np.float64]
Row = dict[str, str | int | float | None]
ENOUGH = 0.75  # of a group's runs must have an evaluation for its mean to be drawn


@dataclass(frozen=True, slots=True)
class Measured:
    """A run with its replicates: row 0 is the estimate, the others have other prompts drawn."""

    run: StudyRun
    values: Mapping[str, Floats]  # metric -> [1 + draws, steps]
    stops: Floats  # [1 + draws], positions of the recommended evaluations; NaN: none
    keys: Mapping[str, str | int | float]

    def stop_steps(self) -> Floats:
        """[1 + draws], optimizer steps."""
        known = np.isfinite(self.stops)
        at = np.where(known, self.stops, 0).astype(int)
        return np.where(known, np.asarray(self.run.steps, float)[at], np.nan)

    def at_stop(self, metric: str) -> Floats:
        """[1 + draws]: a metric at the recommended evaluation."""
        if metric not in self.values:
            return np.full(len(self.stops), np.nan)
        known = np.isfinite(self.stops)
        at = np.where(known, self.stops, 0).astype(int)
        return np.where(known, np.take_along_axis(self.values[metric], at[:, None], axis=1)[:, 0], np.nan)

    def at_step(self, metric: str, step: int) -> Floats:
        """[1 + draws]; NaN if it was not evaluated there."""
        if step not in self.run.steps or metric not in self.values:
            return np.full(len(self.stops), np.nan)
        return self.values[metric][:, self.run.steps.index(step)]


def measured(table: Table) -> list[Measured]:
    """Every run of the table with its replicates and recommended stops under the table's weights and ranges."""
    keys = keys_of(table.runs)
    return [
        _measured(run, table, {key.name: key.values[i] for key in keys}) for i, run in enumerate(table.runs)
    ]


def _measured(run: StudyRun, table: Table, keys: Mapping[str, str | int | float]) -> Measured:
    values = {name: curve_of(run, name) for name in run.values}
    best = measures.stops(run, table.metrics, table.weights, table.ranges)
    none = np.full(len(bootstrap.prompt_weights(len(run.prompts))), np.nan)
    return Measured(run, values, none if best is None else best.astype(float), keys)


Quantity = Callable[[Measured], Floats]


def mean(runs: Sequence[Measured], of: Quantity) -> Row | None:
    """The mean over subjects of the means over each subject's runs, with its interval; None without a value."""
    groups: dict[str, list[Floats]] = {}
    used = [(one, q) for one in runs if math.isfinite((q := of(one))[0])]
    for one, q in used:
        groups.setdefault(one.run.subject, []).append(q)
    subjects = [_mean_known(np.stack(some)) for some in groups.values()]
    return _interval(subjects, [one.run for one, _ in used])


def slope(runs: Sequence[Measured]) -> Row | None:
    """The slope of the recommended step on the number of photos, through the origin: sum n stop / sum n^2 per subject."""
    groups: dict[str, list[Measured]] = {}
    used = [one for one in runs if one.run.n_images and math.isfinite(one.stops[0])]
    for one in used:
        groups.setdefault(one.run.subject, []).append(one)
    subjects = []
    for some in groups.values():
        n = np.array([[one.run.n_images] for one in some], float)
        steps = np.stack([one.stop_steps() for one in some])
        known = np.isfinite(steps)
        subjects.append(np.where(known, n * steps, 0).sum(0) / np.where(known, n**2, 0).sum(0))
    runs_used = [one.run for one in used]
    return _interval(subjects, runs_used, least_variance(runs_used))


def _mean_known(values: Floats) -> Floats:
    known = np.isfinite(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Floats = np.where(known, values, 0).sum(0) / known.sum(0)
    return found


def _interval(subjects: Sequence[Floats], runs: Sequence[StudyRun], least: float = 0.0) -> Row | None:
    """`least`: a variance, see `Interval.at_least`."""
    if not subjects:
        return None
    draws = max(len(one) for one in subjects)
    alike = [one if len(one) == draws else np.full(draws, one[0]) for one in subjects]
    found = bootstrap.mean_over(np.stack(alike, axis=1), prompts_of(runs)).at_least(least)
    low, high = (found.low, found.high) if found.known else (None, None)
    return {"value": found.value, "low": low, "high": high, "subjects": len(subjects), "runs": len(runs)}


# --- one table for each chart -----------------------------------------------------------------------------


def by_key(runs: Sequence[Measured], key: str) -> dict[str | int | float, list[Measured]]:
    """Runs by a key of the page, numbers in ascending order."""
    values = sorted({one.keys[key] for one in runs}, key=lambda v: (isinstance(v, str), v))
    return {value: [one for one in runs if one.keys[key] == value] for value in values}


def dynamics(runs: Sequence[Measured], metric: str) -> list[Row]:
    """Every evaluation of every run."""
    return [
        {"run": one.run.name, **one.keys, "step": step, "metric": metric, "value": _number(one.run.values, metric, i),
         "low": _number(one.run.low, metric, i), "high": _number(one.run.high, metric, i)}
        for one in runs
        for i, step in enumerate(one.run.steps)
    ]  # fmt: skip


def curve(runs: Sequence[Measured], metric: str) -> list[Row]:
    """The mean at each step that enough of the runs have."""
    some = [one for one in runs if np.isfinite(one.run.values.get(metric, np.nan)).any()]
    counts: dict[int, int] = {}
    for one in some:
        for step in one.run.steps:
            counts[step] = counts.get(step, 0) + 1
    steps = sorted(step for step, count in counts.items() if count >= ENOUGH * len(some))
    found = [(step, mean(some, lambda one, step=step: one.at_step(metric, step))) for step in steps]  # type: ignore[misc]
    return [{"step": step, **row} for step, row in found if row is not None]


def curves(runs: Sequence[Measured], metric: str, by: str) -> list[Row]:
    return [
        {by: group, "metric": metric, **row}
        for group, some in by_key(runs, by).items()
        for row in curve(some, metric)
    ]


def stops(runs: Sequence[Measured], by: str) -> list[Row]:
    """The recommended stop by number of photos, for each group."""
    return [
        {"by": group, "n": n, **row}
        for group, some in _groups(runs, by).items()
        for n, of in by_key(some, "n").items()
        if n and (row := mean(of, Measured.stop_steps)) is not None
    ]


def slopes(runs: Sequence[Measured], by: str) -> list[Row]:
    found = [(group, slope(some)) for group, some in _groups(runs, by).items()]
    return [{"by": group, "slope": row.pop("value"), **row} for group, row in found if row is not None]


def optimum(runs: Sequence[Measured], metric: str, by: str) -> list[Row]:
    """A metric at the recommended stop by number of photos, for each group."""
    return [
        {"by": group, "n": n, "metric": metric, **row}
        for group, some in _groups(runs, by).items()
        for n, of in by_key(some, "n").items()
        if n and (row := mean(of, lambda one: one.at_stop(metric))) is not None
    ]


def side_by_side(runs: Sequence[Measured], by: str, of: Quantity) -> list[Row]:
    found = [(group, mean(some, of)) for group, some in _groups(runs, by).items()]
    return [{"by": group, **row} for group, row in found if row is not None]


def plane(runs: Sequence[Measured], across: str, up: str, by: str) -> list[Row]:
    """Two metrics over the steps and at the recommended stop, for each group."""
    rows: list[Row] = []
    for group, some in _groups(runs, by).items():
        ups = {row["step"]: row for row in curve(some, up)}
        pairs = [(row["step"], row, ups[row["step"]]) for row in curve(some, across) if row["step"] in ups]
        ends = [mean(some, lambda one, m=m: one.at_stop(m)) for m in (across, up)]  # type: ignore[misc]
        if ends[0] is not None and ends[1] is not None:
            pairs.append(("stop", ends[0], ends[1]))
        rows += [
            {"by": group, "at": at, "x": x["value"], "x_low": x["low"], "x_high": x["high"], "y": y["value"],
             "y_low": y["low"], "y_high": y["high"]}
            for at, x, y in pairs
        ]  # fmt: skip
    return rows


def costs(runs: Sequence[Measured], by: str) -> dict[str, list[Row]]:
    """By cost: its mean over subjects, for each group."""

    def cost(name: str) -> Quantity:
        return lambda one: np.full(
            len(one.stops), np.nan if one.run.costs.get(name) is None else one.run.costs[name]
        )

    return {name: side_by_side(runs, by, cost(name)) for name in COSTS}


def _groups(runs: Sequence[Measured], by: str) -> Mapping[str | int | float, Sequence[Measured]]:
    return by_key(runs, by) if by else {"all runs": runs}


def _number(of: Mapping[str, Floats], metric: str, i: int) -> float | None:
    value = of[metric][i] if metric in of else np.nan
    return float(value) if math.isfinite(value) else None
