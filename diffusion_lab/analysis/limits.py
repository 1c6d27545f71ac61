"""The number of a summary that the stop rule and the pages use, and its 95 % interval."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from diffusion_lab.analysis.differences import Limits
from diffusion_lab.records import Summary


def value_of(summary: Summary) -> float | None:
    """The value used by the stop rule: the mean that counts images without a face too, if there is one."""
    return summary.mean if summary.penalised is None else summary.penalised


def limits_of(summary: Summary) -> Limits | None:
    """The 95 % interval of `value_of`; None if it cannot be estimated."""
    value, s = value_of(summary), summary.standard_error
    if summary.penalised_low is not None and summary.penalised_high is not None:
        return summary.penalised_low, summary.penalised_high
    if value is None or (summary.penalised is not None and summary.imputed is not None):
        return None
    if summary.penalised is not None and summary.missing:
        half = _half_of_an_earlier_record(summary)
        return None if half is None else (value - half, value + half)
    if summary.low is not None and summary.high is not None:
        return summary.low, summary.high
    return (value - 1.96 * s, value + 1.96 * s) if s else None


def widened(value: float, limits: Limits, factor: float) -> Limits:
    """Limits of another confidence level: both sides of the interval times `factor`, a ratio of quantiles.

    Exact for Student's and normal intervals. Wilson's interval of a fraction is not proportional to the
    quantile: for fractions from 0.1 to 0.9 of 100 images and levels from 90 to 99 %, its sides differ from the
    exact ones by less than 10 %.
    """
    return value - factor * (value - limits[0]), value + factor * (limits[1] - value)


def _half_of_an_earlier_record(summary: Summary) -> float | None:
    """The half interval of a penalised mean that counts missing faces as 0 and has no interval of its own.

    From mean, n and standard error s the sum of squares is (n - 1) n s^2 + n mean^2, and so the variance over all
    n + missing images follows.
    """
    s, mean = summary.standard_error, summary.mean
    if s is None or mean is None or summary.penalised is None:
        return None
    t = 1.96  # or Student's t, as in the summary
    if s > 0 and summary.low is not None and summary.high is not None:
        t = (summary.high - summary.low) / 2 / s
    total = summary.n + summary.missing
    squares = (summary.n - 1) * summary.n * s**2 + summary.n * mean**2
    return t * math.sqrt(max(0.0, squares / total - summary.penalised**2) / (total - 1))


def lacking(names: Iterable[str], evaluations: Sequence[Mapping[str, Summary]]) -> dict[str, str]:
    """Metrics with a value but no interval in one of these evaluations, and why: "" if the record has no reason."""
    found: dict[str, str] = {}
    for name in names:
        for at in evaluations:
            s = at.get(name)
            if s is not None and value_of(s) is not None and limits_of(s) is None:
                found[name] = (s.note or "").partition("no interval: ")[2].partition(";")[0]
    return found


def missing_notes(summaries: Sequence[Summary]) -> list[str]:
    """The value of images without a face, if there are any."""
    counted = [s for s in summaries if s.penalised is not None and s.missing]
    if not counted:
        return []
    lowest = min(s.imputed or 0.0 for s in counted)
    value = (
        "0"
        if lowest == 0
        else f"{lowest:.2f}"
        if len({s.imputed for s in counted}) == 1
        else f"{lowest:.2f} or more"
    )
    return [f"Images without a face count as {value} in similarity."]
