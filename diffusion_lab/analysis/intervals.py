"""The one place that averages: means with standard errors and 95 % intervals.

**Prompts repeat.** Several images of one prompt are not independent, so residuals are summed by prompt first:
    se^2 = G / (G - 1) * sum_g (sum_{i in g} (x_i - mean))^2 / n^2
over G prompts (Liang & Zeger 1986, "Longitudinal data analysis using generalized linear models"; the
small-sample factor and Student's t with G - 1 degrees of freedom as in Cameron & Miller 2015, "A
practitioner's guide to cluster-robust inference"). With one image per prompt this is the usual s^2 / n.

**One prompt.** With a single prompt nothing is known about other prompts. What can be estimated is how another draw
of noise would come out for the same prompt: the images are then the units, and the summary says so
(`within_one_prompt`).

**Pairs and sets.** Means over pairs of images (diversity, leave-one-out ceilings, KID) and numbers of whole sets (FID,
Vendi): see `pairs.py`. **Shares** (face_rate): see `shares.py`.

**Images without a face** count as a fixed value v in the penalised mean v + r (m - v), with r the share of images with a
face and m the mean over those. Its interval combines Wilson's of r and Student's of m, each limit from the distances on its own side
(Zou & Donner 2008, "Construction of confidence limits about effect measures: a general approach"), so that a face in
every one of a few images is not taken for a face in all.

**Nothing to go by.** Where all values are alike, where there is one image, or too few prompts, no error can be
estimated: standard error and interval are None and the summary's note says why. An interval never leaves the metric's
range.

Similarities to fixed photographs are conditional on those: the interval says how another draw of prompts and
noise would come out, not another set of photographs.
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
ALIKE = 1e-9  # an error below this share of the values is rounding

Bounds = tuple[float | None, float | None]
BOUNDS: dict[str, Bounds] = {  # by a metric's unit: the values that it can have
    "cosine": (-1.0, 1.0),
    "cosine distance": (0.0, 2.0),
    "share": (0.0, 1.0),
    "0 to 1": (0.0, 1.0),
}
NOISE_ONLY = "all images are of one prompt: the interval speaks of its noise only"
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

    ``values``: one per image, NaN where undefined; a tensor, an array or floats. ``prompt_ids``: the prompt
    of each, None where every image is its own. ``can_miss``: report the penalised mean, in which an image
    without a value counts as ``imputed``, or as the mean over the others where that is lower still.
    ``pairwise``: each value is a mean over the other images; ``kernel`` [n, n] has the pairs themselves, without
    which the error is the jackknife's, an upper estimate. ``share``: each value is 0 or 1. ``bounds``: of the
    values' range, None where open.
    ValueError for infinite values, for lengths that differ, and for a share of anything but 0 and 1.
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
        found = Summary(None, 0, missing, None, None, None)
    else:
        mean = math.fsum(known) / n
        codes, alone = units(list(compress(ids, there)))
        groups = int(codes.max()) + 1
        if pairwise:
            some = None if kernel is None else kernel[there][:, there]
            error, why = _pair_error(known - mean, codes, some), too_few(groups, FEWEST, alone)
        else:
            error, why = _clustered_error(known - mean, codes), too_few(groups, 2, alone)
        found = interval_of(
            mean, n, error, groups, missing=missing, bounds=bounds, why=why, alone=alone, share=share
        )
    return _penalise(found, x, ids, imputed, bounds) if can_miss and len(x) else found


def units(prompt_ids: Sequence[Hashable]) -> tuple[NDArray[np.int64], bool]:
    """Each image's unit as a number: its prompt, or itself (True) where there is a single prompt."""
    codes = prompts_of(prompt_ids)
    alone = len(codes) > 1 and int(codes.max()) == 0
    return (np.arange(len(codes)), True) if alone else (codes, False)


