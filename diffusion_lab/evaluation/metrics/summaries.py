"""From a metric's values to its summary: range, pairs, and what an image without a face counts."""

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

NO_LIKENESS = 0.0  # the cosine of two things that have nothing in common


def of_images(
    metric: Metric, values: Tensor, generated: Features, references: References, ids: Sequence[Hashable]
) -> Summary:
    """The summary of an evaluation's images, clustered by prompt."""
    # Without a face in any reference the metric has no meaning, so neither has a number for what is missing.
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
    """The summary of a metric's ceiling or impostor line, or None where it has none."""
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
    """What an image without a face counts: no likeness at all, or as much as a photograph of another subject where
    that is lower still.

    `summarise` takes the mean over faces where that is lower than both, so that the mean over all images is never above
    it: see docs/metrics.md.
    """
    line = metric.impostor(references)
    known = [] if line is None else [value for value in line.tolist() if not math.isnan(value)]
    return min(NO_LIKENESS, math.fsum(known) / len(known)) if known else NO_LIKENESS


def comparable(metric: Metric, references: References) -> bool:
    """Whether an image with a face would have a value: asked of the photographs themselves."""
    photographs = (references.train, references.heldout, references.impostors)
    return any(not bool(metric(some, references).isnan().all()) for some in photographs if some is not None)


def _cosines(
    metric: Metric, kind: Literal["values", "ceiling"], generated: Features, references: References
) -> NDArray[np.float64] | None:
    """float64 [n, n], of the embeddings whose pairs a metric averages; None where it averages none."""
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
