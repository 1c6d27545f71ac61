"""The runs of a table as claims and answers need them: comparable ones, their stops, means over subjects."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from diffusion_lab.studies import measures
from diffusion_lab.studies.bootstrap import Floats, Interval, difference_of, mean_over
from diffusion_lab.studies.measures import by_subject, prompts_of
from diffusion_lab.studies.run import StudyRun
from diffusion_lab.studies.stops import OF_FACES, Stop, curve, rule_of, scores_of, stop_of
from diffusion_lab.studies.table import Table

Quantity = Callable[[StudyRun], Floats | None]


class Pool:
    """A table with what is used more than once. The stop rule is each run's own."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.infos = table.metrics
        self._main: dict[tuple[str, ...], list[StudyRun]] = {}
        self._stops: dict[int, NDArray[np.int64] | None] = {}

    def runs(self, *metrics: str) -> list[StudyRun]:
        """A balanced part of the comparable runs with these metrics, of the method and model with the most runs."""
        if metrics not in self._main:
            needed = [metric.removesuffix(OF_FACES) for metric in metrics]
            needed += ["face_rate"] if any(metric.endswith(OF_FACES) for metric in metrics) else []
            self._main[metrics] = measures.complete(measures.main_runs(self.table, metrics=needed))
        return self._main[metrics]

    def stops(self, run: StudyRun) -> NDArray[np.int64] | None:
        """Indices of the recommended stop, replicated."""
        if id(run) not in self._stops:
            self._stops[id(run)] = measures.stops(run, self.infos)
        return self._stops[id(run)]

    def stop(self, run: StudyRun) -> Stop | None:
        return stop_of(run, self.infos)

    def stop_step(self, run: StudyRun) -> Floats | None:
        best = self.stops(run)
        return None if best is None else np.asarray(run.steps, dtype=np.float64)[best]

    def at_stop(self, metric: str) -> Quantity:
        """A metric at the recommended stop."""

        def value(run: StudyRun) -> Floats | None:
            best = self.stops(run)
            if best is None:
                return None
            along = curve(run, metric)
            found: Floats = along[np.arange(len(along)), best]
            return found

        return value

    def score_at_stop(self, run: StudyRun) -> Floats | None:
        """The weighted score at the recommended stop."""
        best, rule = self.stops(run), rule_of(run, self.infos)
        if best is None or rule is None:
            return None
        along = scores_of(run, self.infos, rule)
        found: Floats = along[np.arange(len(along)), best]
        return found

    def censored(self, runs: Sequence[StudyRun]) -> float:
        """The share of runs whose recommended stop is the last evaluation."""
        found = [stop for run in runs if (stop := self.stop(run)) is not None]
        return sum(stop.censored for stop in found) / len(found) if found else 0.0


def over_subjects(runs: Sequence[StudyRun], quantity: Quantity) -> Interval:
    """Mean over subjects of a quantity."""
    return mean_over(by_subject(runs, quantity)[1], prompts_of(runs))


def women_less_men(runs: Sequence[StudyRun], quantity: Quantity) -> Interval:
    groups = [by_subject([run for run in runs if run.gender == g], quantity)[1] for g in ("woman", "man")]
    return difference_of(groups[0], groups[1], prompts_of(runs))


def by_count(runs: Sequence[StudyRun], quantity: Quantity) -> tuple[list[str], list[int], Floats]:
    """Subjects, numbers of photos, and [1 + draws, subjects, counts] of a quantity, NaN where there is none."""
    subjects = list(dict.fromkeys(run.subject for run in runs))
    counts = sorted({run.n_images for run in runs})
    columns = []
    for n in counts:
        names, values = by_subject([run for run in runs if run.n_images == n], quantity)
        columns.append((names, values))
    rows = max((len(values) for _, values in columns), default=1)
    found = np.full((rows, len(subjects), len(counts)), np.nan)
    for j, (names, values) in enumerate(columns):
        for i, name in enumerate(names):
            found[:, subjects.index(name), j] = values[:, i]
    return subjects, counts, found


def slope_on_count(runs: Sequence[StudyRun], quantity: Quantity) -> Interval:
    """Mean over subjects of the least-squares slope of a quantity on the number of photos, with a constant."""
    _, counts, values = by_count(runs, quantity)
    if len(counts) < 2:
        return mean_over(np.zeros((1, 0)), 0)
    kept = values[:, np.isfinite(values[0]).all(axis=1)]
    centred = np.asarray(counts, dtype=np.float64) - np.mean(counts)
    return mean_over(kept @ (centred / (centred**2).sum()), prompts_of(runs))


def paired(first: Sequence[StudyRun], second: Sequence[StudyRun], quantity: Quantity) -> Interval:
    """A quantity of the first runs less that of the second, paired by subject and number of photos."""
    _, counts_a, a = by_count(first, quantity)
    _, counts_b, b = by_count(second, quantity)
    names_a, names_b = (list(dict.fromkeys(run.subject for run in runs)) for runs in (first, second))
    parts: list[Floats] = []
    for name in names_a:
        if name not in names_b:
            continue
        own = [
            a[:, names_a.index(name), counts_a.index(n)] - b[:, names_b.index(name), counts_b.index(n)]
            for n in counts_a
            if n in counts_b
        ]
        known = [d for d in own if np.isfinite(d[0])]
        if known:
            parts.append(np.mean(known, axis=0))
    values = np.stack(parts, axis=1) if parts else np.zeros((1, 0))
    return mean_over(values, prompts_of([*first, *second]))


def jackknifed(function: Callable[[Floats], Floats], values: Floats) -> Floats:
    """Pseudo-values of a smooth function of means over subjects: S f(mean) - (S - 1) f(mean without s).

    ``values`` [1 + draws, S, K]; ``function``: [1 + draws, K] -> [1 + draws]. Their mean over subjects is nearly
    f(mean), and their variance is right for it (Tukey 1958; Efron & Stein 1981).
    """
    size = values.shape[1]
    whole = function(values.mean(axis=1))
    if size < 2:
        return whole[:, None]
    total = values.sum(axis=1)
    return np.stack(
        [size * whole - (size - 1) * function((total - values[:, s]) / (size - 1)) for s in range(size)],
        axis=1,
    )
