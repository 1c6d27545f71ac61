"""Shares: exact coverage of Wilson's interval, by the binomial distribution, and of clustered shares by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from diffusion_lab.analysis.intervals import summarise


def interval(yes: int, n: int) -> tuple[float, float] | None:
    found = summarise([1.0] * yes + [0.0] * (n - yes), share=True)
    return None if found.low is None or found.high is None else (found.low, found.high)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_so_few_have_none(n: int) -> None:
    assert {interval(yes, n) for yes in range(n + 1)} == {None}


@pytest.mark.parametrize(
    ("n", "least", "within"),
    [(5, 0.83, 0.70), (10, 0.89, 0.80), (20, 0.91, 0.93), (40, 0.92, 0.98), (100, 0.92, 1)],
)
def test_exact_coverage(n: int, least: float, within: float) -> None:
    """A share of n draws has n + 1 outcomes, so its coverage jumps with the truth; on the average it is .95, it never
    falls far, and it lies between .90 and .98 for most truths.
    """
    truths = np.arange(0.02, 0.985, 0.005)
    limits = np.array([interval(yes, n) for yes in range(n + 1)])
    outcomes = np.array([stats.binom.pmf(np.arange(n + 1), n, p) for p in truths])
    inside = (limits[:, 0] <= truths[:, None]) & (truths[:, None] <= limits[:, 1])
    covered = (outcomes * inside).sum(1)
    assert 0.94 < covered.mean() < 0.965
    assert covered.min() > least
    assert ((covered >= 0.90) & (covered <= 0.98)).mean() >= within


@pytest.mark.parametrize(("yes", "low"), [(20, 0.839), (19, 0.764), (18, 0.699)])
def test_twenty_images(yes: int, low: float) -> None:
    found = interval(yes, 20)
    assert found is not None
    expected = stats.binomtest(yes, 20).proportion_ci(method="wilson")
    assert found == pytest.approx((expected.low, expected.high))
    assert found[0] == pytest.approx(low, abs=1e-3)


@pytest.mark.parametrize(("prompts", "each"), [(10, 4), (40, 4), (40, 2), (10, 20)])
@pytest.mark.parametrize("shape", [(4.0, 1.0), (1.0, 0.4), (30.0, 3.0)])
def test_coverage_where_prompts_differ(prompts: int, each: int, shape: tuple[float, float]) -> None:
    """Each prompt has its own share of faces, from a beta distribution."""
    rng, true = np.random.default_rng(3), shape[0] / sum(shape)
    ids = np.arange(prompts).repeat(each).tolist()
    inside = []
    for _ in range(300):
        p = rng.beta(*shape, size=prompts)
        found = summarise((rng.random((prompts, each)) < p[:, None]).ravel().astype(float), ids, share=True)
        assert found.low is not None
        assert found.high is not None
        inside.append(found.low <= true <= found.high)
    assert 0.90 <= np.mean(inside) <= 0.995
