"""The stop rule over a table: each run's scores and recommended stop, under its own or other weights and ranges.

The rule is that of `analysis.stop`; by default the numbers are those of the run's own report. Arrays named
"replicated" have the estimate in row 0 and one row for each draw of prompts after it (`bootstrap.prompt_weights`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffusion_lab.analysis.scoring import Measured, MetricLike, best_index, range_of
from diffusion_lab.analysis.stop import settle_weights
from diffusion_lab.records import Summary
from diffusion_lab.studies.bootstrap import Floats, prompt_weights, weighted
from diffusion_lab.studies.run import StudyRun

OF_FACES = "_of_faces"  # similarity_of_faces: the mean over images with a face, instead of all images


@dataclass(frozen=True, slots=True)
class Rule:
    """Weights (which sum to 1) and ranges (low, high) as used for one run."""

    weights: Mapping[str, float]
    ranges: Mapping[str, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Stop:
    """The recommended stop of a run."""

    index: int
    step: int
    score: float
    censored: bool  # it is the last evaluation: the best step may be later
    at_start: bool  # it is step 0: no training is recommended


def rule_of(
    run: StudyRun,
    infos: Mapping[str, MetricLike],
    weights: Mapping[str, float] | None = None,
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> Rule | None:
    """The rule for this run; None for `weights` or `ranges`: the run's own. None if no weighted metric has a value."""
    chosen = run.weights if weights is None else {m: w for m, w in weights.items() if m in run.values}
    given = run.ranges if ranges is None else ranges
    seen = {m for m, values in run.values.items() if np.isfinite(values).any()}
    used, _ = settle_weights(chosen, list(run.values), seen)
    if not used:
        return None
    ends: dict[str, tuple[float, float]] = {}
    measured: Measured | None = None
    for name in used:
        if name in given:
            ends[name] = (float(given[name][0]), float(given[name][1]))
            continue
        measured = _measured(run, infos) if measured is None else measured
        ceiling = run.references.get(name, {}).get("ceiling")
        top = None if ceiling is None else Summary(ceiling, 1, 0, None, None, None)
        ends[name] = range_of(measured, name, None, top)
    return Rule(used, ends)


def _measured(run: StudyRun, infos: Mapping[str, MetricLike]) -> Measured:
    def plain(values: Floats) -> list[float | None]:
        return [float(v) if np.isfinite(v) else None for v in values]

    limits = {
        m: [
            (low, high) if low is not None and high is not None else None
            for low, high in zip(plain(run.low[m]), plain(run.high[m]), strict=True)
        ]
        for m in run.values
    }
    values = {m: plain(run.values[m]) for m in run.values}
    known = [m for m in run.values if any(v is not None for v in values[m])]
    return Measured(list(run.steps), infos, {}, values, limits, known, {})


def score(curves: Mapping[str, Floats], rule: Rule, infos: Mapping[str, MetricLike]) -> Floats:
    """The weighted sum of the scaled metrics, of arrays of the same shape; NaN where a metric has no value."""
    total: Floats | None = None
    for name, weight in rule.weights.items():
        low, high = rule.ranges[name]
        part = (curves[name] - low) / (high - low)
        part = weight * (part if infos[name].higher_is_better else 1 - part)
        total = part if total is None else total + part
    assert total is not None
    return total


def stop_of(
    run: StudyRun,
    infos: Mapping[str, MetricLike],
    weights: Mapping[str, float] | None = None,
    ranges: Mapping[str, tuple[float, float]] | None = None,
) -> Stop | None:
    """The recommended stop. ``infos``: `Table.metrics`. None if no step has a score."""
    rule = rule_of(run, infos, weights, ranges)
    if rule is None:
        return None
    scores = score(run.values, rule, infos)
    best = best_index([float(s) if np.isfinite(s) else None for s in scores])
    if best is None:
        return None
    last = len(run.steps) - 1
    step = run.steps[best]
    return Stop(best, step, float(scores[best]), best == last and last > 0, step == 0)


def curve(run: StudyRun, metric: str, weights: NDArray[np.float32] | None = None) -> Floats:
    """A metric along the steps, replicated: [1 + draws, steps]. NaN if the run does not have it.

    ``weights``: rows of weights over prompts, by default `prompt_weights`; row 0 is then the run's value itself.
    `similarity_of_faces` is the mean over images with a face, which is similarity / face_rate if others count 0.
    """
    if metric.endswith(OF_FACES):
        name = metric.removesuffix(OF_FACES)
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio: Floats = curve(run, name, weights) / curve(run, "face_rate", weights)
        return np.where(np.isfinite(ratio), ratio, np.nan)
    own = weights is None
    rows = prompt_weights(len(run.prompts)) if weights is None else weights
    values = run.values.get(metric)
    if values is None:
        return np.full((len(rows), len(run.steps)), np.nan)
    scores = run.by_prompt.get(metric)
    if scores is None or not len(run.prompts):
        return np.tile(values, (len(rows), 1))
    replicated = weighted(scores, rows).astype(np.float64)
    if own:
        replicated[0] = values
    return replicated


def scores_of(
    run: StudyRun, infos: Mapping[str, MetricLike], rule: Rule, weights: NDArray[np.float32] | None = None
) -> Floats:
    """The rule's score along the steps, replicated: [1 + draws, steps]."""
    return score({name: curve(run, name, weights) for name in rule.weights}, rule, infos)


def best_of(scores: Floats) -> NDArray[np.int64]:
    """The index of the best step of each row, the earliest of equal ones; 0 in a row without scores."""
    filled = np.where(np.isfinite(scores), scores, -np.inf)
    return np.asarray(filled.argmax(axis=1), dtype=np.int64)
