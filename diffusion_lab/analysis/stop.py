"""When to stop: the weighted sum of the scaled metrics is best at the recommended evaluation.

Pure functions of the summaries of a run. The page of `report.py` computes the same rule in the browser,
with the same ranges, when the sliders are moved.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from diffusion_lab.analysis.differences import Limits, Values, combined, correlation, difference, scaled
from diffusion_lab.analysis.limits import half_width_of as half_width_of
from diffusion_lab.analysis.limits import lacking, limits_of, missing_notes
from diffusion_lab.analysis.limits import value_of as value_of
from diffusion_lab.analysis.reason import Change, Moves, explain
from diffusion_lab.records import Summary, UserError
from diffusion_lab.values.bounds import NARROWEST

DEFAULT_WEIGHTED = ("similarity", "aesthetics", "diversity")
FALLBACK = ("similarity", "clip_image")  # if there is no face anywhere, the second replaces the first
STEADY = 0.01  # values of a metric that are closer than this are reported as equal
TIE = 1e-9  # scores closer than this are equal, so that rounding does not decide

# Min-max ranges of the original study: full-size encoders (VGGFace2 cosine, AVA score / 10, CLIP distance).
STUDY_RANGES: Mapping[str, tuple[float, float]] = {
    "similarity": (0.45, 0.85),
    "aesthetics": (0.3, 0.7),
    "diversity": (0.5, 0.75),
}

Paired = Mapping[int, Mapping[str, Values]]  # step -> metric -> value of each image
References = Mapping[str, Mapping[str, Summary | None]]  # metric -> "ceiling", "impostor"


class MetricInfo(Protocol):
    """What the rule needs to know about a metric; every `interfaces.Metric` provides it."""

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
class Recommendation:
    """The evaluation at which to stop, and everything it was computed from."""

    step: int
    reason: str
    weights: Mapping[str, float]  # as used; they sum to 1
    ranges: Mapping[str, tuple[float, float]]  # as used, of every metric with values, (low, high)
    scores: tuple[StepScore, ...]  # in order of steps
    notes: tuple[str, ...] = field(default=())  # what was assumed or replaced; also part of the reason


def scale(value: float, low: float, high: float) -> float:
    """Min-max: 0 at `low`, 1 at `high`, unclipped. With `low` above `high` it is inverted."""
    if low == high:
        raise ValueError(f"the ends of a range must differ, not {low} twice")
    return (value - low) / (high - low)


def check(weights: Mapping[str, float], ranges: Mapping[str, Sequence[float]], names: Iterable[str]) -> None:
    """Checks, before a run begins, that `recommend` can use the weights and ranges at its end.

    Raises:
        UserError: naming `metrics.weights` or `metrics.ranges`, for an unknown metric, a negative or
            non-finite weight, weights that are all 0, or a range that is not [low, high] with low < high.
    """
    known = sorted(names)
    for name, weight in weights.items():
        if name not in known:
            raise UserError(
                f"metrics.weights: there is no metric {name!r} here; choose from {', '.join(known)}"
            )
        if not (math.isfinite(weight) and weight >= 0):
            raise UserError(f"metrics.weights.{name}: a weight must be 0 or more, not {weight}")
    if weights and not any(weights.values()):
        raise UserError("metrics.weights: all are 0, so no step can be chosen; set at least one above 0")
    for name, ends in ranges.items():
        if len(ends) != 2 or not all(map(math.isfinite, ends)) or ends[0] >= ends[1]:
            raise UserError(f"metrics.ranges.{name}: needs [low, high] with low < high, not {list(ends)}")
        if ends[1] - ends[0] < NARROWEST:  # else scores could overflow when squared
            raise UserError(f"metrics.ranges.{name}={list(ends)}: the ends differ by less than {NARROWEST:g}")


def recommend(
    summaries_by_step: Mapping[int, Mapping[str, Summary]],
    weights: Mapping[str, float],
    ranges: Mapping[str, Sequence[float]],
    metrics: Iterable[MetricInfo],
    *,
    references: References | None = None,
    n_images: int | None = None,
    class_noun: str | None = None,
    paired: Paired | None = None,
) -> Recommendation | None:
    """The evaluation with the greatest weighted sum of scaled metrics; the earliest if several are equal.

    Args:
        summaries_by_step: of every evaluation, in any order; step 0 is the base model.
        weights: by metric, 0 or more; their sum does not matter. Empty: equal over similarity, aesthetics and
            diversity.
        ranges: [low, high] per metric for scaling. A metric without a range is scaled to the smallest range that
            contains its floor (step 0), its ceiling and the run, at least twice as wide as its interval, so
            that noise is not mistaken for change.
        references: by metric, with the score of the reference photos under "ceiling".
        n_images, class_noun: for the rules of thumb in the reason.
        paired: every image's values at every step, so that the reason compares the same images; without them, steps
            are compared as if their images were independent. The recommended step does not depend on it.

    Returns:
        None if there is no evaluation, or no weighted metric has a value.

    Raises:
        UserError: see `check`.
    """
    infos = {metric.name: metric for metric in metrics}
    check(weights, ranges, infos)
    steps = sorted(summaries_by_step)
    values = {m: [_value(summaries_by_step[s].get(m)) for s in steps] for m in infos}
    limits = {m: [_limits(summaries_by_step[s].get(m)) for s in steps] for m in infos}
    seen = {m for m in infos if any(_defined(summaries_by_step[s].get(m)) for s in steps)}
    used, notes = settle_weights(weights, list(infos), seen)
    if not used:
        return None
    notes += missing_notes(
        [summaries_by_step[k][m] for k in steps for m in used if m in summaries_by_step[k]]
    )
    ends = {
        m: _ends(values[m], limits[m], ranges.get(m), (references or {}).get(m, {}).get("ceiling"))
        for m in infos
        if m in seen
    }
    scores = tuple(_score(i, step, used, ends, infos, values, limits) for i, step in enumerate(steps))
    best = best_index([s.score for s in scores])
    if best is None:
        return None

    def change(name: str, i: int, j: int) -> Change:
        """The change of a metric from the i-th to the j-th evaluation."""
        a, b = values[name][i], values[name][j]
        if a is None or b is None:
            return Change(a, b, None)
        between = [v for v in values[name][i + 1 : j] if v is not None]
        steady = all(abs(v - b) < STEADY for v in between)
        x, y = limits[name][i], limits[name][j]
        if x is None or y is None:
            return Change(a, b, None, steady)
        r = _correlation(paired, summaries_by_step, name, steps[i], steps[j])
        return Change(a, b, difference(a, x, b, y, r), steady)

    def gap(i: int) -> Limits | None:
        """95 % limits of the recommended score minus the i-th."""
        parts = []
        for name, weight in used.items():
            found = change(name, i, best)
            if found.limits is None or found.start is None or found.end is None:
                return None
            low, high = ends[name]
            factor = weight / (high - low) * (1 if infos[name].higher_is_better else -1)
            parts.append(scaled(found.end - found.start, found.limits, factor))
        return combined(parts)

    at_best = [summaries_by_step[steps[best]][m] for m in used if m in summaries_by_step[steps[best]]]
    moves = Moves(
        steps=steps,
        best=best,
        scores=[s.score for s in scores],
        before={m: change(m, 0, best) for m in used},
        after={m: change(m, best, len(steps) - 1) for m in used},
        gaps={i: gap(i) for i in (best - 1, best + 1) if 0 <= i < len(steps)},
        without_interval=lacking(used, [summaries_by_step[k] for k in steps[max(0, best - 1) : best + 2]]),
        images=max((s.n + s.missing for s in at_best), default=0),
        within_one_prompt=any(s.within_one_prompt for s in at_best),
        n_images=n_images,
        class_noun=class_noun,
        notes=tuple(notes),
    )
    return Recommendation(steps[best], explain(moves), used, ends, scores, tuple(notes))


def contenders(
    summaries_by_step: Mapping[int, Mapping[str, Summary]],
    weights: Mapping[str, float],
    ranges: Mapping[str, Sequence[float]],
    metrics: Iterable[MetricInfo],
) -> set[int]:
    """Steps that may become the recommended one after further evaluations.

    With fixed ranges a step's score does not change, so only the best one can. A range that is derived from the
    run grows with it and changes the weighting: then every step can that no other step beats in all metrics.
    """
    infos = {metric.name: metric for metric in metrics}
    found = recommend(summaries_by_step, weights, ranges, infos.values())
    if found is None:
        return set(summaries_by_step)
    used = set(found.weights)
    wanted = {m for m, w in weights.items() if w > 0} or {m for m in DEFAULT_WEIGHTED if m in infos} or used
    if used == wanted and used <= set(ranges):
        return {found.step}
    used |= wanted | {m for m in FALLBACK if m in infos}

    def row(step: int) -> list[float]:
        values = {m: _value(summaries_by_step[step].get(m)) for m in used}
        signs = {m: 1 if infos[m].higher_is_better else -1 for m in used}
        return [-math.inf if (v := values[m]) is None else signs[m] * v for m in sorted(used)]

    rows = {step: row(step) for step in summaries_by_step}

    def beaten(step: int) -> bool:
        return any(
            all(b >= a for a, b in pairs)
            # For equal scores the earliest step is chosen, and the metrics in use are not known yet: a later step has to
            # be better in each. A step without a value has no score.
            and (other < step or all(b > a for a, b in pairs if a > -math.inf))
            for other in rows
            if other != step
            for pairs in [list(zip(rows[step], rows[other], strict=True))]
        )

    return {step for step in rows if not beaten(step)} | {found.step}


def settle_weights(
    weights: Mapping[str, float], names: Sequence[str], seen: set[str]
) -> tuple[dict[str, float], list[str]]:
    """The weights in use, summing to 1, and notes on assumptions and replacements.

    `names` are the run's metrics, `seen` those with a value at any step. A weight of 0 is ignored.
    """
    notes: list[str] = []
    wanted = {m: w for m, w in weights.items() if w > 0}
    if not weights:
        wanted = {m: 1.0 for m in DEFAULT_WEIGHTED if m in names} or {m: 1.0 for m in names if m in seen}
    face, image = FALLBACK
    if face in wanted and face not in seen and image in seen:
        wanted[image] = wanted.get(image, 0.0) + wanted.pop(face)
        notes.append(
            "Similarity of faces has no value at all (no face in the images or none in the reference photos), so"
            " the similarity of whole images (clip_image) takes its place."
        )
    for name in [m for m in wanted if m not in seen]:
        del wanted[name]
        notes.append(f"{name} has no value at all and is left out.")
    if not weights and wanted:
        notes.insert(0, "No weights were set, so they are equal.")
    total = sum(wanted.values())
    return {m: wanted[m] / total for m in names if m in wanted}, notes


def best_index(scores: Sequence[float | None]) -> int | None:
    """Index of the greatest score, the earliest if several are equal; None if there is none."""
    known = [s for s in scores if s is not None]
    if not known:
        return None
    top = max(known)
    return next(i for i, s in enumerate(scores) if s is not None and s >= top - TIE)


def _value(summary: Summary | None) -> float | None:
    return None if summary is None else value_of(summary)


def _limits(summary: Summary | None) -> Limits | None:
    return None if summary is None else limits_of(summary)


def _correlation(
    paired: Paired | None,
    summaries: Mapping[int, Mapping[str, Summary]],
    name: str,
    first: int,
    second: int,
) -> float:
    """Correlation of a metric's values at two steps; 0 if the values of the images are unknown."""
    if paired is None:
        return 0.0
    a, b = (paired.get(step, {}).get(name) for step in (first, second))
    if not a or not b:
        return 0.0
    fills = [s.imputed if (s := summaries[step].get(name)) else None for step in (first, second)]
    return correlation(a, b, *fills)


