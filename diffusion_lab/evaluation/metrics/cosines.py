"""Cosines between rows of embeddings, shared by the metrics. Pure functions of tensors.

Rows are unit length, or NaN if there is nothing to compare (no face). Sums are computed in float64, so that
a row's value does not depend on the other rows of its batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def defined(rows: Tensor | None) -> Tensor | None:
    """The finite rows, float64 [k, d]; None if there are none."""
    if rows is None:
        return None
    kept = rows[rows.isfinite().all(dim=1)].double()
    return kept if len(kept) else None


def all_nan(n: int, like: Tensor) -> Tensor:
    """float32 [n] of NaN."""
    return like.new_full((n,), float("nan")).float()


def mean_cosine(rows: Tensor, references: Tensor | None) -> Tensor:
    """float32 [n]: mean of each row's cosines with the ``references`` (without NaN rows), or NaN."""
    against = defined(references)
    if against is None:
        return all_nan(len(rows), rows)
    return (rows.double() @ against.T).mean(dim=1).float()


def nearest_cosine(rows: Tensor, references: Tensor | None) -> Tensor:
    """float32 [n]: the largest of each row's cosines with ``references``; NaN if undefined."""
    against = defined(references)
    if against is None:
        return all_nan(len(rows), rows)
    return (rows.double() @ against.T).amax(dim=1).float()


def leave_one_out(rows: Tensor | None) -> Tensor | None:
    """float32 [m]: the mean of each row's cosines with all others; None for fewer than two finite rows.

    A NaN row stays NaN and is excluded from the other means.
    """
    kept = defined(rows)
    if rows is None or kept is None or len(kept) < 2:
        return None
    x = rows.double()
    own = (x * x).sum(dim=1)
    return (((x @ kept.T).sum(dim=1) - own) / (len(kept) - 1)).float()


def or_none(values: Tensor) -> Tensor | None:
    """The values, or None if all are NaN."""
    return None if bool(values.isnan().all()) else values


def concatenate(*tensors: Tensor | None) -> Tensor | None:
    """The tensors that are not None, concatenated; None if all are."""
    import torch

    there = [tensor for tensor in tensors if tensor is not None]
    return torch.cat(there) if there else None
