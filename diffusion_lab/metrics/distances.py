"""Distances between sets of features, and the Vendi score: pure functions of float tensors [n, d].

All sums are float64. `ValueError` for sets too small to have the number, or with values that are not finite.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def checked(rows: Tensor, least: int, what: str) -> Tensor:
    """float64 [n, d]; ValueError for fewer than ``least`` rows or numbers that are not finite."""
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
    A1 A2^T: exact for any number of rows, real and never negative, and no matrix root is taken. The distance
    of so few samples is biased upwards all the same; see `metrics/fid.py`.
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
    """The same with the real part of scipy's complex matrix root, as published code had it.

    Of singular covariances (fewer images than dimensions) the root is inaccurate and complex, and the
    "distance" may come out negative. Only to set beside numbers made that way.
    """
    import warnings

    import numpy as np
    from scipy.linalg import sqrtm

    x, y = checked(x, 2, "FID"), checked(y, 2, "FID")
    first, second = (np.cov(z.numpy(), rowvar=False).reshape(z.shape[1], -1) for z in (x, y))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the matrix is singular is the point
        root = sqrtm(first @ second)
    means = float((x.mean(0) - y.mean(0)).square().sum())
    return means + float(np.trace(first) + np.trace(second) - 2 * np.trace(np.real(root)))


# --- kernel distance ------------------------------------------------------------------------------------


def polynomial_kernel(x: Tensor, y: Tensor) -> Tensor:
    """(x . y / d + 1)^3: float64 [n, m]. Binkowski et al. 2018 (arXiv:1801.01401), section 3."""
    kernel = x.double() @ y.double().T
    return kernel.div_(x.shape[1]).add_(1).pow_(3)


def kid(x: Tensor, y: Tensor) -> float:
    """Unbiased MMD^2 with `polynomial_kernel`: means over pairs of different images, so it may be negative.

    Gretton et al. 2012, "A kernel two-sample test", equation 3. Its expectation does not depend on the
    numbers of images.
    """
    x, y = checked(x, 2, "KID"), checked(y, 2, "KID")
    within, between = _kid_parts(x, y)
    return float(
        _off_diagonal_mean(within) + _off_diagonal_mean(polynomial_kernel(y, y)) - 2 * between.mean()
    )


def kid_draws(x: Tensor, y: Tensor, weights: Tensor) -> tuple[float, Tensor]:
    """KID, and its value in each bootstrap sample: float64 [replicates].

    ``weights`` [replicates, n]: how often each row of ``x`` was drawn; ``y`` stays as it is. Pairs of an image
    with itself are left out however often it was drawn: a plain bootstrap would take them for likeness.
    """
    x, y = checked(x, 2, "KID"), checked(y, 2, "KID")
    within, between = _kid_parts(x, y)
    constant = _off_diagonal_mean(polynomial_kernel(y, y))
    value = float(_off_diagonal_mean(within) + constant - 2 * between.mean())
    within.fill_diagonal_(0)
    w = weights.double()
    pairs = w.sum(1).square() - w.square().sum(1)
    kept = pairs > 0  # a sample of one prompt with one image has no pair
    w, pairs = w[kept], pairs[kept]
    first = ((w @ within) * w).sum(1) / pairs
    second = (w @ between.mean(1)) / w.sum(1)
    return value, first + constant - 2 * second


def _kid_parts(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return polynomial_kernel(x, x), polynomial_kernel(x, y)


def _off_diagonal_mean(kernel: Tensor) -> Tensor:
    n = len(kernel)
    return (kernel.sum() - kernel.diagonal().sum()) / (n * (n - 1))


# --- Vendi score ----------------------------------------------------------------------------------------


def vendi(rows: Tensor) -> float:
    """exp(-sum l log l) over the eigenvalues l of K / n, K the cosines of the rows: 1 to min(n, d).

    Friedman & Dieng 2022 (arXiv:2210.02410), definition 3.1: an effective number of different images.
    K / n and X^T X / n have the same eigenvalues but zeros, so the smaller of the two is decomposed.
    """
    return vendi_influence(rows)[0]


def vendi_influence(rows: Tensor) -> tuple[float, Tensor]:
    """The score and each image's influence on it, float64 [n], of mean zero.

    With S = X^T X / n = sum l v v^T and H = -sum l log l, a small change of weights moves each eigenvalue by
    v^T dS v, so that image x has the influence exp(H) * (-sum log(l) ((v . x)^2 - l)).
    """
    import torch

    x = checked(rows, 1, "the Vendi score")
    lengths = x.norm(dim=1, keepdim=True)
    if not bool((lengths > 0).all()):
        raise ValueError("the Vendi score needs embeddings that are not zero")
    x = x / lengths
    n, d = x.shape
    if d <= n:
        values, vectors = torch.linalg.eigh(x.T @ x / n)
        squares = (x @ vectors).square()  # [n, d]: (v . x)^2
    else:
        values, vectors = torch.linalg.eigh(x @ x.T / n)
        squares = n * values.clamp(min=0) * vectors.square()  # v = X^T u / sqrt(n l), so (v . x)^2 = n l u^2
    kept = values > 1e-12
    l, squares = values[kept], squares[:, kept]  # noqa: E741 - the eigenvalue lambda of the paper
    l = l / l.sum()  # noqa: E741
    score = float(torch.exp(-(l * l.log()).sum()))
    influence = -score * ((squares - l) * l.log()).sum(1)
    return score, influence
