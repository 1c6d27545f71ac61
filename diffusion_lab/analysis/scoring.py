"""The metrics of a run's evaluations on one scale, their weighted sum, and its 95 % interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from diffusion_lab.analysis.differences import Limits, Values, combined, correlation, difference, scaled
from diffusion_lab.analysis.intervals import LEVEL, normal_quantile, student_t
from diffusion_lab.analysis.limits import limits_of, value_of, widened
from diffusion_lab.analysis.reason import MetricChange
from diffusion_lab.records import Summary
from diffusion_lab.values.bounds import NARROWEST

STEADY = 0.01  # values of a metric that are closer than this are reported as equal
TIE = 1e-9  # scores closer than this are equal, so that rounding does not decide

Paired = Mapping[int, Mapping[str, Values]]  # step -> metric -> value of each image
Ranges = Mapping[str, tuple[float, float]]  # metric -> low, high


class MetricLike(Protocol):
    """What the rule needs to know of a metric; every `records.Metric` is one."""

    @property
    def name(self) -> str: ...
    @property
    def higher_is_better(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class StepScore:
    """The rule at one evaluation. `score` is None if a weighted metric has no value."""

    step: int
    score: float | None
    half_width: float | None  # half of the score's 95 % interval, assuming independent metrics
    scaled: Mapping[str, float | None]  # by metric, weighted or not; 1 is good, unclipped
    low: float | None = None  # the interval itself, which may be asymmetric
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """A run's evaluations in order of steps. Positions count them from 0."""

    steps: list[int]
    infos: Mapping[str, MetricLike]
    summaries: Mapping[int, Mapping[str, Summary]]  # by step
    values: Mapping[str, list[float | None]]  # by metric, along the steps
    limits: Mapping[str, list[Limits | None]]  # 95 % intervals of these
    known: list[str]  # metrics with a mean at some step
    paired: Paired

    @classmethod
    def of(
        cls, summaries: Mapping[int, Mapping[str, Summary]], infos: Mapping[str, MetricLike], paired: Paired
    ) -> Measured:
        """From the summaries by step, in any order."""
        steps = sorted(summaries)
        along = {m: [summaries[step].get(m) for step in steps] for m in infos}
        return cls(
            steps=steps,
            infos=infos,
            summaries=summaries,
            values={m: [value_in(s) for s in along[m]] for m in infos},
            limits={m: [None if s is None else limits_of(s) for s in along[m]] for m in infos},
            known=[m for m in infos if any(s is not None and s.mean is not None for s in along[m])],
            paired=paired,
        )

    def sign(self, name: str) -> int:
        """1 for a metric that is better when higher, -1 for one that is better when lower."""
        return 1 if self.infos[name].higher_is_better else -1

    def change(self, name: str, i: int, j: int, level: float = LEVEL) -> MetricChange:
        """Of a metric from the i-th to the j-th evaluation, with limits of confidence `level` (0 to 1)."""
        a, b = self.values[name][i], self.values[name][j]
        if a is None or b is None:
            return MetricChange(a, b, None)
        between = [v for v in self.values[name][i + 1 : j] if v is not None]
        steady = all(abs(v - b) < STEADY for v in between)
        x, y = self._limits(name, i, level), self._limits(name, j, level)
        if x is None or y is None:
            return MetricChange(a, b, None, steady)
        return MetricChange(a, b, difference(a, x, b, y, self._correlation(name, i, j)), steady)

    def gap(
        self, i: int, best: int, weights: Mapping[str, float], ranges: Ranges, level: float = LEVEL
    ) -> Limits | None:
        """Limits of the score of evaluation `best` less that of the i-th; None where one is unknown.

        `level`: of their confidence, 0 to 1.
        """
        parts = []
        for name, weight in weights.items():
            change = self.change(name, i, best, level)
            if change.limits is None or change.start is None or change.end is None:
                return None
            low, high = ranges[name]
            parts.append(
                scaled(change.end - change.start, change.limits, weight / (high - low) * self.sign(name))
            )
        return combined(parts)

    def _limits(self, name: str, i: int, level: float) -> Limits | None:
        """The interval of a metric at the i-th evaluation with confidence `level`; see `limits.widened`.

        The degrees of freedom are the number of prompts less one, of images if there is one prompt, as in
        `intervals`; where the images' own values are not known, the normal distribution is used.
        """
        value, limits = self.values[name][i], self.limits[name][i]
        if level == LEVEL or value is None or limits is None:
            return limits
        images = self.paired.get(self.steps[i], {}).get(name) or {}
        prompts = len({prompt for prompt, _ in images})
        degrees = (prompts if prompts > 1 else len(images)) - 1
        if degrees < 1:
            return widened(value, limits, normal_quantile(level) / normal_quantile())
        return widened(value, limits, student_t(degrees, level) / student_t(degrees))

    def _correlation(self, name: str, i: int, j: int) -> float:
        """Of a metric's values at two evaluations, 0 where the images' own are not known."""
        first, second = self.steps[i], self.steps[j]
        a, b = (self.paired.get(step, {}).get(name) for step in (first, second))
        if not a or not b:
            return 0.0
        fills = [s.imputed if (s := self.summaries[step].get(name)) else None for step in (first, second)]
        return correlation(a, b, *fills)


