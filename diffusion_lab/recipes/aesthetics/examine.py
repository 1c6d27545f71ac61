"""Evaluates a head on unseen images: errors, ranks, extremes, spread."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from diffusion_lab.analysis.intervals import summarise

EXTREME = 0.05  # the fraction of images at either end


@dataclass(frozen=True, slots=True)
class Examined:
    """Results on n images; errors are on the rating scale, 0 to 10."""

    n: int
    mean_absolute_error: float
    root_mean_squared_error: float
    spearman: float
    pearson: float
    worst_rated_error: float  # mean absolute error among the 5 % with the lowest ratings
    best_rated_error: float  # and the highest
    worst_rated_bias: float  # mean of said minus rated there: above 0 where they are called too good
    best_rated_bias: float
    spread: float  # standard deviation of what is said over that of the ratings; 1 is as wide
    slope: float  # of ratings on what is said; 1 is calibrated

    def as_dict(self) -> Mapping[str, float]:
        return asdict(self)


def examine(predicted: NDArray[np.float64], rated: NDArray[np.float64]) -> Examined:
    """Raises ValueError for fewer than three images, or if all ratings are equal."""
    from scipy import stats

    if len(rated) < 3 or np.ptp(rated) == 0:
        raise ValueError("three pictures with different ratings are needed to examine a head")
    error = predicted - rated
    low, high = lowest_and_highest(rated)
    varies = np.ptp(predicted) > 0
    return Examined(
        n=len(rated),
        mean_absolute_error=float(np.abs(error).mean()),
        root_mean_squared_error=float(np.sqrt((error**2).mean())),
        spearman=float(stats.spearmanr(predicted, rated).statistic) if varies else float("nan"),
        pearson=float(stats.pearsonr(predicted, rated).statistic) if varies else float("nan"),
        worst_rated_error=float(np.abs(error[low]).mean()),
        best_rated_error=float(np.abs(error[high]).mean()),
        worst_rated_bias=float(error[low].mean()),
        best_rated_bias=float(error[high].mean()),
        spread=float(predicted.std() / rated.std()),
        slope=float(stats.linregress(predicted, rated).slope) if varies else float("nan"),
    )


def lowest_and_highest(rated: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers of the lowest and the highest rated pictures, `EXTREME` of all at either end, one at least."""
    order = np.argsort(rated, kind="stable")
    k = max(1, round(EXTREME * len(rated)))
    return order[:k], order[-k:]


def gain_at_extremes(
    balanced: NDArray[np.float64], plain: NDArray[np.float64], rated: NDArray[np.float64]
) -> tuple[float, float | None, float | None]:
    """By how much balancing lowers the mean absolute error at both ends, in grades: (mean, low, high).

    Student's 95 % interval over the pictures at the ends, paired: both heads see the same ones. None where
    all gains are alike. A bootstrap of the two pictures that a small set has at its ends would be far too
    sure.
    """
    ends = np.concatenate(lowest_and_highest(rated))
    found = summarise(np.abs(plain[ends] - rated[ends]) - np.abs(balanced[ends] - rated[ends]))
    assert found.mean is not None
    return found.mean, found.low, found.high
