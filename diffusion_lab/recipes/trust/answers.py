"""Answers of the study: statistics by person, averaged with an interval, and the curves behind them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from diffusion_lab.analysis.intervals import summarise

RANGES = (  # the first words of a statistic, and its possible values
    ("rank correlation", (-1.0, 1.0)),
    ("AUC", (0.0, 1.0)),
    ("share of faces", (0.0, 1.0)),
    ("share in which", (0.0, 1.0)),
)


class Point(NamedTuple):
    """One point of a curve: a mean over people or sets with its 95 % interval (None for fewer than two)."""

    at: str | float
    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Answer:
    """One metric's answer to a question: a mean with its 95 % interval, None if all values are equal."""

    metric: str
    question: str
    statistic: str
    mean: float
    low: float | None
    high: float | None
    n: int  # people or sets
    curve: tuple[Point, ...] = ()
    axes: tuple[str, str] = ("", "")  # what `curve` shows: `at`, and the mean


def answer(
    metric: str,
    question: str,
    statistic: str,
    values: Sequence[float],
    curve: Sequence[Point] = (),
    axes: tuple[str, str] = ("", ""),
) -> Answer:
    """Average ``values``, one per person; NaN values are left out. ValueError for fewer than two."""
    bounds = next((ends for words, ends in RANGES if statistic.startswith(words)), (None, None))
    found = summarise(values, bounds=bounds)
    if found.mean is None or found.n < 2:
        raise ValueError(f"{metric}: {question}: {found.n} values are too few")
    return Answer(metric, question, statistic, found.mean, found.low, found.high, found.n, tuple(curve), axes)


def curve_of(at: Sequence[Hashable], values: Sequence[Sequence[float]]) -> tuple[Point, ...]:
    """A point for each of ``at``; ``values``: one value per point for each person or set, NaN if undefined.

    A point without any value is left out.
    """
    points = []
    for label, column in zip(at, np.array(values, dtype=np.float64).T, strict=True):
        found = summarise(column)
        if found.mean is not None:
            where = float(label) if isinstance(label, int | float) else str(label)
            points.append(Point(where, found.mean, found.low, found.high))
    return tuple(points)


def spearman(x: Sequence[float] | NDArray[np.float64], y: Sequence[float] | NDArray[np.float64]) -> float:
    """Rank correlation of the pairs that are finite."""
    from scipy.stats import spearmanr

    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    there = np.isfinite(a) & np.isfinite(b)
    return float(spearmanr(a[there], b[there]).statistic)


def table(answers: Sequence[Answer]) -> str:
    """The answers as a Markdown table."""
    rows = ["| metric | question | statistic | mean | 95 % interval | n |", "|---|---|---|---|---|---|"]
    rows += [
        f"| `{a.metric}` | {a.question} | {a.statistic} | {a.mean:.3f} | {interval(a)} | {a.n} |"
        for a in answers
    ]
    return "\n".join(rows) + "\n"


def interval(found: Answer) -> str:
    """The 95 % interval in words; people who are all alike say nothing about others."""
    return "all alike" if found.low is None or found.high is None else f"{found.low:.3f} to {found.high:.3f}"
