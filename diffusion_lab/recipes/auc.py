"""How well two groups of scores are told apart."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def auc(higher: NDArray[np.float64], lower: NDArray[np.float64]) -> float:
    """Area under the ROC curve: the probability that one of ``higher`` exceeds one of ``lower``, a tie counting half.

    Mann and Whitney's U over the number of pairs. Values that are not finite are left out; NaN where none is left.
    """
    from scipy.stats import mannwhitneyu

    a, b = higher[np.isfinite(higher)], lower[np.isfinite(lower)]
    if not len(a) or not len(b):
        return float("nan")
    return float(mannwhitneyu(a, b).statistic / (len(a) * len(b)))
