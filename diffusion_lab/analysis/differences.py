"""Intervals of differences, from the intervals of two estimates and their correlation.

With estimates a and b, their limits and their correlation r, the limits of b - a are (MOVER: Zou 2007, "Toward using
confidence intervals to compare correlations", equation 15; for two independent shares it is Newcombe's tenth method,
1998, for two paired ones his method for paired proportions)

    low  = b - a - sqrt((b - low_b)^2 + (high_a - a)^2 - 2 r (b - low_b) (high_a - a))
    high = b - a + sqrt((high_b - b)^2 + (a - low_a)^2 - 2 r (high_b - b) (a - low_a))

For two Student intervals over the same images this is exactly the paired interval. For fractions its width is not zero
if all values are equal.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence

import numpy as np

from diffusion_lab.records import ScoreRow

Limits = tuple[float, float]
Values = Mapping[tuple[Hashable, int], float | None]
"""Of one metric at one step: by (prompt id, index) of the image, None if it has none."""
FEWEST = 5  # prompts: with fewer, the correlation could narrow an interval by chance


def difference(a: float, limits_a: Limits, b: float, limits_b: Limits, correlation: float = 0.0) -> Limits:
    """95 % limits of b - a."""
    below = _apart(b - limits_b[0], limits_a[1] - a, correlation)
    above = _apart(limits_b[1] - b, a - limits_a[0], correlation)
    return b - a - below, b - a + above


def _apart(first: float, second: float, correlation: float) -> float:
    return math.sqrt(max(0.0, first**2 + second**2 - 2 * correlation * first * second))


def correlation(a: Values, b: Values, fill_a: float | None = None, fill_b: float | None = None) -> float:
    """Correlation of two means over the same images (same prompts, same noise), between -1 and 1.

    Clustered by prompt, or by image if there is a single prompt. ``fill_a``, ``fill_b``: the value of an image without
    one; None excludes it. With fewer than `FEWEST` units only a negative correlation is used; 0 if nothing varies.
    """
    rows = {}
    for key in sorted(a.keys() & b.keys(), key=repr):
        x, y = a[key], b[key]
        x, y = fill_a if x is None else x, fill_b if y is None else y
        if x is not None and y is not None:
            rows[key] = (x, y)
    if len(rows) < 2:
        return 0.0
    by_image = len({prompt for prompt, _ in rows}) == 1
    residuals = np.array(list(rows.values())) - np.mean(list(rows.values()), axis=0)
    sums: dict[Hashable, np.ndarray[tuple[int], np.dtype[np.float64]]] = {}
    for key, residual in zip(rows, residuals, strict=True):
        unit = key if by_image else key[0]
        sums[unit] = sums.get(unit, 0.0) + residual
    first, second = np.array(list(sums.values())).T
    scale = math.sqrt(float(first @ first) * float(second @ second))
    if scale <= 1e-18:
        return 0.0
    r = max(-1.0, min(1.0, float(first @ second) / scale))
    return r if len(sums) >= FEWEST else min(0.0, r)


def values_by_step(
    rows: Iterable[ScoreRow],
) -> dict[int, dict[str, dict[tuple[Hashable, int], float | None]]]:
    """Step -> metric -> each image's value, of the rows of scores.parquet.

    Images of prompts without the identifier have a row without a value in metrics that do not use them. These rows are
    excluded, because the values are not missing.
    """
    found: dict[int, dict[str, dict[tuple[Hashable, int], float | None]]] = {}
    for row in rows:
        if row.value is not None or row.slots.get("identifier") != "without":
            found.setdefault(row.step, {}).setdefault(row.metric, {})[row.prompt_id, row.index] = row.value
    return found


def combined(parts: Sequence[tuple[float, Limits]]) -> Limits:
    """95 % limits of a sum of estimates that are assumed to be independent."""
    total = math.fsum(value for value, _ in parts)
    below = math.sqrt(math.fsum((value - low) ** 2 for value, (low, _) in parts))
    above = math.sqrt(math.fsum((high - value) ** 2 for value, (_, high) in parts))
    return total - below, total + above


def scaled(value: float, limits: Limits, factor: float) -> tuple[float, Limits]:
    """An estimate and its limits times a factor, which may be negative."""
    ends = sorted((limits[0] * factor, limits[1] * factor))
    return value * factor, (ends[0], ends[1])
