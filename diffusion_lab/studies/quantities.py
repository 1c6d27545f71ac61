"""Quantities of one run, replicated over draws of prompts, of which claims take means over subjects.

Each function returns [1 + draws]: row 0 is the estimate. None if the run does not have what is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from diffusion_lab.analysis.scoring import MetricLike
from diffusion_lab.studies.bootstrap import Floats, prompt_weights
from diffusion_lab.studies.run import StudyRun
from diffusion_lab.studies.stops import best_of, curve, rule_of, scores_of

Infos = Mapping[str, MetricLike]
FEWEST_PROMPTS = 8  # half of them choose the stop, the other half measure
SCORE = "score"


def whole_course(run: StudyRun) -> bool:
    """Evaluated at step 0 and at least three times after it."""
    return len(run.steps) >= 4 and run.steps[0] == 0


def trend(run: StudyRun, metric: str) -> Floats | None:
    """The change from the first to the last evaluation on the least-squares line."""
    if len(run.steps) < 3:
        return None
    steps = np.asarray(run.steps, dtype=np.float64)
    centred = steps - steps.mean()
    along = curve(run, metric)
    change: Floats = along @ (centred / (centred**2).sum()) * (steps[-1] - steps[0])
    return change


def share_down(run: StudyRun, metric: str) -> Floats | None:
    """The share of neighbouring evaluations at which the metric is lower at the later one."""
    if len(run.steps) < 3:
        return None
    along = curve(run, metric)
    share: Floats = np.where(
        np.isnan(along[:, :1]), np.nan, (np.diff(along, axis=1) < 0).mean(axis=1, keepdims=True)
    )
    return share[:, 0]


def late_rise(run: StudyRun, metric: str) -> Floats | None:
    """Between half of the run and nine tenths: the slope on the steps there, times this distance."""
    last = run.steps[-1]
    there = [i for i, step in enumerate(run.steps) if 0.5 * last <= step <= 0.9 * last]
    if len(there) < 2:
        return None
    steps = np.asarray(run.steps, dtype=np.float64)[there]
    centred = steps - steps.mean()
    change: Floats = curve(run, metric)[:, there] @ (centred / (centred**2).sum()) * (steps[-1] - steps[0])
    return change


def after_start(run: StudyRun, metric: str) -> Floats | None:
    """The mean over all evaluations after step 0."""
    there = [i for i, step in enumerate(run.steps) if step > 0]
    if not there:
        return None
    mean: Floats = curve(run, metric)[:, there].mean(axis=1)
    return mean


def at_start(run: StudyRun, metric: str) -> Floats | None:
    """At step 0: the untouched model."""
    return curve(run, metric)[:, 0] if run.steps[0] == 0 else None


def peak_step(run: StudyRun, metric: str, sign: int = 1) -> Floats | None:
    """The step of the greatest value (``sign`` -1: the smallest), the earliest if several are equal."""
    if len(run.steps) < 3:
        return None
    along = sign * curve(run, metric)
    if not np.isfinite(along[0]).any():
        return None
    steps: Floats = np.asarray(run.steps, dtype=np.float64)[best_of(along)]
    return steps


def from_stop(run: StudyRun, infos: Infos, metric: str, towards: Callable[[StudyRun], int]) -> Floats | None:
    """A metric (or "score") at an evaluation less its value at the recommended stop.

    ``towards``: index of the evaluation. The stop is the best of several noisy scores, so that its own score is too
    high: one half of the prompts chooses the stop, the other half measures, and the halves change roles.
    """
    rule = rule_of(run, infos)
    if rule is None or len(run.prompts) < FEWEST_PROMPTS or len(run.steps) < 3:
        return None
    rows = prompt_weights(len(run.prompts))
    index = towards(run)
    even = np.arange(len(run.prompts)) % 2 == 0
    total: Floats = np.zeros(len(rows))
    for chooser in (even, ~even):
        choose, measure = (_part(rows, chooser), _part(rows, ~chooser))
        best = best_of(scores_of(run, infos, rule, choose))
        along = scores_of(run, infos, rule, measure) if metric == SCORE else curve(run, metric, measure)
        total = total + (along[:, index] - along[np.arange(len(rows)), best]) / 2
    return total


def _part(rows: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The weights of some of the prompts, with sum 1."""
    some = np.where(mask, rows, np.float32(0))
    sums = some.sum(axis=1, keepdims=True)
    return np.asarray(
        np.where(sums > 0, some / np.where(sums > 0, sums, 1), mask / mask.sum()), dtype=np.float32
    )


def coupled(run: StudyRun, first: str, second: str) -> Floats | None:
    """Correlation, over the steps, of the changes of two metrics from one evaluation to the next."""
    if len(run.steps) < 5:
        return None
    a, b = (np.diff(curve(run, metric), axis=1) for metric in (first, second))
    return correlation(a, b)


def correlation(first: Floats, second: Floats) -> Floats:
    """Pearson's, of each row of [rows, steps]; NaN if one of the two does not change."""
    a, b = (x - x.mean(axis=1, keepdims=True) for x in (first, second))
    with np.errstate(invalid="ignore", divide="ignore"):
        r: Floats = (a * b).sum(axis=1) / np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return r