def too_few(groups: int, least: int, alone: bool) -> str | None:
    """Why ``groups`` prompts (``alone``: images of one prompt) have no interval, where they are under ``least``."""
    if groups >= least:
        return None
    if groups == 1:
        return f"no interval: one image is too few, it takes {WORDS[least]}"
    return f"no interval: {WORDS[groups]} {'images' if alone else 'prompts'} are too few, it takes {WORDS[least]}"


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
    """The summary of a mean or of a set's number: value +- t * ``error`` with ``groups`` - 1 degrees of freedom.

    Without an interval where ``why`` says so (it goes into the note), where there is no error, and where the error is
    nothing but rounding. ``alone``: the units are images of one prompt. ``share``: Wilson's interval.
    """
    if not math.isfinite(value):
        raise ValueError("a set's value is not finite")
    low = high = None
    if share and error is not None and why is None:
        why = too_few(groups, FEWEST_FOR_A_SHARE, alone)
        if why is None:
            low, high = _share(value, error, n, groups)
    elif error is not None and why is None and error <= ALIKE * max(abs(value), 1e-12):
        error, why = 0.0, f"no interval: all {n} values are alike, which says nothing about their error"
    elif error is not None and why is None:
        reach = student_t(groups - 1) * error
        low, high = value - reach, value + reach
        if bounds[0] is not None:
            low = min(value, max(low, bounds[0]))
        if bounds[1] is not None:
            high = max(value, min(high, bounds[1]))
    if low is None and error:
        error = None
    said = [note, why, NOISE_ONLY if alone and low is not None else None]
    return Summary(
        value, n, missing, error, low, high,
        note="; ".join(part for part in said if part) or None,
        within_one_prompt=alone and low is not None,
    )  # fmt: skip


def _share(p: float, error: float, images: int, prompts: int) -> tuple[float, float]:
    """95 % interval of a share with its clustered standard error; see `shares.py`."""
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
    )  # exact sums: the order of the images is nothing
    return math.sqrt(groups / (groups - 1) * squares) / len(residuals)


def _pair_error(
    residuals: NDArray[np.float64], codes: NDArray[np.int64], kernel: NDArray[np.float64] | None
) -> float | None:
    """Of a mean over pairs; None for too few clusters."""
    if kernel is not None:
        return pair_error(kernel, codes)[0]
    n, single = len(residuals), _clustered_error(residuals, codes)
    return None if single is None or int(codes.max()) + 1 < FEWEST else single * 2 * (n - 1) / (n - 2)


def _penalise(
    found: Summary, x: NDArray[np.float64], ids: Sequence[Hashable], imputed: float, bounds: Bounds
) -> Summary:
    """With the mean over all images, those without a value counted as v; see the head of this file."""
    there = ~np.isnan(x)
    v = imputed if found.mean is None else min(imputed, found.mean)
    penalised = math.fsum(np.where(there, x, v)) / len(x)
    if found.mean is not None:
        penalised = min(penalised, found.mean)  # equal but for rounding where v is the mean
    rate = summarise(there.astype(float), ids, share=True)
    low = high = None
    if None not in (found.mean, rate.mean, rate.low, rate.high) and found.standard_error:
        assert found.mean is not None and rate.mean is not None  # noqa: PT018 - for mypy
        assert rate.low is not None and rate.high is not None  # noqa: PT018
        m, r = found.mean - v, rate.mean
        # Of all prompts, not only of those with a face: with these degrees of freedom 94 to 97 % are covered.
        reach = r * student_t(int(units(ids)[0].max())) * found.standard_error
        low = penalised - math.hypot(m * (r - rate.low), reach)
        high = penalised + math.hypot(m * (rate.high - r), reach)
        low = low if bounds[0] is None else min(penalised, max(low, bounds[0]))
        high = high if bounds[1] is None else max(penalised, min(high, bounds[1]))
    note = found.note
    if found.low is not None and low is None and rate.note:
        note = "; ".join(part for part in (note, f"counting missing images: {rate.note}") if part)
    return replace(found, penalised=penalised, penalised_low=low, penalised_high=high, imputed=v, note=note)


def undefined_summary(why: str, missing: int = 0) -> Summary:
    """No value, and in words why."""
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
    """The summary of a set's number that is a mean over pairs of its images, ``kernel`` [n, n] up to a constant."""
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
