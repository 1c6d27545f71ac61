"""Intervals of fractions, that is, of means of values that are 0 or 1.

Wilson's interval (1927) is bounded by the p0 with (p - p0)^2 = c^2 p0 (1 - p0) / n. It stays within 0 and 1, and its
width is not zero if all values are equal. With one image per prompt the values are independent draws, c is
the normal quantile and n the number of images. If prompts repeat, n is the effective sample size
p (1 - p) / se^2 with the clustered se, at most the number of images, and c is Student's with G - 1 degrees of freedom
(Korn & Graubard 1998, "Confidence intervals for proportions with small expected number of positive counts estimated
from survey data"); if all values are equal this size is unknown, and each of the G prompts counts as one draw.

Below `FEWEST` prompts there is none. A fraction of n draws has n + 1 outcomes, so that the coverage of any interval
varies with the true value (Brown, Cai & DasGupta 2001, "Interval estimation for a binomial proportion"): for 2 or 3 draws it is
outside .90 to .98 for about half of all true values.
"""

from __future__ import annotations

import math

FEWEST = 5  # prompts


def wilson(p: float, n: float, quantile: float) -> tuple[float, float]:
    """The interval of a fraction ``p`` of ``n`` draws; n may be an effective size. Always contains ``p``."""
    c2 = quantile * quantile
    middle = (p + c2 / (2 * n)) / (1 + c2 / n)
    reach = quantile / (1 + c2 / n) * math.sqrt(p * (1 - p) / n + c2 / (4 * n * n))
    return min(p, max(0.0, middle - reach)), max(p, min(1.0, middle + reach))
