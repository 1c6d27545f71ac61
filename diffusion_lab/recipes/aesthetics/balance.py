"""Sampling weights of images in training, so that rare ratings count as much as common ones.

Mean ratings of many voters crowd in the middle. A regression on them learns to say "5.4", and its scores
"were condensed in the middle"; drawing rare ratings more often gives the extremes back.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from diffusion_lab.config.jobs import BALANCES

BINS = 20  # of half a grade each
MOST = 50.0  # an image is sampled at most this many times as often as the median one, so that none dominates


def weights(ratings: NDArray[np.float64], balance: str, exponent: float = 1.0) -> NDArray[np.float64]:
    """Relative frequency of every picture, mean 1, float64 [n].

    none: all alike. bins: (how many lie in its half grade)^-exponent. density: (a Gaussian kernel estimate of
    the ratings' density, Scott's bandwidth)^-exponent. ``exponent`` 0 changes nothing, 1 makes ratings
    uniform. Raises ValueError for an unknown ``balance``.
    """
    if balance == "none" or exponent == 0 or len(ratings) < 2 or np.ptp(ratings) == 0:
        raw = np.ones(len(ratings))
    elif balance == "bins":
        at = np.clip((ratings * BINS / 10).astype(int), 0, BINS - 1)
        raw = np.bincount(at, minlength=BINS)[at] ** -exponent
    elif balance == "density":
        from scipy.stats import gaussian_kde

        raw = density_on_grid(gaussian_kde(ratings), ratings) ** -exponent
    else:
        raise ValueError(f"balance must be one of {', '.join(BALANCES)}, got {balance!r}")
    raw = np.minimum(raw, MOST * np.median(raw))
    result: NDArray[np.float64] = raw / raw.mean()
    return result


def density_on_grid(density: object, ratings: NDArray[np.float64]) -> NDArray[np.float64]:
    """The density at every rating, interpolated: a kernel sum over all pairs of AVA's 250,000 takes hours."""
    grid = np.linspace(ratings.min(), ratings.max(), 512)
    result: NDArray[np.float64] = np.interp(ratings, grid, density(grid))  # type: ignore[operator]
    return result