def value_in(summary: Summary | None) -> float | None:
    return None if summary is None else value_of(summary)


def scale(value: float, low: float, high: float) -> float:
    """Min-max: 0 at `low`, 1 at `high`, unclipped. With `low` above `high` it is inverted."""
    if low == high:
        raise ValueError(f"the ends of a range must differ, not {low} twice")
    return (value - low) / (high - low)


def range_of(
    run: Measured, name: str, given: Sequence[float] | None, ceiling: Summary | None
) -> tuple[float, float]:
    """The ends a metric is scaled between: the given ones, or the hull of the run and the ceiling."""
    if given is not None:
        return float(given[0]), float(given[1])
    known = [v for v in [*run.values[name], value_in(ceiling)] if v is not None]
    low, high = min(known), max(known)
    widest = max((limit[1] - limit[0] for limit in run.limits[name] if limit is not None), default=0.0)
    least = 2 * max(widest, NARROWEST)  # twice: the report gives these ends back, rounded
    spare = max(0.0, least - (high - low)) / 2
    return low - spare, high + spare


def score_at(run: Measured, i: int, weights: Mapping[str, float], ranges: Ranges) -> StepScore:
    """The weighted sum of the scaled metrics at the i-th evaluation."""
    by_metric: dict[str, float | None] = {}
    for name, (low, high) in ranges.items():
        value = run.values[name][i]
        good, bad = (high, low) if run.sign(name) > 0 else (low, high)
        by_metric[name] = None if value is None else scale(value, bad, good)
    score: float | None = 0.0
    parts: list[tuple[float, Limits]] | None = []
    for name, weight in weights.items():
        here, value, limit = by_metric[name], run.values[name][i], run.limits[name][i]
        width = ranges[name][1] - ranges[name][0]
        score = None if score is None or here is None else score + weight * here
        if parts is None or value is None or limit is None:
            parts = None
            continue
        around = limit[0] - value, limit[1] - value
        parts.append(scaled(0.0, around, weight / width * run.sign(name)))
    if score is None or parts is None:
        return StepScore(run.steps[i], score, None, by_metric)
    below, above = combined(parts)
    return StepScore(run.steps[i], score, (above - below) / 2, by_metric, score + below, score + above)


def best_index(scores: Sequence[float | None]) -> int | None:
    """Index of the greatest score, the earliest if several are equal; None if there is none."""
    known = [s for s in scores if s is not None]
    if not known:
        return None
    top = max(known)
    return next(i for i, s in enumerate(scores) if s is not None and s >= top - TIE)
