"""Means with standard errors and 95 % intervals, for all metrics.

**Prompts repeat.** Several images of one prompt are not independent, so residuals are summed by prompt first:
    se^2 = G / (G - 1) * sum_g (sum_{i in g} (x_i - mean))^2 / n^2
over G prompts (Liang & Zeger 1986, "Longitudinal data analysis using generalized linear models"; the
small-sample factor and Student's t with G - 1 degrees of freedom as in Cameron & Miller 2015, "A
practitioner's guide to cluster-robust inference"). With one image per prompt this is the usual s^2 / n.

**One prompt.** A single prompt gives no information about other prompts. Only the variation due to another draw of
noise for the same prompt can be estimated: the images are then the units, and the summary says so
(`within_one_prompt`).

**Pairs and sets.** Means over pairs of images (diversity, leave-one-out ceilings, KID) and values of whole sets (FID,
Vendi): see `pairs.py`. **Fractions** (face_rate): see `shares.py`.

**Images without a face** count as a fixed value v in the penalised mean v + r (m - v), with r the fraction of images with a
face and m the mean over those. Its interval combines Wilson's for r and Student's t for m, each limit from the distances on
its own side (Zou & Donner 2008, "Construction of confidence limits about effect measures: a general approach"), so that
faces in all of a few images do not imply faces in all images.

**No interval.** If all values are equal, or there is one image or too few prompts, no error can be estimated: standard
error and interval are None and the summary's note gives the reason. An interval never leaves the metric's range.

Similarities to the reference photos are conditional on them: the interval refers to another draw of prompts and noise,
not to another set of photos.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import compress

import numpy as np
from numpy.typing import NDArray

from diffusion_lab.analysis.pairs import FEWEST, pair_error, prompts_of
from diffusion_lab.analysis.shares import FEWEST as FEWEST_FOR_A_SHARE
from diffusion_lab.analysis.shares import wilson
from diffusion_lab.records import Summary

LEVEL = 0.95
ALIKE = 1e-9  # an error below this fraction of the values is rounding

Bounds = tuple[float | None, float | None]
BOUNDS: dict[str, Bounds] = {  # by a metric's unit: its possible values
    "cosine": (-1.0, 1.0),
    "cosine distance": (0.0, 2.0),
    "share": (0.0, 1.0),
    "0 to 1": (0.0, 1.0),
}
NOISE_ONLY = "all images have the same prompt: the interval refers to the noise only"
WORDS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five"}


def summarise(
    values: Iterable[float],
    prompt_ids: Sequence[Hashable] | None = None,
    *,
    can_miss: bool = False,
    imputed: float = 0.0,
    pairwise: bool = False,
    kernel: NDArray[np.float64] | None = None,
    share: bool = False,
    bounds: Bounds = (None, None),
) -> Summary:
    """Mean of one metric over the images of one evaluation.

    ``values``: one per image, NaN if undefined; a tensor, an array or floats. ``prompt_ids``: the prompt
    of each, None if every image has a different one. ``can_miss``: report the penalised mean, in which an image
    without a value counts as ``imputed``, or as the mean over the others if that is lower.
    ``pairwise``: each value is a mean over the other images; ``kernel`` [n, n] has the pairs themselves, without
    which the error is the jackknife's, an upper estimate. ``share``: each value is 0 or 1. ``bounds``: of the
    values' range, None for no bound.
    ValueError for infinite values, for different lengths, and for a share with values other than 0 and 1.
    """
    x = np.array([float(value) for value in values], dtype=np.float64)
    ids = list(range(len(x)) if prompt_ids is None else prompt_ids)
    if len(ids) != len(x):
        raise ValueError(f"{len(x)} values for {len(ids)} prompt ids")
    if np.isinf(x).any():
        raise ValueError("an image's value is infinite")
    there = ~np.isnan(x)
    if share and not np.isin(x[there], (0.0, 1.0)).all():
        raise ValueError("a share is of values that are 0 or 1")
    known, n, missing = x[there], int(there.sum()), int((~there).sum())
    if n == 0:
        summary = Summary(None, 0, missing, None, None, None)
    else:
        mean = math.fsum(known) / n
        codes, alone = units(list(compress(ids, there)))
        groups = int(codes.max()) + 1
        if pairwise:
            some = None if kernel is None else kernel[there][:, there]
            error, why = _pair_error(known - mean, codes, some), too_few(groups, FEWEST, alone)
        else:
            error, why = _clustered_error(known - mean, codes), too_few(groups, 2, alone)
        summary = interval_of(
            mean, n, error, groups, missing=missing, bounds=bounds, why=why, alone=alone, share=share
        )
    return _penalise(summary, x, ids, imputed, bounds) if can_miss and len(x) else summary


def units(prompt_ids: Sequence[Hashable]) -> tuple[NDArray[np.int64], bool]:
    """Each image's unit as an index: its prompt, or itself (True) if there is a single prompt."""
    codes = prompts_of(prompt_ids)
    alone = len(codes) > 1 and int(codes.max()) == 0
    return (np.arange(len(codes)), True) if alone else (codes, False)


def too_few(groups: int, least: int, alone: bool) -> str | None:
    """Why ``groups`` prompts (``alone``: images of one prompt) have no interval, if there are fewer than ``least``."""
    if groups >= least:
        return None
    if groups == 1:
        return f"no interval: one image is too few, at least {WORDS[least]} are needed"
    return f"no interval: {WORDS[groups]} {'images' if alone else 'prompts'} are too few, at least {WORDS[least]} are needed"


