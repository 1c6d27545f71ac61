"""The recommended stop against the number of photos: steps per photo (chart "stop")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffusion_lab.studies.bootstrap import Floats, Interval, mean_over
from diffusion_lab.studies.measures import Ranges, Weights, prompts_of, stop_steps
from diffusion_lab.studies.run import StudyRun
from diffusion_lab.studies.stops import Stop, stop_of
from diffusion_lab.studies.table import Table


@dataclass(frozen=True, slots=True)
class Slope:
    """Steps per photo: the slope of the recommended stop on n through the origin, mean over subjects."""

    interval: Interval
    runs: int
    censored: float  # share of runs whose stop is the last evaluation: the slope may be greater
    at_start: float  # share of runs for which the untouched model is best


def stop_slope(
    table: Table,
    runs: Sequence[StudyRun],
    gender: str | None = None,
    weights: Weights | None = None,
    ranges: Ranges | None = None,
) -> Slope | None:
    """Of the runs of one gender, or of all (chart "stop"). None without runs.

    Of each subject the least-squares slope sum n stop / sum n^2.
    """
    some = [run for run in runs if gender is None or run.gender == gender]
    found = [stop_of(run, table.metrics, weights, ranges) for run in some]
    known: list[Stop] = [stop for stop in found if stop is not None]
    if not known:
        return None
    return Slope(
        interval=slope_interval(table, some, weights, ranges),
        runs=len(known),
        censored=sum(stop.censored for stop in known) / len(known),
        at_start=sum(stop.at_start for stop in known) / len(known),
    )


def slope_interval(
    table: Table, runs: Sequence[StudyRun], weights: Weights | None = None, ranges: Ranges | None = None
) -> Interval:
    """The slope through the origin, mean over subjects, with the error of the evaluations' distance."""
    interval = mean_over(slopes(table, runs, weights, ranges), prompts_of(runs))
    return interval.at_least(least_variance(runs))


def least_variance(runs: Sequence[StudyRun]) -> float:
    """The part of a slope's variance that comes from evaluating only every so many steps."""
    counts = {run.n_images for run in runs}
    return rounding(runs) / max(float(sum(n**2 for n in counts)), 1.0)


def rounding(runs: Sequence[StudyRun]) -> float:
    """The variance of a best step that is only known to be nearest to one evaluation: every^2 / 12 (uniform).

    It is the same for subjects with the same best step, so that more subjects do not reduce it.
    """
    gaps = [float(np.diff(run.steps).max()) for run in runs if len(run.steps) > 1]
    return float(np.median(gaps)) ** 2 / 12 if gaps else 0.0


def slopes(
    table: Table, runs: Sequence[StudyRun], weights: Weights | None = None, ranges: Ranges | None = None
) -> Floats:
    """Each subject's slope through the origin, replicated: [1 + draws, subjects]."""
    above: dict[str, Floats] = {}
    below: dict[str, float] = {}
    for run in runs:
        steps = stop_steps(run, table.metrics, weights, ranges)
        if steps is not None and run.n_images:
            above[run.subject] = above.get(run.subject, 0.0) + run.n_images * steps
            below[run.subject] = below.get(run.subject, 0.0) + run.n_images**2
    if not above:
        return np.zeros((1, 0))
    return np.stack([above[s] / below[s] for s in above], axis=1)