def _defined(summary: Summary | None) -> bool:
    return summary is not None and summary.mean is not None


def _ends(
    values: Sequence[float | None],
    limits: Sequence[Limits | None],
    given: Sequence[float] | None,
    ceiling: Summary | None,
) -> tuple[float, float]:
    if given is not None:
        return float(given[0]), float(given[1])
    known = [v for v in [*values, _value(ceiling)] if v is not None]
    low, high = min(known), max(known)
    widest = max((limit[1] - limit[0] for limit in limits if limit is not None), default=0.0)
    least = 2 * max(widest, NARROWEST)  # twice: the report returns these ends rounded
    spare = max(0.0, least - (high - low)) / 2
    return low - spare, high + spare


def _score(
    i: int,
    step: int,
    weights: Mapping[str, float],
    ends: Mapping[str, tuple[float, float]],
    infos: Mapping[str, MetricInfo],
    values: Mapping[str, Sequence[float | None]],
    limits: Mapping[str, Sequence[Limits | None]],
) -> StepScore:
    by_metric: dict[str, float | None] = {}
    for name, (low, high) in ends.items():
        value = values[name][i]
        good, bad = (high, low) if infos[name].higher_is_better else (low, high)
        by_metric[name] = None if value is None else scale(value, bad, good)
    score: float | None = 0.0
    parts: list[tuple[float, Limits]] | None = []
    for name, weight in weights.items():
        here, value, limit = by_metric[name], values[name][i], limits[name][i]
        width = ends[name][1] - ends[name][0]
        score = None if score is None or here is None else score + weight * here
        if parts is None or value is None or limit is None:
            parts = None
            continue
        around = limit[0] - value, limit[1] - value
        parts.append(scaled(0.0, around, weight / width * (1 if infos[name].higher_is_better else -1)))
    if score is None or parts is None:
        return StepScore(step, score, None, by_metric)
    below, above = combined(parts)
    return StepScore(step, score, (above - below) / 2, by_metric, score + below, score + above)