def interval_of(
    value: float,
    n: int,
    error: float | None,
    groups: int,
    *,
    missing: int = 0,
    bounds: Bounds = (None, None),
    note: str | None = None,
    why: str | None = None,
    alone: bool = False,
    share: bool = False,
) -> Summary:
    """The summary of a mean or of a set's value: value +- t * ``error`` with ``groups`` - 1 degrees of freedom.

    Without an interval if ``why`` is given (it becomes the note), if there is no error, and if the error is only
    rounding. ``alone``: the units are images of one prompt. ``share``: Wilson's interval.
    """
    if not math.isfinite(value):
        raise ValueError("a set's value is not finite")
    low = high = None
    if share and error is not None and why is None:
        why = too_few(groups, FEWEST_FOR_A_SHARE, alone)
        if why is None:
            low, high = _share(value, error, n, groups)
    elif error is not None and why is None and error <= ALIKE * max(abs(value), 1e-12):
        error, why = 0.0, f"no interval: all {n} values are alike, so their error cannot be estimated"
    elif error is not None and why is None:
        reach = student_t(groups - 1) * error
        low, high = value - reach, value + reach
        if bounds[0] is not None:
            low = min(value, max(low, bounds[0]))
        if bounds[1] is not None:
            high = max(value, min(high, bounds[1]))
    if low is None and error:
        error = None
    notes = [note, why, NOISE_ONLY if alone and low is not None else None]
    return Summary(
        value, n, missing, error, low, high,
        note="; ".join(part for part in notes if part) or None,
        within_one_prompt=alone and low is not None,
    )  # fmt: skip


def _share(p: float, error: float, images: int, prompts: int) -> tuple[float, float]:
    """95 % interval of a fraction with its clustered standard error; see `shares.py`."""
    if images == prompts or p in (0.0, 1.0):
        return wilson(p, prompts, normal_quantile())
    effective = min(float(images), p * (1 - p) / error**2) if error > 0 else float(images)
    return wilson(p, effective, student_t(prompts - 1))


def _clustered_error(residuals: NDArray[np.float64], codes: NDArray[np.int64]) -> float | None:
    """None for fewer than two clusters."""
    groups = int(codes.max()) + 1
    if groups < 2:
        return None
    parts: list[list[float]] = [[] for _ in range(groups)]
    for code, residual in zip(codes.tolist(), residuals.tolist(), strict=True):
        parts[code].append(residual)
    squares = math.fsum(
        math.fsum(part) ** 2 for part in parts
    )  # exact sums: independent of the order of the images
    return math.sqrt(groups / (groups - 1) * squares) / len(residuals)


def _pair_error(
    residuals: NDArray[np.float64], codes: NDArray[np.int64], kernel: NDArray[np.float64] | None
) -> float | None:
    """The standard error of a mean over pairs; None for too few clusters."""
    if kernel is not None:
        return pair_error(kernel, codes)[0]
    n, single = len(residuals), _clustered_error(residuals, codes)
    return None if single is None or int(codes.max()) + 1 < FEWEST else single * 2 * (n - 1) / (n - 2)


def _penalise(
    summary: Summary, x: NDArray[np.float64], ids: Sequence[Hashable], imputed: float, bounds: Bounds
) -> Summary:
    """Adds the mean over all images, those without a value counted as v; see the module docstring."""
    there = ~np.isnan(x)
    v = imputed if summary.mean is None else min(imputed, summary.mean)
    penalised = math.fsum(np.where(there, x, v)) / len(x)
    if summary.mean is not None:
        penalised = min(penalised, summary.mean)  # equal except for rounding if v is the mean
    rate = summarise(there.astype(float), ids, share=True)
    low = high = None
    if None not in (summary.mean, rate.mean, rate.low, rate.high) and summary.standard_error:
        assert summary.mean is not None and rate.mean is not None  # noqa: PT018 - for mypy
        assert rate.low is not None and rate.high is not None  # noqa: PT018
        m, r = summary.mean - v, rate.mean
        # Over all prompts, not only those with a face: with these degrees of freedom the coverage is 94 to 97 %.
        reach = r * student_t(int(units(ids)[0].max())) * summary.standard_error
        low = penalised - math.hypot(m * (r - rate.low), reach)
        high = penalised + math.hypot(m * (rate.high - r), reach)
        low = low if bounds[0] is None else min(penalised, max(low, bounds[0]))
        high = high if bounds[1] is None else max(penalised, min(high, bounds[1]))
    note = summary.note
    if summary.low is not None and low is None and rate.note:
        note = "; ".join(part for part in (note, f"counting missing images: {rate.note}") if part)
    return replace(summary, penalised=penalised, penalised_low=low, penalised_high=high, imputed=v, note=note)


def undefined_summary(why: str, missing: int = 0) -> Summary:
    """A summary without a value, with the reason."""
    return Summary(None, 0, missing, None, None, None, note=why)


def of_pairs(
    value: float,
    kernel: NDArray[np.float64],
    prompt_ids: Sequence[Hashable],
    *,
    missing: int = 0,
    bounds: Bounds = (None, None),
    note: str | None = None,
) -> Summary:
    """The summary of a set's value that is a mean over pairs of its images, ``kernel`` [n, n] up to a constant."""
    codes, alone = units(prompt_ids)
    error, groups = pair_error(kernel, codes)
    why = too_few(groups, FEWEST, alone)
    return interval_of(
        value, len(codes), error, groups, missing=missing, bounds=bounds, note=note, why=why, alone=alone
    )


@lru_cache(maxsize=256)
def student_t(degrees: int, level: float = LEVEL) -> float:
    """The t beyond which Student's distribution has (1 - level) / 2 on each side: 1.96 for many degrees of
    freedom.
    """
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.5 + level / 2))


@lru_cache(maxsize=4)
def normal_quantile(level: float = LEVEL) -> float:
    """The same of the normal distribution: 1.96."""
    from scipy.special import ndtri

    return float(ndtri(0.5 + level / 2))
