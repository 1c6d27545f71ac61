"""KID, FID and Vendi against torchmetrics, scipy and closed forms, and what their definitions promise."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg, stats

from diffusion_lab.evaluation.metrics.distances import (
    frechet,
    frechet_legacy,
    kid,
    kid_pairs,
    polynomial_kernel,
    vendi,
)
from diffusion_lab.evaluation.metrics.diversity import diversity

seeds = st.integers(0, 10_000)
sizes = st.integers(2, 9)


def rows(n: int, d: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(shift, 1, (n, d)))


def rotation(d: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.array(stats.ortho_group.rvs(d, random_state=seed)).reshape(d, d))


# --- Frechet ------------------------------------------------------------------------------------------


def by_sqrtm(x: torch.Tensor, y: torch.Tensor) -> float:
    a, b = x.numpy(), y.numpy()
    s, t = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = linalg.sqrtm(s @ t)
    assert abs(root.imag).max() < 1e-6
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s + t - 2 * root.real))


@pytest.mark.parametrize(("n", "m", "d"), [(40, 30, 5), (200, 60, 8), (9, 50, 4)])
def test_frechet_equals_scipys_matrix_root_where_that_exists(n: int, m: int, d: int) -> None:
    x, y = rows(n, d, 1), rows(m, d, 2, 0.4) * 1.5
    assert frechet(x, y) == pytest.approx(by_sqrtm(x, y), rel=1e-9)
    assert frechet_legacy(x, y) == pytest.approx(by_sqrtm(x, y), rel=1e-3)


@pytest.mark.filterwarnings("ignore")
def test_frechet_equals_torchmetrics() -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Same(torch.nn.Module):
        num_features = 6

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    metric = FrechetInceptionDistance(feature=Same(), input_img_size=(6,), normalize=True).set_dtype(
        torch.float64
    )
    x, y = rows(50, 6, 3), rows(40, 6, 4, 0.3)
    metric.update(y, real=True)
    metric.update(x, real=False)
    assert frechet(x, y) == pytest.approx(float(metric.compute()), rel=1e-6)


def test_frechet_of_few_samples_is_the_limit_of_the_exact_root() -> None:
    """With a little of the identity added the covariances are regular and scipy can be asked."""
    x, y = rows(4, 10, 5), rows(3, 10, 6, 0.2)
    s, t = (np.cov(z.numpy(), rowvar=False) for z in (x, y))
    eye = 1e-9 * np.eye(10)
    half = linalg.sqrtm(s + eye).real
    middle = np.trace(linalg.sqrtm(half @ (t + eye) @ half).real)
    expected = float(((x.mean(0) - y.mean(0)) ** 2).sum()) + np.trace(s) + np.trace(t) - 2 * middle
    assert frechet(x, y) == pytest.approx(expected, abs=1e-3)


def test_frechet_in_one_dimension_is_the_closed_form() -> None:
    """(m1 - m2)^2 + (s1 - s2)^2: Dowson & Landau 1982."""
    x, y = rows(30, 1, 7) * 2, rows(25, 1, 8, 1.0)
    expected = (x.mean() - y.mean()) ** 2 + (x.std() - y.std()) ** 2
    assert frechet(x, y) == pytest.approx(float(expected))


def test_legacy_goes_negative_where_the_exact_one_does_not() -> None:
    """The published defect: few images, many dimensions, float32. How far differs by linear algebra library."""
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(5, 1000)))
    assert frechet(x, x) == pytest.approx(0, abs=1e-6)
    assert -60 < frechet_legacy(x, x) < -5
    assert frechet_legacy(x.float(), x.float()) == frechet_legacy(x, x)  # in float32 whatever comes in


@settings(max_examples=40, deadline=None)
@given(seeds, sizes, sizes, st.integers(1, 6))
def test_frechet_is_a_distance_of_sets(seed: int, n: int, m: int, d: int) -> None:
    x, y = rows(n, d, seed), rows(m, d, seed + 1, 0.5)
    value = frechet(x, y)
    assert value >= 0
    assert frechet(y, x) == pytest.approx(value, abs=1e-9)
    assert frechet(x, x) == pytest.approx(0, abs=1e-6)
    turn = rotation(d, seed) if d > 1 else torch.eye(1, dtype=torch.float64)
    assert frechet(x @ turn + 3, y @ turn + 3) == pytest.approx(value, abs=1e-7)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    assert frechet(x[order], y) == pytest.approx(value, abs=1e-9)


# --- KID ----------------------------------------------------------------------------------------------


def by_pairs(x: torch.Tensor, y: torch.Tensor) -> float:
    """The unbiased estimator as it is written."""

    def k(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a @ b / len(a) + 1) ** 3)

    def within(z: torch.Tensor) -> float:
        pairs = [k(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j]
        return sum(pairs) / len(pairs)

    return within(x) + within(y) - 2 * sum(k(a, b) for a in x for b in y) / (len(x) * len(y))


@settings(max_examples=40, deadline=None)
@given(seeds, sizes, sizes, st.integers(1, 6))
def test_kid_equals_its_definition_and_knows_no_order(seed: int, n: int, m: int, d: int) -> None:
    x, y = rows(n, d, seed), rows(m, d, seed + 1, 0.5)
    assert kid(x, y) == pytest.approx(by_pairs(x, y), abs=1e-9)
    assert kid(y, x) == pytest.approx(kid(x, y), abs=1e-9)
    assert kid(x.flip(0), y) == pytest.approx(kid(x, y), abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(seeds, sizes, sizes, st.integers(2, 6))
def test_kid_knows_no_axes_and_grows_with_the_distance(seed: int, n: int, m: int, d: int) -> None:
    """The kernel is of dot products: turned together nothing changes. Of far sets the distance is larger."""
    x, y, turn = rows(n, d, seed), rows(m, d, seed + 1), rotation(d, seed)
    assert kid(x @ turn, y @ turn) == pytest.approx(kid(x, y), abs=1e-7)
    assert kid(x + 50, y) > kid(x + 5, y) > kid(y, y) - 1e-9


@pytest.mark.filterwarnings("ignore")
def test_kid_equals_torchmetrics_on_one_subset_of_all() -> None:
    from torchmetrics.image.kid import KernelInceptionDistance

    class Same(torch.nn.Module):
        num_features = 6

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    metric = KernelInceptionDistance(feature=Same(), subsets=1, subset_size=30, normalize=True)
    x, y = rows(30, 6, 3), rows(30, 6, 4, 0.3)
    metric.update(y, real=True)
    metric.update(x, real=False)
    assert kid(x, y) == pytest.approx(float(metric.compute()[0]), rel=1e-5)


def test_kid_is_unbiased_for_small_sets_and_fid_is_not() -> None:
    """Same distribution: KID's mean over many small samples is 0 within its own error; FID's is far from 0."""
    pairs = [(rows(6, 5, 2 * s), rows(4, 5, 2 * s + 1)) for s in range(300)]
    values = np.array([kid(x, y) for x, y in pairs])
    assert abs(values.mean()) < 3 * stats.sem(values)
    assert (values < 0).any()
    assert np.mean([frechet(x, y) for x, y in pairs]) > 1


def test_kid_is_the_mean_of_its_pairs_up_to_a_constant() -> None:
    y = rows(5, 3, 2)
    differences = []
    for seed in range(3):
        value, pairs = kid_pairs(rows(7, 3, seed), y)
        assert value == pytest.approx(kid(rows(7, 3, seed), y))
        differences.append(value - float((pairs.sum() - pairs.diagonal().sum()) / 42))
    assert differences == pytest.approx([differences[0]] * 3)  # what the targets have among themselves


def test_kernel_is_the_papers() -> None:
    kernel = polynomial_kernel(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 1.0]]))
    assert float(kernel) == pytest.approx((5 / 2 + 1) ** 3)


# --- Vendi --------------------------------------------------------------------------------------------


def by_entropy(x: torch.Tensor) -> float:
    unit = x / x.norm(dim=1, keepdim=True)
    values = np.linalg.eigvalsh((unit @ unit.T).numpy() / len(x)).clip(0)
    return float(np.exp(stats.entropy(values)))


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 9), st.integers(1, 9))
def test_vendi_equals_scipys_entropy_and_its_bounds(seed: int, n: int, d: int) -> None:
    x = rows(n, d, seed)
    assert vendi(x) == pytest.approx(by_entropy(x), rel=1e-6)
    assert 1 - 1e-9 <= vendi(x) <= min(n, d) + 1e-9
    assert vendi(x.repeat(3, 1)) == pytest.approx(vendi(x), rel=1e-6)  # copies add nothing
    assert vendi(x * torch.arange(1, n + 1)[:, None]) == pytest.approx(vendi(x), rel=1e-6)  # nor do lengths


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(2, 9), st.integers(2, 9))
def test_vendi_and_diversity_know_neither_order_nor_axes(seed: int, n: int, d: int) -> None:
    x, turn = rows(n, d, seed), rotation(d, seed)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    assert vendi(x[order]) == pytest.approx(vendi(x), rel=1e-6)
    assert vendi(x @ turn) == pytest.approx(vendi(x), rel=1e-6)
    torch.testing.assert_close(diversity(x @ turn), diversity(x), atol=1e-6, rtol=0)
    torch.testing.assert_close(diversity(x[order]), diversity(x)[order], atol=1e-6, rtol=0)


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(2, 9), st.integers(1, 9))
def test_sets_of_one_image_repeated(seed: int, n: int, d: int) -> None:
    """Degenerate, but defined: no spread, one effective image, a distance of the means alone."""
    x = rows(1, d, seed).repeat(n, 1)
    y = rows(1, d, seed + 1).repeat(3, 1)
    assert vendi(x) == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(diversity(x), torch.zeros(n), atol=1e-6, rtol=0)
    assert frechet(x, y) == pytest.approx(float((x[0] - y[0]).square().sum()), rel=1e-9, abs=1e-9)
    same = float(polynomial_kernel(x[:1], x[:1]) + polynomial_kernel(y[:1], y[:1]))
    assert kid(x, y) == pytest.approx(same - 2 * float(polynomial_kernel(x[:1], y[:1])), abs=1e-6)


def test_vendi_counts_different_images() -> None:
    assert vendi(torch.eye(5)) == pytest.approx(5)
    assert vendi(torch.ones(5, 3)) == pytest.approx(1)
    assert vendi(torch.eye(3).repeat(4, 1)) == pytest.approx(3)
    assert vendi(torch.tensor([[1.0, 0.0]])) == pytest.approx(1)


# --- degenerate sets ----------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", [frechet, frechet_legacy, kid])
def test_too_few_or_broken_sets_are_errors(distance: object) -> None:
    assert callable(distance)
    with pytest.raises(ValueError, match="at least 2"):
        distance(rows(1, 3, 0), rows(4, 3, 0))
    with pytest.raises(ValueError, match="at least 2"):
        distance(rows(4, 3, 0), rows(1, 3, 0))
    with pytest.raises(ValueError, match="finite"):
        distance(torch.full((3, 3), math.nan), rows(4, 3, 0))


def test_vendi_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        vendi(torch.zeros(0, 3))
    with pytest.raises(ValueError, match="not zero"):
        vendi(torch.zeros(2, 3))


# --- speed --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_five_thousand_images_take_seconds() -> None:
    """CLIP's size. The bound is loose for a shared machine; each takes about a second on two cores."""
    x, y = rows(5000, 768, 0), rows(14, 768, 1)
    for measure in (
        lambda: diversity(x),
        lambda: kid_pairs(x, y),
        lambda: vendi(x),
        lambda: frechet(x, y),
    ):
        started = time.perf_counter()
        measure()
        assert time.perf_counter() - started < 30
