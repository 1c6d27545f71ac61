"""Summaries of metric values: range, pairs, and the value of an image without a face."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from diffusion_lab.analysis.intervals import BOUNDS, summarise
from diffusion_lab.records import Metric, References

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from diffusion_lab.records import Features, Summary

NO_LIKENESS = 0.0  # the cosine of two unrelated things


def of_images(
    metric: Metric, values: Tensor, generated: Features, references: References, ids: Sequence[Hashable]
) -> Summary:
    """The summary of an evaluation's images, clustered by prompt."""
    # If no reference photo has a face, the metric is undefined, and so is the value of a missing face.
    can_miss = metric.can_miss and comparable(metric, references)
    found = summarise(
        values.tolist(),
        ids,
        can_miss=can_miss,
        imputed=imputed(metric, references) if can_miss else NO_LIKENESS,
        pairwise="values" in metric.pairwise,
        kernel=_cosines(metric, "values", generated, references),
        share=metric.unit == "share",
        bounds=BOUNDS.get(metric.unit, (None, None)),
    )
    return found if found.mean is not None or found.note else replace(found, note="no image has a value")


def of_photographs(
    metric: Metric, kind: Literal["ceiling", "impostor"], references: References
) -> Summary | None:
    """The summary of a metric's ceiling or impostor line, or None if it has none."""
    values = metric.ceiling(references) if kind == "ceiling" else metric.impostor(references)
    if values is None:
        return None
    pairwise = kind in metric.pairwise
    return summarise(
        values.tolist(),
        pairwise=pairwise,
        kernel=_cosines(metric, "ceiling", references.train, references) if pairwise else None,
        share=metric.unit == "share",
        bounds=BOUNDS.get(metric.unit, (None, None)),
    )


def imputed(metric: Metric, references: References) -> float:
    """The value of an image without a face: 0, or the mean score of other subjects' photos if that is
    lower.

    `summarise` uses the mean over faces if that is lower than both, so that the mean over all images never exceeds it:
    see docs/metrics.md.
    """
    line = metric.impostor(references)
    known = [] if line is None else [value for value in line.tolist() if not math.isnan(value)]
    return min(NO_LIKENESS, math.fsum(known) / len(known)) if known else NO_LIKENESS


def comparable(metric: Metric, references: References) -> bool:
    """Whether an image with a face would have a value, judged by the photos."""
    photographs = (references.train, references.heldout, references.impostors)
    return any(not bool(metric(some, references).isnan().all()) for some in photographs if some is not None)


def _cosines(
    metric: Metric, kind: Literal["values", "ceiling"], generated: Features, references: References
) -> NDArray[np.float64] | None:
    """float64 [n, n], cosines of the embeddings whose pairs a metric averages; None if it averages none."""
    pair_rows = getattr(metric, "pair_rows", None)
    if kind not in metric.pairwise or pair_rows is None:
        return None
    rows: Tensor | None = pair_rows(kind, generated, references)
    if rows is None:
        return None
    x = rows.double()
    x = x / x.norm(dim=1, keepdim=True)
    made: NDArray[np.float64] = (x @ x.T).numpy()
    return made
