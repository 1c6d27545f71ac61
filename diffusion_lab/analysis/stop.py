"""When to stop: the weighted sum of the scaled metrics is best at the recommended evaluation.

Pure functions of the summaries of a run. The page of `report.py` computes the same rule in the browser,
with the same ranges, when the sliders are moved.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from diffusion_lab.analysis.limits import lacking, missing_notes
from diffusion_lab.analysis.reason import ReasonInputs, reason_text
from diffusion_lab.analysis.scoring import (
    Measured,
    MetricLike,
    Paired,
    StepScore,
    best_index,
    range_of,
    score_at,
    value_in,
)
from diffusion_lab.records import Summary, UserError
from diffusion_lab.values.bounds import NARROWEST

DEFAULT_WEIGHTED = ("similarity", "aesthetics", "diversity")
FALLBACK = ("similarity", "clip_image")  # if there is no face anywhere, the second replaces the first

# Min-max ranges of the original study: full-size encoders (VGGFace2 cosine, AVA score / 10, CLIP distance).
STUDY_RANGES: Mapping[str, tuple[float, float]] = {
    "similarity": (0.45, 0.85),
    "aesthetics": (0.3, 0.7),
    "diversity": (0.5, 0.75),
}

ReferenceScores = Mapping[str, Mapping[str, Summary | None]]  # metric -> "ceiling", "impostor"


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The evaluation at which to stop, and everything it was computed from."""

    step: int
    reason: str
    weights: Mapping[str, float]  # as used; they sum to 1
    ranges: Mapping[str, tuple[float, float]]  # as used, of every metric with values, (low, high)
    scores: tuple[StepScore, ...]  # in order of steps
    notes: tuple[str, ...] = field(default=())  # what was assumed or replaced; also part of the reason


@dataclass(frozen=True, slots=True)
class Scored:
    """A run's evaluations with their weighted scores, and the position of the best one."""

    run: Measured
    weights: Mapping[str, float]  # as used; they sum to 1
    ranges: Mapping[str, tuple[float, float]]  # as used, of every metric with values
    scores: tuple[StepScore, ...]  # in order of steps
    best: int
    notes: tuple[str, ...]  # on the weights

    @classmethod
    def of(
        cls,
        summaries_by_step: Mapping[int, Mapping[str, Summary]],
        weights: Mapping[str, float],
        ranges: Mapping[str, Sequence[float]],
        metrics: Iterable[MetricLike],
        *,
        references: ReferenceScores | None = None,
        paired: Paired | None = None,
    ) -> Scored | None:
        """None if no evaluation has a score. Arguments and UserError as in `recommend`."""
        infos = {metric.name: metric for metric in metrics}
        check(weights, ranges, infos)
        run = Measured.of(summaries_by_step, infos, paired or {})
        used, notes = settle_weights(weights, list(infos), set(run.known))
        if not used:
            return None
        ends = {
            m: range_of(run, m, ranges.get(m), (references or {}).get(m, {}).get("ceiling"))
            for m in run.known
        }
        scores = tuple(score_at(run, i, used, ends) for i in range(len(run.steps)))
        best = best_index([s.score for s in scores])
        return None if best is None else cls(run, used, ends, scores, best, tuple(notes))


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
    metrics: Iterable[MetricLike],
    *,
    references: ReferenceScores | None = None,
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
    rule = Scored.of(summaries_by_step, weights, ranges, metrics, references=references, paired=paired)
    if rule is None:
        return None
    run, used, ends, scores, best = rule.run, rule.weights, rule.ranges, rule.scores, rule.best
    summaries = [summaries_by_step[step] for step in run.steps]
    notes = [
        *rule.notes,
        *missing_notes([evaluation[m] for evaluation in summaries for m in used if m in evaluation]),
    ]
    at_best = [summaries[best][m] for m in used if m in summaries[best]]
    inputs = ReasonInputs(
        steps=run.steps,
        best=best,
        scores=[s.score for s in scores],
        before={m: run.change(m, 0, best) for m in used},
        after={m: run.change(m, best, len(run.steps) - 1) for m in used},
        gaps={i: run.gap(i, best, used, ends) for i in (best - 1, best + 1) if 0 <= i < len(run.steps)},
        without_interval=lacking(used, summaries[max(0, best - 1) : best + 2]),
        images=max((s.n + s.missing for s in at_best), default=0),
        within_one_prompt=any(s.within_one_prompt for s in at_best),
        n_images=n_images,
        class_noun=class_noun,
        notes=tuple(notes),
    )
    return Recommendation(run.steps[best], reason_text(inputs), used, ends, scores, tuple(notes))


def contenders(
    summaries_by_step: Mapping[int, Mapping[str, Summary]],
    weights: Mapping[str, float],
    ranges: Mapping[str, Sequence[float]],
    metrics: Iterable[MetricLike],
) -> set[int]:
    """Steps that may become the recommended one after further evaluations.

    With fixed ranges a step's score does not change, so only the best one can. A range that is derived from the
    run grows with it and changes the weighting: then every step can that no other step beats in all metrics.
    """
    infos = {metric.name: metric for metric in metrics}
    recommendation = recommend(summaries_by_step, weights, ranges, infos.values())
    if recommendation is None:
        return set(summaries_by_step)
    used = set(recommendation.weights)
    wanted = {m for m, w in weights.items() if w > 0} or {m for m in DEFAULT_WEIGHTED if m in infos} or used
    if used == wanted and used <= set(ranges):
        return {recommendation.step}
    used |= wanted | {m for m in FALLBACK if m in infos}

    def row(step: int) -> list[float]:
        values = {m: value_in(summaries_by_step[step].get(m)) for m in used}
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

    return {step for step in rows if not beaten(step)} | {recommendation.step}


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
