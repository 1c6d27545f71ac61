"""Measures of a study: means over subjects with intervals, by number of images, method or model.

Subjects are the units. Runs of one subject that differ only by seeds are averaged first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffusion_lab.analysis.scoring import MetricLike
from diffusion_lab.studies.bootstrap import Floats, Interval, mean_over, prompt_weights
from diffusion_lab.studies.costs import COSTS
from diffusion_lab.studies.run import StudyRun
from diffusion_lab.studies.stops import OF_FACES, Stop, best_of, curve, rule_of, scores_of, stop_of
from diffusion_lab.studies.table import Table

Weights = Mapping[str, float]
Ranges = Mapping[str, tuple[float, float]]

# Settings by which comparable runs may differ: what is compared, seeds, and what does not change the curves.
FREE = (
    "data.subject", "data.folder", "data.class_noun", "data.n_images", "data.identifier", "data.impostors", "seed",
    "data.subset_seed", "prompts.seed", "prompts.noise_seed", "steps.total", "steps.checkpoint_every",
    "steps.keep_checkpoints", "steps.keep_adapters", "steps.log_every", "metrics.names", "metrics.weights",
    "metrics.ranges", "tracker.", "job.", "resume", "as_typed", "memory.", "steps.every", "prompts.batch_size",
    "metrics.batch_size",
)  # fmt: skip


def comparable(
    runs: Sequence[StudyRun], *, metrics: Sequence[str] = (), apart: Sequence[str] = ("method.", "model.")
) -> list[StudyRun]:
    """The runs that can be put side by side: with these metrics, and with the most usual settings.

    A pool of runs holds several studies: other learning rates, prior weights, prompts. Settings outside of `FREE` and
    ``apart`` are those that most runs have; those under ``apart`` are, for each method and model, those that most runs of
    this method and model have (the first in order if several are as frequent).
    """
    some = [run for run in runs if all(_has(run, metric) for metric in metrics)]
    if not some:
        return []
    shared = Counter(_settings(run, apart, False) for run in some)
    common = shared.most_common(1)[0][0]
    some = [run for run in some if _settings(run, apart, False) == common]
    chosen: dict[tuple[str, str], Hashable] = {}
    for kind in dict.fromkeys((run.method, run.model) for run in some):
        own = Counter(_settings(run, apart, True) for run in some if (run.method, run.model) == kind)
        chosen[kind] = own.most_common(1)[0][0]
    return [run for run in some if _settings(run, apart, True) == chosen[run.method, run.model]]


def _has(run: StudyRun, metric: str) -> bool:
    values = run.values.get(metric.removesuffix(OF_FACES))
    return values is not None and bool(np.isfinite(values).any())


def _settings(run: StudyRun, apart: Sequence[str], inside: bool) -> Hashable:
    return tuple(
        (key, value)
        for key, value in run.chosen
        if key.startswith(tuple(apart)) is inside and not key.startswith(FREE)
    )


def main_runs(table: Table, *, metrics: Sequence[str] = ()) -> list[StudyRun]:
    """The comparable runs of the method and model with the most runs: those that the questions of 000 are about."""
    some = comparable(table.runs, metrics=metrics)
    if not some:
        return []
    kind = Counter((run.method, run.model) for run in some).most_common(1)[0][0]
    return [run for run in some if (run.method, run.model) == kind]


def complete(runs: Sequence[StudyRun]) -> list[StudyRun]:
    """A balanced part of a study that may still be running: every subject has every number of images.

    Numbers of images that at least half of the subjects have, and the subjects that have them all. Unfinished runs are
    left out if any run is finished.
    """
    done = [run for run in runs if run.finished] or list(runs)
    by_subject: dict[str, set[int]] = {}
    for run in done:
        by_subject.setdefault(run.subject, set()).add(run.n_images)
    counted = Counter(n for counts in by_subject.values() for n in counts)
    common = {n for n, some in counted.items() if 2 * some >= len(by_subject)}
    kept = {subject for subject, counts in by_subject.items() if common <= counts}
    return [run for run in done if run.subject in kept and run.n_images in common]


def by_subject(
    runs: Sequence[StudyRun], quantity: Callable[[StudyRun], Floats | None]
) -> tuple[list[str], Floats]:
    """Subjects, and each one's mean of a replicated quantity over its runs: [1 + draws, subjects].

    ``quantity``: [1 + draws] of a run, or None to leave the run out.
    """
    found: dict[str, list[Floats]] = {}
    for run in runs:
        values = quantity(run)
        if values is not None and np.isfinite(values[0]):
            found.setdefault(run.subject, []).append(values)
    if not found:
        return [], np.zeros((1, 0))
    return list(found), np.stack([np.mean(values, axis=0) for values in found.values()], axis=1)


def prompts_of(runs: Sequence[StudyRun]) -> int:
    return max((len(run.prompts) for run in runs), default=0)


# --- at the recommended stop --------------------------------------------------------------------------


def stops(
    run: StudyRun,
    infos: Mapping[str, MetricLike],
    weights: Weights | None = None,
    ranges: Ranges | None = None,
) -> NDArray[np.int64] | None:
    """Index of the recommended stop, replicated: [1 + draws]."""
    rule, own = rule_of(run, infos, weights, ranges), stop_of(run, infos, weights, ranges)
    if rule is None or own is None:
        return None
    best = best_of(scores_of(run, infos, rule))
    best[0] = own.index
    return best


def stop_steps(
    run: StudyRun,
    infos: Mapping[str, MetricLike],
    weights: Weights | None = None,
    ranges: Ranges | None = None,
) -> Floats | None:
    """The recommended stop in steps, replicated."""
    best = stops(run, infos, weights, ranges)
    return None if best is None else np.asarray(run.steps, dtype=np.float64)[best]


def at_stop(
    run: StudyRun,
    infos: Mapping[str, MetricLike],
    metric: str,
    weights: Weights | None = None,
    ranges: Ranges | None = None,
) -> Floats | None:
    """A metric at the recommended stop, replicated; the stop is chosen again in each replicate."""
    best = stops(run, infos, weights, ranges)
    if best is None or not _has(run, metric):
        return None
    along = curve(run, metric)
    values: Floats = along[np.arange(len(along)), best]
    return values


def optimum(
    table: Table,
    runs: Sequence[StudyRun],
    metric: str,
    weights: Weights | None = None,
    ranges: Ranges | None = None,
) -> dict[int, Interval]:
    """A metric at the recommended stop by number of images, mean over subjects (chart "optimum")."""
    return {
        n: mean_over(
            by_subject(
                [run for run in runs if run.n_images == n],
                lambda run: at_stop(run, table.metrics, metric, weights, ranges),
            )[1],
            prompts_of(runs),
        )
        for n in sorted({run.n_images for run in runs})
    }


def curves_by(
    runs: Sequence[StudyRun], metric: str, key: Callable[[StudyRun], Hashable]
) -> dict[Hashable, dict[int, Interval]]:
    """A metric at each step, mean over subjects, one curve for each value of ``key`` (charts "counts", "models").

    At a step count only the subjects that have been evaluated there; `Interval.subjects` says how many.
    """
    found: dict[Hashable, dict[int, Interval]] = {}
    for one in dict.fromkeys(key(run) for run in runs):
        some = [run for run in runs if key(run) == one and _has(run, metric)]
        found[one] = mean_curve(some, metric)
    return found


def mean_curve(runs: Sequence[StudyRun], metric: str) -> dict[int, Interval]:
    """A metric at each step, mean over the subjects of ``runs`` that have been evaluated there."""
    columns: dict[int, dict[int, Floats]] = {}  # step -> position of the run -> [1 + draws]
    for i, run in enumerate(runs):
        along = curve(run, metric)
        for j, step in enumerate(run.steps):
            columns.setdefault(step, {})[i] = along[:, j]
    points = {}
    for step in sorted(columns):
        by_run = {id(runs[i]): values for i, values in columns[step].items()}
        there = [runs[i] for i in columns[step]]
        points[step] = mean_over(by_subject(there, lambda run, at=by_run: at[id(run)])[1], prompts_of(runs))  # type: ignore[misc]
    return points


# --- the stop against the number of images ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Slope:
    """Steps per image: the slope of the recommended stop on n through the origin, mean over subjects."""

    interval: Interval
    runs: int
    censored: float  # share of runs whose stop is the last evaluation: the slope may be greater
    at_start: float  # share of runs for which the untouched model is best

    def rule(self, steps_per_image: float) -> Interval:
        """The slope divided by that of a rule of thumb (100, 120, 150): 1 if the rule is right."""
        return self.interval.scaled(1 / steps_per_image)


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
    counts = np.array(sorted({run.n_images for run in runs}), dtype=np.float64)
    interval = mean_over(slopes(table, runs, weights, ranges), prompts_of(runs))
    return interval.at_least(rounding(runs) / max(float((counts**2).sum()), 1.0))


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


# --- methods ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PlanePoint:
    """A method on the distortion-editability plane, at one step or (None) at the recommended stop."""

    method: str
    step: int | None
    image: Interval
    prompt: Interval


PLANES = (("image_similarity", "prompt_similarity"), ("clip_image", "clip_text"), ("similarity", "clip_text"))


def plane_metrics(table: Table) -> tuple[str, str] | None:
    """The pair (image similarity, prompt similarity) that the runs have: that of 003, else the nearest."""
    for image, prompt in PLANES:
        if any(_has(run, image) and _has(run, prompt) for run in table.runs):
            return image, prompt
    return None


def plane(
    table: Table, runs: Sequence[StudyRun], weights: Weights | None = None, ranges: Ranges | None = None
) -> list[PlanePoint]:
    """Each method at its recommended stop, and its path over the steps, means over subjects (chart "methods")."""
    axes = plane_metrics(table)
    if axes is None:
        return []
    points = []
    for method in dict.fromkeys(run.method for run in runs):
        some = [run for run in runs if run.method == method]
        ends = [
            mean_over(
                by_subject(some, lambda run, m=m: at_stop(run, table.metrics, m, weights, ranges))[1],  # type: ignore[misc]
                prompts_of(some),
            )
            for m in axes
        ]
        points.append(PlanePoint(method, None, ends[0], ends[1]))
        paths = [curves_by(some, metric, lambda run: run.method).get(method, {}) for metric in axes]
        points += [PlanePoint(method, s, paths[0][s], paths[1][s]) for s in paths[0] if s in paths[1]]
    return points


def mean_costs(
    runs: Sequence[StudyRun], key: Callable[[StudyRun], Hashable]
) -> dict[Hashable, dict[str, Interval]]:
    """Mean costs over subjects (names of `costs.COSTS`) for each value of ``key``; between subjects only."""
    found: dict[Hashable, dict[str, Interval]] = {}
    for one in dict.fromkeys(key(run) for run in runs):
        some = [run for run in runs if key(run) == one]
        found[one] = {name: mean_over(by_subject(some, cost_of(name))[1], 0) for name in COSTS}
    return found


def cost_of(name: str) -> Callable[[StudyRun], Floats | None]:
    """A run's cost as a quantity for `by_subject`."""

    def cost(run: StudyRun) -> Floats | None:
        value = run.costs.get(name)
        return None if value is None else np.full(len(prompt_weights(len(run.prompts))), float(value))

    return cost
