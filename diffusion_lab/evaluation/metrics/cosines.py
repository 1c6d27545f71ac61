"""Cosines between rows of embeddings, shared by the metrics. Pure functions of tensors.

Rows are unit length, or NaN where there is nothing to compare (no face). Sums are taken in float64, so that
a row's value does not depend on the other rows of its batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def defined(rows: Tensor | None) -> Tensor | None:
    """The rows that are finite, float64 [k, d]; None where there are none."""
    if rows is None:
        return None
    kept = rows[rows.isfinite().all(dim=1)].double()
    return kept if len(kept) else None


def all_nan(n: int, like: Tensor) -> Tensor:
    """float32 [n] of NaN."""
    return like.new_full((n,), float("nan")).float()


def mean_cosine(rows: Tensor, references: Tensor | None) -> Tensor:
    """float32 [n]: mean of each row's cosines with the ``references`` (not those of NaN), or NaN."""
    against = defined(references)
    if against is None:
        return all_nan(len(rows), rows)
    return (rows.double() @ against.T).mean(dim=1).float()


def nearest_cosine(rows: Tensor, references: Tensor | None) -> Tensor:
    """float32 [n]: the largest of each row's cosines with ``references``; NaN where undefined."""
    against = defined(references)
    if against is None:
        return all_nan(len(rows), rows)
    return (rows.double() @ against.T).amax(dim=1).float()


def leave_one_out(rows: Tensor | None) -> Tensor | None:
    """float32 [m]: the mean of each row's cosines with every other; None for fewer than two with a value.

    A row of NaN stays NaN and is left out of the others' means.
    """
    kept = defined(rows)
    if rows is None or kept is None or len(kept) < 2:
        return None
    x = rows.double()
    own = (x * x).sum(dim=1)
    return (((x @ kept.T).sum(dim=1) - own) / (len(kept) - 1)).float()


def or_none(values: Tensor) -> Tensor | None:
    """None in place of values that are all NaN."""
    return None if bool(values.isnan().all()) else values


def concatenate(*tensors: Tensor | None) -> Tensor | None:
    """Those that are there, one after another; None where none is."""
    import torch

    there = [tensor for tensor in tensors if tensor is not None]
    return torch.cat(there) if there else None
