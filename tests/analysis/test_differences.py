"""Intervals of differences: against the paired t, Newcombe's published example, and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from diffusion_lab.analysis.differences import combined, correlation, difference, scaled, values_by_step
from diffusion_lab.analysis.intervals import summarise
from diffusion_lab.records import ScoreRow


def keyed(values: np.ndarray, each: int = 1) -> dict[tuple[object, int], float | None]:
    return {(f"p{i // each}", i % each): None if np.isnan(v) else float(v) for i, v in enumerate(values)}


def test_newcombes_example_of_two_independent_shares() -> None:
    """56 of 70 less 48 of 80, Newcombe 1998 (Statistics in Medicine 17:873), table II, method 10: .0524 to .3339."""
    a, b = (summarise([1.0] * yes + [0.0] * (n - yes), share=True) for yes, n in ((48, 80), (56, 70)))
    assert a.low is not None
    assert a.high is not None
    assert b.low is not None
    assert b.high is not None
    assert difference(48 / 80, (a.low, a.high), 56 / 70, (b.low, b.high)) == pytest.approx(
        (0.0524, 0.3339), abs=1e-4
    )


@pytest.mark.parametrize("n", [5, 8, 100])
def test_with_the_correlation_it_is_the_paired_t(n: int) -> None:
    rng = np.random.default_rng(n)
    shared = rng.normal(size=n)
    x, y = shared + 0.3 * rng.normal(size=n), 0.2 + 1.4 * shared + 0.3 * rng.normal(size=n)
    a, b = summarise(x), summarise(y)
    assert a.mean is not None
    assert b.mean is not None
    found = difference(a.mean, (a.low, a.high), b.mean, (b.low, b.high), correlation(keyed(x), keyed(y)))  # type: ignore[arg-type]
    expected = stats.ttest_rel(y, x).confidence_interval(0.95)
    assert found == pytest.approx((expected.low, expected.high))


def test_the_correlation_is_that_of_prompts() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 10, 3))
    expected = np.corrcoef(x.mean(1), y.mean(1))[0, 1]
    assert correlation(keyed(x.ravel(), 3), keyed(y.ravel(), 3)) == pytest.approx(expected)


def test_a_correlation_of_few_prompts_is_not_believed_unless_it_is_against_one() -> None:
    x, y = np.array([0.1, 0.5]), np.array([0.2, 0.6])
    assert correlation(keyed(x), keyed(y)) == 0
    assert correlation(keyed(x), keyed(y[::-1])) == pytest.approx(-1)
    assert correlation(keyed(x[:1]), keyed(y[:1])) == 0
    assert correlation({}, {}) == 0
    assert correlation(keyed(np.ones(9)), keyed(np.arange(9.0))) == 0  # nothing varies


def test_images_without_a_face_count_where_they_are_counted() -> None:
    x, y = np.array([0.5, np.nan, 0.6, 0.7, 0.4, 0.9]), np.array([0.5, 0.2, np.nan, 0.7, 0.6, 0.8])
    filled = np.corrcoef(np.nan_to_num(x), np.nan_to_num(y))[0, 1]
    both = ~np.isnan(x) & ~np.isnan(y)
    assert correlation(keyed(x), keyed(y), 0.0, 0.0) == pytest.approx(filled)
    assert correlation(keyed(np.r_[x, 0.1]), keyed(np.r_[y, 0.2])) == pytest.approx(
        np.corrcoef(np.r_[x[both], 0.1], np.r_[y[both], 0.2])[0, 1]
    )


@pytest.mark.parametrize(("p", "q", "n"), [(0.9, 0.95, 20), (0.5, 0.9, 20), (0.95, 0.97, 100)])
def test_coverage_of_paired_shares(p: float, q: float, n: int) -> None:
    """The same prompts at two steps: some have a face at both, by the noise that they share."""
    rng, inside, widths = np.random.default_rng(1), [], []
    for _ in range(600):
        shared = rng.random(n)
        luck = np.where(rng.random(n) < 0.6, shared, rng.random(n))
        x, y = (shared < p).astype(float), (luck < q).astype(float)
        a, b = summarise(x, share=True), summarise(y, share=True)
        assert a.mean is not None
        assert b.mean is not None
        limits = difference(a.mean, (a.low, a.high), b.mean, (b.low, b.high), correlation(keyed(x), keyed(y)))  # type: ignore[arg-type]
        inside.append(limits[0] <= q - p <= limits[1])
        widths.append(limits[1] - limits[0])
    assert 0.92 <= np.mean(inside) <= 0.998  # Wilson's is cautious near 1
    assert min(widths) > 0


@settings(max_examples=60, deadline=None)
@given(st.floats(-2, 2), st.floats(0, 1), st.floats(0, 1), st.floats(-3, 3))
def test_a_factor_may_turn_the_limits_round(value: float, below: float, above: float, factor: float) -> None:
    found, (low, high) = scaled(value, (value - below, value + above), factor)
    assert found == pytest.approx(value * factor)
    assert low - 1e-9 <= found <= high + 1e-9
    assert combined([(found, (low, high))]) == pytest.approx((low, high))


def test_rows_by_step_metric_and_image() -> None:
    def row(metric: str, value: float | None, slots: dict[str, str]) -> ScoreRow:
        return ScoreRow(7, "p0", 1, 5, metric, "1", value, slots)

    found = values_by_step([
        row("similarity", None, {}),
        row("clip_image", 0.5, {"identifier": "with"}),
        row("diversity", None, {"identifier": "without"}),  # not of the subject, so not missing
    ])  # fmt: skip
    assert found == {7: {"similarity": {("p0", 1): None}, "clip_image": {("p0", 1): 0.5}}}
