"""Distances between sets of features, and the Vendi score: pure functions of float tensors [n, d].

All sums are in float64. ValueError for sets that are too small, or with values that are not finite.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def checked(rows: Tensor, least: int, what: str) -> Tensor:
    """float64 [n, d]; ValueError for fewer than ``least`` rows or for values that are not finite."""
    if rows.ndim != 2 or len(rows) < least:
        raise ValueError(f"{what} needs at least {least} images in each set, there are {len(rows)}")
    if not bool(rows.isfinite().all()):
        raise ValueError(f"{what} needs features that are finite")
    return rows.double()


# --- Frechet distance -----------------------------------------------------------------------------------


def frechet(x: Tensor, y: Tensor) -> float:
    """||m1 - m2||^2 + Tr(S1 + S2 - 2 (S1 S2)^1/2) of Gaussians fitted to ``x`` and ``y`` (n - 1 in S).

    Heusel et al. 2017 (arXiv:1706.08500). With A = centred rows / sqrt(n - 1), S = A^T A and the eigenvalues
    of S1 S2 are the squared singular values of A1 A2^T, so that Tr (S1 S2)^1/2 is the nuclear norm of
    A1 A2^T. This is exact for any number of rows, real and never negative, without a matrix square root.
    With few samples the distance is still biased upwards; see `set_distances.Fid`.
    """
    import torch

    x, y = checked(x, 2, "FID"), checked(y, 2, "FID")
    a, b = _factor(x), _factor(y)
    means = (x.mean(0) - y.mean(0)).square().sum()
    cross = torch.linalg.svdvals(a @ b.T).sum()
    return max(0.0, float(means + a.square().sum() + b.square().sum() - 2 * cross))


def _factor(x: Tensor) -> Tensor:
    """A [min(n, d), d] with A^T A the covariance of ``x``."""
    import torch

    a = (x - x.mean(0)) / (len(x) - 1) ** 0.5
    root: Tensor = torch.linalg.qr(a, mode="r").R if a.shape[0] > a.shape[1] else a
    return root


def frechet_legacy(x: Tensor, y: Tensor) -> float:
    """The same with the real part of scipy's complex matrix square root in float32, as in some published code.

    Of singular covariances (fewer images than dimensions) that root is mostly rounding error: for two identical sets of 5 rows
    and 1000 columns the result is near -20, and depends on the linear algebra library. Included only to show how
    unreliable such values are.
    """
    import warnings

    import numpy as np
    from scipy.linalg import sqrtm

    x, y = checked(x, 2, "FID"), checked(y, 2, "FID")
    rows = [z.float().numpy() for z in (x, y)]
    first, second = (np.cov(z, rowvar=False, dtype=np.float32).reshape(z.shape[1], -1) for z in rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the singular matrix is intended
        root = sqrtm(first @ second)
    means = float(((rows[0].mean(0) - rows[1].mean(0)) ** 2).sum())
    return means + float(np.trace(first) + np.trace(second) - 2 * np.trace(np.real(root)))


# --- kernel distance ------------------------------------------------------------------------------------


def polynomial_kernel(x: Tensor, y: Tensor) -> Tensor:
    """(x . y / d + 1)^3: float64 [n, m]. Binkowski et al. 2018 (arXiv:1801.01401), section 3."""
    kernel = x.double() @ y.double().T
    return kernel.div_(x.shape[1]).add_(1).pow_(3)


def kid(x: Tensor, y: Tensor) -> float:
    """Unbiased MMD^2 with `polynomial_kernel`: means over pairs of different images. May be negative.

    Gretton et al. 2012, "A kernel two-sample test", equation 3. Its expected value does not depend on the
    number of images.
    """
    return kid_pairs(x, y)[0]


def kid_pairs(x: Tensor, y: Tensor) -> tuple[float, Tensor]:
    """KID, and its kernel over pairs of ``x``, with ``y`` fixed: float64 [n, n]. KID is the kernel's mean plus a constant.

    k(x_i, x_j) - mean_y k(x_i, y) - mean_y k(x_j, y); the diagonal is not used.
    """
    x, y = checked(x, 2, "KID"), checked(y, 2, "KID")
    within, between = polynomial_kernel(x, x), polynomial_kernel(x, y)
    constant = _off_diagonal_mean(polynomial_kernel(y, y))
    value = float(_off_diagonal_mean(within) + constant - 2 * between.mean())
    to_targets = between.mean(1)
    return value, within - to_targets[:, None] - to_targets[None, :]


def _off_diagonal_mean(kernel: Tensor) -> Tensor:
    n = len(kernel)
    return (kernel.sum() - kernel.diagonal().sum()) / (n * (n - 1))


# --- Vendi score ----------------------------------------------------------------------------------------


def vendi(rows: Tensor) -> float:
    """exp(-sum l log l) over the eigenvalues l of K / n, K the cosines of the rows: 1 to min(n, d).

    Friedman & Dieng 2022 (arXiv:2210.02410), definition 3.1: the effective number of different images.
    K / n and X^T X / n have the same nonzero eigenvalues, so the smaller of the two is decomposed.
    """
    import torch

    x = checked(rows, 1, "the Vendi score")
    lengths = x.norm(dim=1, keepdim=True)
    if not bool((lengths > 0).all()):
        raise ValueError("the Vendi score needs embeddings that are not zero")
    x = x / lengths
    n, d = x.shape
    values = torch.linalg.eigvalsh((x.T @ x if d <= n else x @ x.T) / n)
    kept = values[values > 1e-12]
    shares = kept / kept.sum()
    return float(torch.exp(-(shares * shares.log()).sum()))
