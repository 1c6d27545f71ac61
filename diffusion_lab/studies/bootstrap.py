"""Intervals over subjects and prompts.

Runs of several subjects are evaluated with the same prompts, so that subjects and prompts are crossed: both are drawn
again (the pigeonhole bootstrap: Owen 2007, "The pigeonhole bootstrap", Annals of Applied Statistics 1), the prompts alike
for all runs. Every result here is a mean over subjects, or a difference of two such means, of a quantity q_s of
each subject (a value, a slope, a difference of two methods). Its variance has three parts:

    V_S   drawing subjects:  var(q_s) / S; the bootstrap's own variance has the factor (S - 1) / S
    V_P   drawing prompts:   the variance of mean_s q_s over prompt replicates, times P / (P - 1)
    V_SP  drawing both counts the noise of single images three times, V_S + V_P still twice; once is
          V_SP = sum_s var_b(q_s - mean q) / (S - 1) / S, times P / (P - 1)

and so V = V_S + V_P - V_SP, at least V_S / 2 (the same three parts as in Cameron, Gelbach & Miller 2011, "Robust inference with
multiway clustering"). The interval is q +- t sqrt(V), with Satterthwaite's degrees of freedom, at least S - 1
(of two groups: S_1 + S_2 - 2 for equal sizes).
In simulations with 5 to 20 subjects and 20 to 100 prompts its coverage is 93 to 97 %, with 3 subjects 92 to 98 %. The floor
was chosen by these: with none it is 88 %, with V_S 98 % in the worst case; with S - 1 degrees of freedom up to 99 %.

With one subject only the prompts are drawn: such an interval says nothing about other subjects, and its `over` says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from diffusion_lab.analysis.intervals import ALIKE, LEVEL

Floats = NDArray[np.float64]
DRAWS = 400
BOTH = "subjects and prompts"
PROMPTS = "prompts only: one subject"
SUBJECTS = "subjects only"
NEITHER = "no interval"


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and its 95 % limits; NaN limits if there is nothing to estimate them from."""

    value: float
    low: float
    high: float
    error: float  # standard error
    degrees: float  # of freedom of Student's t
    subjects: int
    prompts: int
    over: str  # what another draw of would change: BOTH, PROMPTS, SUBJECTS or NEITHER

    @property
    def half(self) -> float:
        return (self.high - self.low) / 2

    @property
    def known(self) -> bool:
        return math.isfinite(self.value) and math.isfinite(self.low)

    def smallest(self, power: float = 0.8) -> float:
        """The smallest true effect that such a study sees (interval without 0) with this probability; NaN if unknown."""
        return self.error * (_t(self.degrees, 0.5 + LEVEL / 2) + _t(self.degrees, power))

    def scaled(self, factor: float) -> Interval:
        """Of the estimate times a factor."""
        ends = sorted((self.low * factor, self.high * factor))
        error = self.error * abs(factor)
        return replace(self, value=self.value * factor, low=ends[0], high=ends[1], error=error)

    def at_least(self, variance: float) -> Interval:
        """With a variance of no less than this, such as that of evaluating only every so many steps.

        Subjects whose best step is the same evaluation do not differ, but their best steps are not known exactly.
        """
        if not math.isfinite(self.value) or variance <= 0 or (self.known and self.error**2 >= variance):
            return self
        degrees = self.degrees if self.known else float(max(self.subjects, 2) - 1)
        over = self.over if self.known else BOTH if self.subjects > 1 else PROMPTS
        error = math.sqrt(variance)
        reach = _t(degrees, 0.5 + LEVEL / 2) * error
        low, high = self.value - reach, self.value + reach
        return replace(self, low=low, high=high, error=error, degrees=degrees, over=over)

    def at_level(self, level: float) -> tuple[float, float]:
        """The limits at another level, such as 1 - .05 / k for k comparisons."""
        reach = _t(self.degrees, 0.5 + level / 2) * self.error
        return self.value - reach, self.value + reach


@lru_cache(maxsize=16)
def prompt_weights(prompts: int, draws: int = DRAWS, seed: int = 0) -> NDArray[np.float32]:
    """[1 + draws, prompts]: rows that sum to 1. Row 0 weighs all alike, the others are draws with replacement.

    Runs with the same number of prompts get the same draws. Without prompts the rows are empty.
    """
    if prompts == 0:
        return np.zeros((1 + draws, 0), np.float32)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=draws)
    weights: NDArray[np.float32] = (np.vstack([np.ones(prompts), counts]) / prompts).astype(np.float32)
    weights.setflags(write=False)
    return weights


