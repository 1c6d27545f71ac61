"""Errors of values that compare images with each other: means over pairs, and values of whole sets.

**Pairs.** A mean U over all pairs of different images (diversity, KID, every leave-one-out ceiling) is a U-statistic
of order two (Hoeffding 1948). Its variance has two parts, 4 (n - 2) / (n (n - 1)) zeta_1 + 2 / (n (n - 1)) zeta_2, and
the jackknife over images (Arvesen 1969, "Jackknifing U-statistics") counts the second one twice (Efron & Stein 1981,
"The jackknife estimate of variance"). If the images are spread evenly around the origin, or if two sets come from one
distribution, there is only the second part. An estimate without this bias is

    U^2 - mean of h(i, j) h(k, l) over four different images
      = (4 sum_i r_i^2 - 2 sum_ij (h_ij - U)^2) / (n (n - 1) (n - 2) (n - 3)),   r_i = sum_j (h_ij - U),

which has a larger variance and may be negative: it is clipped to between `LEAST` times the jackknife's variance and that
variance. Repeated prompts are the units: h between two prompts is the contribution of their images to U.

**Sets.** FID and Vendi have no such closed form. They are recomputed without one group of prompts at a time
(Quenouille 1956; Shao & Tu 1995, section 5.1):

    var = (g - 1) / g * sum_j (theta_(j) - mean theta_(.))^2

and optionally without two, which gives the second part that the jackknife counts twice (Efron & Stein 1981,
section 5): Q_jk = g theta - (g - 1) (theta_(j) + theta_(k)) + (g - 2) theta_(jk), var - sum (Q - mean Q)^2 / (g (g - 1)).

Both refer to the mean of the value over draws of the same number of prompts. For KID and diversity, which are unbiased,
this is the true value; for FID and Vendi it is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

# Minimum fraction of the jackknife's variance; the true fraction lies between 1/2 and 1. Chosen by simulation.
LEAST = 0.7
LEAST_OF_SETS = 0.65
FEWEST = 3  # prompts: two have a single pair, whose error cannot be estimated


def pair_error(kernel: NDArray[np.float64], codes: NDArray[np.int64]) -> tuple[float | None, int]:
    """Standard error of the mean over all pairs of different images, and the number of prompts.

    ``kernel``: symmetric [n, n], the diagonal is not used. ``codes``: each image's prompt, 0 to G - 1.
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
    """[G, G], the joint contribution of two prompts. The mean over its pairs equals that over the images' pairs.

    Pairs within a prompt are distributed over the prompt's pairs with all other prompts.
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
    """Standard error by leaving out one group of prompts at a time, and the number of groups.

    ``statistic``: function of the row indices. ``codes``: each image's prompt; prompts are assigned in turn to at
    most ``most_groups`` groups. ``second_order_from``: with at least this many groups, the part that is counted twice
    is subtracted, at the cost of g (g - 1) / 2 more evaluations. None for fewer than three groups.
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
    """Each image's prompt as an index, in the order of first appearance."""
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(key, len(seen)) for key in ids], dtype=np.int64)
