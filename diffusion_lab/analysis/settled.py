"""Whether the recommended stop is settled, so that a run may end before its last planned step.

The stop is settled when, for each of the newest k evaluations,

- its weighted score is below that of the recommended step by more than the paired interval of the difference
  (`Measured.gap`: the same prompts and noise at both steps), and
- the recommended step was the same when that evaluation was the newest one.

The recommended step is the best of the m evaluations before these, so its score is biased upwards. The level of
each interval is therefore raised to level^(1 / m) (Sidak 1967, "Rectangular confidence regions for the means of
multivariate normal distributions").

Without `metrics.ranges` the scores are scaled by the ranges of the run so far, which grow with it and change the
weighting. The second condition requires that this did not change the choice, and the run ends with the ranges
that the decision was made with.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from diffusion_lab.analysis.differences import Limits
from diffusion_lab.analysis.intervals import LEVEL
from diffusion_lab.analysis.scoring import MetricLike, Paired
from diffusion_lab.analysis.stop import ReferenceScores, Scored
from diffusion_lab.records import Summary

EVALUATIONS = 2  # default of k


@dataclass(frozen=True, slots=True)
class Settled:
    """The settled stop, and how far the newest evaluations are below it."""

    step: int
    gaps: Mapping[int, Limits]  # newest step -> limits of the recommended step's score less its own
    level: float  # of the limits, before the correction for the choice of the best
    among: int  # number of evaluations that the step is the best of

    @property
    def reason(self) -> str:
        """One sentence."""
        said = ", ".join(
            f"by {low:.3f} to {high:.3f} at step {step}" for step, (low, high) in self.gaps.items()
        )
        one = len(self.gaps) == 1
        newest = (
            "evaluation has a lower weighted score"
            if one
            else f"{len(self.gaps)} evaluations have lower weighted scores"
        )
        choice = f", corrected for the choice among {self.among} steps" if self.among > 1 else ""
        return (
            f"The recommended stop, step {self.step}, is settled: the newest {newest} by more than the paired "
            f"{100 * self.level:g} % interval{choice} ({said})."
        )


def settled(
    summaries_by_step: Mapping[int, Mapping[str, Summary]],
    weights: Mapping[str, float],
    ranges: Mapping[str, Sequence[float]],
    metrics: Iterable[MetricLike],
    *,
    evaluations: int = EVALUATIONS,
    level: float = LEVEL,
    references: ReferenceScores | None = None,
    paired: Paired | None = None,
) -> Settled | None:
    """The settled stop, or None if it is not settled yet; see the module docstring.

    `evaluations`: k, at least 1. `level`: of the paired intervals, between 0 and 1. The others as in
    `stop.recommend`. None also if a difference has no interval (one prompt, or a weighted metric without one).
    """
    known = list(metrics)
    steps = sorted(summaries_by_step)

    def scored(count: int) -> Scored | None:
        so_far = {step: summaries_by_step[step] for step in steps[:count]}
        return Scored.of(so_far, weights, ranges, known, references=references, paired=paired)

    rule = scored(len(steps))
    if rule is None or rule.best >= len(steps) - evaluations:
        return None
    newest = range(len(steps) - evaluations, len(steps))
    corrected = level ** (1 / newest[0])
    gaps = {i: rule.run.gap(i, rule.best, rule.weights, rule.ranges, corrected) for i in newest}
    below = {steps[i]: gap for i, gap in gaps.items() if gap is not None and gap[0] > 0}
    if len(below) < evaluations:
        return None
    if any((then := scored(i + 1)) is None or then.best != rule.best for i in newest[:-1]):
        return None
    return Settled(steps[rule.best], below, level, newest[0])
