"""The one place that averages: means with standard errors and 95 % intervals.

**Prompts repeat.** Several images of one prompt are not independent, so residuals are summed by prompt first:
    se^2 = G / (G - 1) * sum_g (sum_{i in g} (x_i - mean))^2 / n^2
over G prompts (Liang & Zeger 1986, "Longitudinal data analysis using generalized linear models"; the
small-sample factor and Student's t with G - 1 degrees of freedom as in Cameron & Miller 2015, "A
practitioner's guide to cluster-robust inference"). With one image a prompt this is the usual s^2 / n.

**Pairs.** Where an image's value is itself a mean over the other images of the set (diversity, and every
leave-one-out ceiling), the mean U is a U-statistic of order two: each image counts in its own value and in
everyone else's, and s^2 / n is too small by a factor of about four. The jackknife over images (Arvesen 1969,
"Jackknifing U-statistics"; Efron & Stein 1981) gives, with d_i an image's mean over the others,
    se^2 = (n - 1) / n * sum_i (2 (d_i - U) / (n - 2))^2  =  (2 (n - 1) / (n - 2))^2 * s_d^2 / n,
in which s_d^2 / n is replaced by its clustered form where prompts repeat (the same linearisation, Hoeffding
1948).

Similarities to fixed photographs are conditional on those: the interval says how another draw of prompts and
noise would come out, not another set of photographs.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from functools import lru_cache
from itertools import compress

import numpy as np

from diffusion_lab.interfaces import Summary

LEVEL = 0.95


def summarise(
    values: Iterable[float],
    prompt_ids: Sequence[Hashable] | None = None,
    *,
    can_miss: bool = False,
    pairwise: bool = False,
) -> Summary:
    """Mean of one metric over the images of one evaluation.

    ``values``: one an image, NaN where undefined; a tensor, an array or floats. ``prompt_ids``: the prompt
    of each, None where every image is its own. ``can_miss``: report the penalised mean, in which an image
    without a value counts 0. ``pairwise``: each value is a mean over the other images (see above).
    No standard error and no interval for fewer than two values or two prompts (three images where pairwise).
    ValueError for infinite values and for lengths that differ.
    """
    x = np.array([float(value) for value in values], dtype=np.float64)
    ids = range(len(x)) if prompt_ids is None else prompt_ids
    if len(ids) != len(x):
        raise ValueError(f"{len(x)} values for {len(ids)} prompt ids")
    if np.isinf(x).any():
        raise ValueError("an image's value is infinite")
    there = ~np.isnan(x)
    n, missing = int(there.sum()), int((~there).sum())
    penalised = math.fsum(x[there]) / len(x) if can_miss and len(x) else None
    if n == 0:
        return Summary(
            mean=None, n=0, missing=missing, standard_error=None, low=None, high=None, penalised=penalised
        )
    mean = math.fsum(x[there]) / n
    error, groups = _standard_error(x[there] - mean, list(compress(ids, there)))
    if error is not None and pairwise:
        error = error * 2 * (n - 1) / (n - 2) if n > 2 else None
    if error is None:
        return Summary(mean, n, missing, None, None, None, penalised)
    reach = student_t(groups - 1) * error
    return Summary(mean, n, missing, error, mean - reach, mean + reach, penalised)


def _standard_error(
    residuals: np.ndarray[tuple[int], np.dtype[np.float64]], ids: list[Hashable]
) -> tuple[float | None, int]:
    """Clustered by id, and the number of clusters; None for fewer than two."""
    sums: dict[Hashable, list[float]] = {}
    for key, residual in zip(ids, residuals, strict=True):
        sums.setdefault(key, []).append(float(residual))
    groups = len(sums)
    if groups < 2:
        return None, groups
    squares = math.fsum(math.fsum(parts) ** 2 for parts in sums.values())
    return math.sqrt(groups / (groups - 1) * squares) / len(residuals), groups


@lru_cache(maxsize=256)
def student_t(degrees: int, level: float = LEVEL) -> float:
    """The t beyond which Student's distribution has (1 - level) / 2 on each side: 1.96 for many degrees of
    freedom.
    """
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.5 + level / 2))
