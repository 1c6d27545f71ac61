"""Errors of numbers that compare images with each other: means over pairs, and numbers of whole sets.

**Pairs.** A mean U over all pairs of different images (diversity, KID, every leave-one-out ceiling) is a U-statistic
of order two (Hoeffding 1948). Its variance has two parts, 4 (n - 2) / (n (n - 1)) zeta_1 + 2 / (n (n - 1)) zeta_2, and
the jackknife over images (Arvesen 1969, "Jackknifing U-statistics") counts the second one twice (Efron & Stein 1981,
"The jackknife estimate of variance"). Where the images spread evenly about nothing, or where two sets come from one
distribution, the second part is all there is. An estimate without that bias is

    U^2 - mean of h(i, j) h(k, l) over four different images
      = (4 sum_i r_i^2 - 2 sum_ij (h_ij - U)^2) / (n (n - 1) (n - 2) (n - 3)),   r_i = sum_j (h_ij - U),

which varies more, and may be negative: it is kept between `LEAST` of the jackknife's and the jackknife's own. Prompts
that repeat are the units: h between two prompts is what their images contribute to U.

**Sets.** FID and Vendi have no such closed form. They are computed again without one group of prompts at a time
(Quenouille 1956; Shao & Tu 1995, section 5.1):

    var = (g - 1) / g * sum_j (theta_(j) - mean theta_(.))^2

and, where wanted, without two, which gives the second part that the jackknife counts twice (Efron & Stein 1981,
section 5): Q_jk = g theta - (g - 1) (theta_(j) + theta_(k)) + (g - 2) theta_(jk), var - sum (Q - mean Q)^2 / (g (g - 1)).

Both speak of the mean of the number over draws of as many prompts as were drawn: for KID and diversity, which are
unbiased, that is the number's true value; for FID and Vendi it is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

# Share of the jackknife's variance that is always taken; the true share lies between 1/2 and 1. Chosen by simulation.
LEAST = 0.7
LEAST_OF_SETS = 0.65
FEWEST = 3  # prompts: two have a single pair, which says nothing about its own error


def pair_error(kernel: NDArray[np.float64], codes: NDArray[np.int64]) -> tuple[float | None, int]:
    """Standard error of the mean over all pairs of different images, and the number of prompts.

    ``kernel``: symmetric [n, n], its diagonal is not read. ``codes``: each image's prompt, 0 to G - 1.
    None for fewer than `FEWEST` prompts.
    """
    groups, n = int(codes.max(initial=-1)) + 1, len(codes)
    if groups < FEWEST:
        return None, groups
    residuals = np.array(kernel, dtype=np.float64)
    np.fill_diagonal(residuals, 0.0)
    mean = residuals.sum() / (n * (n - 1))
    residuals -= mean
    np.fill_diagonal(residuals, 0.0)
    if groups < n:
        residuals = _between_prompts(residuals, codes, groups)
    g = groups
    rows, squares = residuals.sum(1), float((residuals**2).sum())
    first = 4 * float((rows**2).sum())
    jackknife = first / (g * (g - 1) * (g - 2) ** 2)
    least = LEAST * jackknife
    unbiased = (first - 2 * squares) / (g * (g - 1) * (g - 2) * (g - 3)) if g > 3 else least
    return math.sqrt(min(max(unbiased, least), jackknife)), groups


def _between_prompts(
    residuals: NDArray[np.float64], codes: NDArray[np.int64], groups: int
) -> NDArray[np.float64]:
    """[G, G] with the mean over its pairs equal to that over the images': what two prompts contribute together.

    Pairs within a prompt are that prompt's own, half of them in each of its pairs with the others.
    """
    n = len(codes)
    one_hot = np.zeros((n, groups))
    one_hot[np.arange(n), codes] = 1.0
    sums = one_hot.T @ residuals @ one_hot
    own = sums.diagonal().copy()
    pairs = n * (n - 1)
    made: NDArray[np.float64] = groups * ((groups - 1) * sums + (own[:, None] + own[None, :]) / 2) / pairs
    np.fill_diagonal(made, 0.0)
    return made


def jackknife_error(
    statistic: Callable[[NDArray[np.int64]], float],
    codes: NDArray[np.int64],
    most_groups: int = 20,
    *,
    second_order_from: int | None = None,
) -> tuple[float | None, int]:
    """Standard error by leaving out a group of prompts at a time, and the number of groups.

    ``statistic``: of the rows with these numbers. ``codes``: each image's prompt; prompts are dealt in turn to at
    most ``most_groups`` groups. ``second_order_from``: with so many groups or more, the part that is counted twice is
    taken off, for g (g - 1) / 2 more evaluations. None for fewer than three groups.
    """
    groups = min(most_groups, int(codes.max(initial=-1)) + 1)
    if groups < FEWEST:
        return None, groups
    dealt = codes % groups
    left = np.array([statistic(np.flatnonzero(dealt != j)) for j in range(groups)])
    variance = (groups - 1) / groups * float(((left - left.mean()) ** 2).sum())
    if second_order_from is not None and groups >= second_order_from:
        whole = statistic(np.arange(len(codes)))
        twice = [
            groups * whole
            - (groups - 1) * (left[j] + left[k])
            + (groups - 2) * statistic(np.flatnonzero((dealt != j) & (dealt != k)))
            for j, k in combinations(range(groups), 2)
        ]
        second = float(np.var(twice)) * len(twice) / (groups * (groups - 1))
        variance = max(variance - second, LEAST_OF_SETS * variance)
    return math.sqrt(variance), groups


def prompts_of(ids: Sequence[Hashable]) -> NDArray[np.int64]:
    """Each image's prompt as a number, in the order of first appearance."""
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(key, len(seen)) for key in ids], dtype=np.int64)
