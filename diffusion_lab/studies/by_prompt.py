"""The scores of `scores.parquet` as arrays of steps by prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from diffusion_lab.evaluation.metrics import METRICS
from diffusion_lab.records import Metric, Summary

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("step", "prompt_id", "metric", "value")


@dataclass(frozen=True, slots=True)
class ByPrompt:
    """See `table.StudyRun.by_prompt`."""

    prompts: tuple[str, ...]
    values: Mapping[str, NDArray[np.float32]]  # metric -> [steps, prompts]


def read_by_prompt(path: Path, evaluations: Mapping[int, Mapping[str, Summary]]) -> ByPrompt:
    """Means of each prompt's images at the steps of `evaluations`, whose summaries say what a missing one counts.

    Raises OSError or ValueError (pyarrow's errors are of these kinds) if the file cannot be read.
    """
    import pyarrow.parquet as pq

    found = pq.read_table(path, columns=list(COLUMNS), use_threads=False)
    prompts, prompt = _codes(found["prompt_id"])
    names, metric = _codes(found["metric"])
    steps = np.array(list(evaluations))
    at = found["step"].to_numpy()
    there = np.isin(at, steps)
    step = np.searchsorted(steps, at[there])
    value = found["value"].to_numpy()[there]
    prompt, metric = prompt[there], metric[there]
    value = np.where(np.isnan(value), _fills(evaluations, names)[metric, step], value)
    shape = len(names), len(steps), len(prompts)
    flat = np.ravel_multi_index((metric, step, prompt), shape)
    known = np.isfinite(value)
    size = int(np.prod(shape))
    totals = np.bincount(flat[known], value[known], size).reshape(shape)
    counts = np.bincount(flat[known], minlength=size).reshape(shape)
    with np.errstate(invalid="ignore"):
        means = np.where(counts > 0, totals / counts, np.nan)
    return ByPrompt(
        prompts=tuple(prompts),
        values={
            name: (pseudo(means[i], counts[i]) if _compares(name) else means[i]).astype(np.float32)
            for i, name in enumerate(names)
        },
    )


def _codes(column: pa.ChunkedArray) -> tuple[list[str], NDArray[np.int64]]:
    """The values in ascending order, and the position of each row's value among them."""
    encoded = column.combine_chunks().dictionary_encode()
    names: list[Any] = encoded.dictionary.to_pylist()
    order = sorted(range(len(names)), key=lambda i: str(names[i]))
    rank = np.empty(len(names), np.int64)
    rank[order] = np.arange(len(names))
    return [str(names[i]) for i in order], rank[encoded.indices.to_numpy(zero_copy_only=False)]


def _fills(evaluations: Mapping[int, Mapping[str, Summary]], names: list[str]) -> NDArray[np.float64]:
    """[metrics, steps]: the value that an image without one counts as, NaN if it does not count."""
    fills = np.full((len(names), len(evaluations)), np.nan)
    for j, metrics in enumerate(evaluations.values()):
        for i, name in enumerate(names):
            s = metrics.get(name)
            if s is not None and s.penalised is not None:
                fills[i, j] = s.imputed or 0.0
    return fills


def _compares(name: str) -> bool:
    """Whether an image's value is a mean over the other images of its evaluation."""
    metric = METRICS.get(name)
    return isinstance(metric, Metric) and "values" in metric.pairwise


def pseudo(means: NDArray[np.float64], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """The jackknife's pseudo-values of a mean over pairs: U + 2 (n - 1) / (n - 2) (d - U), with n images.

    ``means`` [steps, prompts]: of d, an image's mean over the other images; ``counts``: images of each prompt.
    The mean of the pseudo-values is U, and their variance is that of a U-statistic's linear part (Arvesen 1969; see
    `analysis.pairs`). Unchanged for fewer than three images.
    """
    n = counts.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        middle = np.nansum(means * counts, axis=1, keepdims=True) / n
        return np.where(n > 2, middle + 2 * (n - 1) / (n - 2) * (means - middle), means)
