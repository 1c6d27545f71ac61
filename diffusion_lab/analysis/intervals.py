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

**Shares.** Where each value is 0 or 1 (face_rate) the interval is Wilson's (1927), which stays within 0 and 1 and does not
shrink to nothing when all are alike: the p0 with (p - p0)^2 = t^2 p0 (1 - p0) / n, n the effective sample size
p (1 - p) / se^2 (Korn & Graubard 1998, "Confidence intervals for proportions with small expected number of positive
counts estimated from survey data"), or the number of prompts where se = 0.

**Sets.** A number that only the whole set has (KID, Vendi, FID) gets its standard error from
- the bootstrap over prompts (Efron 1979), with weights, so that an image drawn twice never meets itself;
- its influence function, the limit of the bootstrap (Jaeckel 1972, "The infinitesimal jackknife"), where that
  has a closed form;
- the delete-a-group jackknife over prompts (Quenouille 1956; Shao & Tu 1995, section 5.1) elsewhere.
All three are deterministic, and the interval is value +- t * se with Student's t.

Similarities to fixed photographs are conditional on those: the interval says how another draw of prompts and
noise would come out, not another set of photographs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
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
    share: bool = False,
) -> Summary:
    """Mean of one metric over the images of one evaluation.

    ``values``: one an image, NaN where undefined; a tensor, an array or floats. ``prompt_ids``: the prompt
    of each, None where every image is its own. ``can_miss``: report the penalised mean, in which an image
    without a value counts 0. ``pairwise``: each value is a mean over the other images (see above). ``share``: each
    value is 0 or 1.
    No standard error and no interval for fewer than two values or two prompts (three images where pairwise).
    ValueError for infinite values, for lengths that differ, and for a share of anything but 0 and 1.
    """
    x = np.array([float(value) for value in values], dtype=np.float64)
    ids = range(len(x)) if prompt_ids is None else prompt_ids
    if len(ids) != len(x):
        raise ValueError(f"{len(x)} values for {len(ids)} prompt ids")
    if np.isinf(x).any():
        raise ValueError("an image's value is infinite")
    there = ~np.isnan(x)
    if share and not np.isin(x[there], (0.0, 1.0)).all():
        raise ValueError("a share is of values that are 0 or 1")
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
    if share:
        low, high = _wilson(mean, error, groups)
        return Summary(mean, n, missing, error, low, high, penalised)
    reach = student_t(groups - 1) * error
    return Summary(mean, n, missing, error, mean - reach, mean + reach, penalised)


def _wilson(p: float, error: float, groups: int) -> tuple[float, float]:
    n = p * (1 - p) / error**2 if error > 0 else float(groups)
    t = student_t(groups - 1)
    middle = (p + t * t / (2 * n)) / (1 + t * t / n)
    reach = t / (1 + t * t / n) * math.sqrt(p * (1 - p) / n + t * t / (4 * n * n))
    return min(p, max(0.0, middle - reach)), max(p, min(1.0, middle + reach))


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


def undefined(why: str, missing: int = 0) -> Summary:
    """No value, and in words why."""
    return Summary(None, 0, missing, None, None, None, note=why)


def of_set(
    value: float, n: int, error: float | None, groups: int, *, missing: int = 0, note: str | None = None
) -> Summary:
    """The summary of a set's own number: value +- t * ``error`` with ``groups`` - 1 degrees of freedom."""
    if not math.isfinite(value):
        raise ValueError("a set's value is not finite")
    if error is None or groups < 2:
        return Summary(value, n, missing, None, None, None, note=note)
    reach = student_t(groups - 1) * error
    return Summary(value, n, missing, error, value - reach, value + reach, note=note)


def influence_error(
    influences: Iterable[float], prompt_ids: Sequence[Hashable] | None = None
) -> tuple[float | None, int]:
    """Standard error of a set's number and its clusters, from each image's influence: value ~ mean of them.

    ``influences``: n derivatives of the number by each image's weight, times n; their mean is taken off.
    """
    x = np.array([float(value) for value in influences], dtype=np.float64)
    ids = range(len(x)) if prompt_ids is None else prompt_ids
    return _standard_error(x - x.mean(), list(ids)) if len(x) else (None, 0)


def bootstrap_weights(
    prompt_ids: Sequence[Hashable], replicates: int = 400, seed: int = 0
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """[replicates, n]: how often each image is in each bootstrap sample of prompts drawn with replacement."""
    codes = group_codes(prompt_ids)
    groups = int(codes.max()) + 1
    generator = np.random.default_rng([seed, 0xB007])
    counts = generator.multinomial(groups, np.full(groups, 1 / groups), size=replicates)
    return np.asarray(counts[:, codes], dtype=np.float64)


def group_codes(prompt_ids: Sequence[Hashable]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Each image's prompt as a number, in the order of first appearance."""
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(key, len(seen)) for key in prompt_ids], dtype=np.int64)


def jackknife_error(
    statistic: Callable[[np.ndarray[tuple[int], np.dtype[np.int64]]], float],
    prompt_ids: Sequence[Hashable],
    most_groups: int = 20,
) -> tuple[float | None, int]:
    """Standard error by leaving out a group of prompts at a time, and the number of groups.

    ``statistic``: of the rows with these numbers. Prompts are dealt to at most ``most_groups`` groups in turn:
        se^2 = (g - 1) / g * sum_j (theta_(j) - mean theta_(.))^2
    """
    codes = group_codes(prompt_ids)
    groups = min(most_groups, int(codes.max()) + 1)
    if groups < 3:
        return None, groups
    dealt = codes % groups
    left_out = [statistic(np.flatnonzero(dealt != group)) for group in range(groups)]
    mean = math.fsum(left_out) / groups
    squares = math.fsum((value - mean) ** 2 for value in left_out)
    return math.sqrt((groups - 1) / groups * squares), groups


@lru_cache(maxsize=256)
def student_t(degrees: int, level: float = LEVEL) -> float:
    """The t beyond which Student's distribution has (1 - level) / 2 on each side: 1.96 for many degrees of
    freedom.
    """
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.5 + level / 2))