def weighted(by_prompt: NDArray[np.float32], weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """[rows, steps]: means over prompts of ``by_prompt`` [steps, prompts]. Prompts without a value do not count."""
    known = np.isfinite(by_prompt)
    if known.all():
        return weights @ by_prompt.T
    with np.errstate(invalid="ignore", divide="ignore"):
        sums: NDArray[np.float32] = weights @ np.where(known, by_prompt, np.float32(0)).T
        return sums / (weights @ known.T.astype(np.float32))


def mean_over(subjects: Floats, prompts: int) -> Interval:
    """Of the mean of ``subjects`` [1 + draws, S]: each subject's quantity, row 0 the estimate, then prompt replicates."""
    return combination([(1.0, subjects)], prompts)


def difference_of(first: Floats, second: Floats, prompts: int) -> Interval:
    """Of the mean of one group of subjects less that of another, such as women less men. Arrays as in `mean_over`."""
    return combination([(1.0, first), (-1.0, second)], prompts)


def combination(groups: Sequence[tuple[float, Floats]], prompts: int) -> Interval:
    """Of a sum of coefficient times mean over each group of subjects; the groups share no subject.

    Subjects whose estimate is not finite are left out, and replicates that are not finite count as the estimate.
    """
    kept = [(c, _finite(np.asarray(q, dtype=np.float64))) for c, q in groups]
    sizes = [q.shape[1] for _, q in kept]
    total = sum(sizes)
    if not all(sizes):
        return _without_limits(math.nan, total, prompts)
    value = float(sum(c * q[0].mean() for c, q in kept))
    replicates = sum((c * q[1:].mean(axis=1) for c, q in kept), np.zeros(len(kept[0][1]) - 1))
    factor = prompts / (prompts - 1) if prompts > 1 else 1.0
    by_prompts = float(replicates.var()) * factor if len(replicates) else 0.0
    if min(sizes) == 1:
        over, variance, degrees = PROMPTS, by_prompts, float(prompts - 1)
    else:
        over, variance, degrees = _over_subjects(kept, by_prompts, factor, prompts)
    error = math.sqrt(variance)
    if error <= ALIKE * max(abs(value), 1e-12) or degrees <= 0:
        return _without_limits(value, total, prompts)
    reach = _t(degrees, 0.5 + LEVEL / 2) * error
    return Interval(value, value - reach, value + reach, error, degrees, total, prompts, over)


def _without_limits(value: float, subjects: int, prompts: int) -> Interval:
    nan = math.nan
    return Interval(value, nan, nan, nan, nan, subjects, prompts, NEITHER)


def _finite(q: Floats) -> Floats:
    """Without subjects that have no estimate; missing replicates are replaced."""
    q = q[:, np.isfinite(q[0])]
    return np.where(np.isfinite(q), q, q[0])


def _over_subjects(
    groups: Sequence[tuple[float, Floats]], by_prompts: float, factor: float, prompts: int
) -> tuple[str, float, float]:
    """What is drawn, V and its degrees of freedom; see the module's docstring."""
    by_subjects, both, shares, least = 0.0, 0.0, 0.0, 0.0
    for coefficient, q in groups:
        size = q.shape[1]
        by_subjects += coefficient**2 * float(q[0].var(ddof=1)) / size
        shares += coefficient**2 / size
        least += (coefficient**2 / size) ** 2 / (size - 1)
        own = q[1:] - q[1:].mean(axis=1, keepdims=True)
        spread = float(own.var(axis=0).sum()) / (size - 1) if len(own) else 0.0
        both += coefficient**2 * spread / size * factor
    own_degrees = (
        shares**2 / least
    )  # Welch's, for groups of subjects that vary alike: S_1 + S_2 - 2 for equal sizes
    if by_prompts == 0.0:
        return SUBJECTS, by_subjects, own_degrees
    variance = max(by_subjects + by_prompts - both, by_subjects / 2)
    squares = by_subjects**2 / own_degrees + by_prompts**2 / max(1, prompts - 1)
    squares += both**2 / own_degrees / max(1, prompts - 1)
    return BOTH, variance, max(variance**2 / squares, own_degrees) if squares else 0.0


@lru_cache(maxsize=1024)
def _t(degrees: float, probability: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(degrees, probability))
