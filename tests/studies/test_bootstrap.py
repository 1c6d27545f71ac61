"""Intervals over subjects and prompts: against the plain pigeonhole bootstrap, and how often they contain the truth."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from diffusion_lab.studies.bootstrap import (
    BOTH,
    NEITHER,
    PROMPTS,
    SUBJECTS,
    Interval,
    combination,
    difference_of,
    mean_over,
    prompt_weights,
    weighted,
)
from diffusion_lab.studies.measures import stops
from diffusion_lab.studies.stops import curve
from tests.studies import planted

SIMULATIONS = 400
# Standard deviations between subjects, between prompts, and of single images.
MIXES = [(0.05, 0.05, 0.2), (0.1, 0.02, 0.1), (0.01, 0.1, 0.2), (0.02, 0.0, 0.25)]


def replicated(scores: np.ndarray) -> np.ndarray:
    """[1 + draws, subjects] of scores [subjects, prompts]."""
    return weighted(scores.astype(np.float32), prompt_weights(scores.shape[1])).astype(float)


def crossed(
    rng: np.random.Generator, subjects: int, prompts: int, mix: tuple[float, float, float]
) -> np.ndarray:
    of_subject, of_prompt, of_image = mix
    return (
        of_subject * rng.normal(size=(subjects, 1))
        + of_prompt * rng.normal(size=(1, prompts))
        + of_image * rng.normal(size=(subjects, prompts))
    )


def share_inside(intervals: list[Interval], truth: float = 0.0) -> float:
    return float(np.mean([i.low <= truth <= i.high for i in intervals]))


def test_weights_are_draws_with_replacement() -> None:
    weights = prompt_weights(48)
    assert weights.shape == (401, 48)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(weights[0], 1 / 48)
    assert set(np.unique(np.round(weights[1:] * 48, 4)) % 1) == {0.0}
    assert prompt_weights(48) is weights
    assert not np.array_equal(prompt_weights(48, seed=1), weights)


def test_a_run_without_prompts_has_rows_without_weights() -> None:
    assert prompt_weights(0).shape == (401, 0)
    run = replace(planted.planted(subjects=("anna",), counts=(4,)).runs[0], prompts=(), by_prompt={})
    np.testing.assert_array_equal(curve(run, "aesthetics"), np.tile(run.values["aesthetics"], (401, 1)))
    assert stops(run, planted.INFOS) is not None


def test_prompts_without_a_value_do_not_count() -> None:
    scores = np.array([[1.0, np.nan, 3.0, 5.0]], np.float32)
    found = weighted(scores, prompt_weights(4))
    assert found[0, 0] == pytest.approx(3.0)
    plain = weighted(scores[:, [0, 2, 3]], prompt_weights(4)[:, [0, 2, 3]])
    rest = prompt_weights(4)[:, [0, 2, 3]].sum(1)
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(found[:, 0], plain[:, 0] / rest, rtol=1e-5)


def test_the_parts_are_those_of_the_pigeonhole_bootstrap() -> None:
    """Drawing subjects and prompts both gives V_S + V_P + V_SP with the bootstrap's own factors."""
    rng = np.random.default_rng(0)
    subjects, prompts, draws = 6, 20, 40_000
    scores = crossed(rng, subjects, prompts, (0.1, 0.1, 0.3))
    s = rng.multinomial(subjects, [1 / subjects] * subjects, size=draws) / subjects
    p = rng.multinomial(prompts, [1 / prompts] * prompts, size=draws) / prompts
    plain = np.einsum("bs,sp,bp->b", s, scores, p).var()
    rows, columns = scores.mean(1), scores.mean(0)
    noise = scores - rows[:, None] - columns + scores.mean()
    expected = rows.var() / subjects + columns.var() / prompts + (noise**2).mean() / subjects / prompts
    assert plain == pytest.approx(expected, rel=0.04)
    # The corrected variance, from unbiased parts, each counted once.
    v_s, v_p = rows.var(ddof=1) / subjects, columns.var(ddof=1) / prompts
    v_sp = (noise**2).sum() / (subjects - 1) / (prompts - 1) / subjects / prompts
    many = weighted(scores.astype(np.float32), prompt_weights(prompts, 20_000)).astype(float)
    found = mean_over(many, prompts)
    assert found.error**2 == pytest.approx(max(v_s + v_p - v_sp, v_s), rel=0.03)
    assert found.over == BOTH
    assert found.value == pytest.approx(scores.mean())


def test_without_prompts_it_is_the_interval_of_student() -> None:
    q = np.tile(np.random.default_rng(0).normal(size=8), (5, 1))
    found = mean_over(q, 0)
    expected = stats.t.interval(0.95, 7, q[0].mean(), stats.sem(q[0]))
    assert (found.low, found.high) == pytest.approx(expected)
    assert found.over == SUBJECTS
    two = difference_of(q[:, :5], q[:, 5:], 0)
    welch = stats.ttest_ind(q[0, :5], q[0, 5:], equal_var=False)
    assert two.error == pytest.approx(abs((q[0, :5].mean() - q[0, 5:].mean()) / welch.statistic))
    assert two.degrees == pytest.approx((1 / 5 + 1 / 3) ** 2 / (1 / 25 / 4 + 1 / 9 / 2))


def test_one_subject_is_over_prompts_and_says_so() -> None:
    found = mean_over(replicated(np.random.default_rng(0).normal(size=(1, 30))), 30)
    assert found.over == PROMPTS
    assert found.subjects == 1
    assert found.low < found.value < found.high


def test_nothing_to_estimate_from() -> None:
    for q in (np.zeros((1, 0)), np.full((3, 2), np.nan), np.ones((5, 4))):
        found = mean_over(q, 10)
        assert found.over == NEITHER
        assert not found.known
        assert math.isnan(found.low)


def test_the_smallest_effect_is_seen_with_the_power() -> None:
    rng = np.random.default_rng(3)
    sizes = [mean_over(replicated(crossed(rng, 10, 48, MIXES[0])), 48).smallest() for _ in range(40)]
    true = float(np.median(sizes))
    seen = [
        mean_over(replicated(true + crossed(rng, 10, 48, MIXES[0])), 48).low > 0 for _ in range(SIMULATIONS)
    ]
    assert 0.7 <= np.mean(seen) <= 0.9


@pytest.mark.parametrize("mix", MIXES)
def test_coverage_of_a_mean(mix: tuple[float, float, float]) -> None:
    rng = np.random.default_rng(1)
    found = [mean_over(replicated(crossed(rng, 10, 48, mix)), 48) for _ in range(SIMULATIONS)]
    assert 0.93 <= share_inside(found) <= 0.97


@pytest.mark.parametrize("subjects", [3, 5, 20])
def test_coverage_with_other_numbers_of_subjects(subjects: int) -> None:
    rng = np.random.default_rng(2)
    found = [mean_over(replicated(crossed(rng, subjects, 48, MIXES[0])), 48) for _ in range(SIMULATIONS)]
    assert 0.925 <= share_inside(found) <= 0.975


@pytest.mark.parametrize("mix", MIXES)
def test_coverage_of_women_less_men(mix: tuple[float, float, float]) -> None:
    rng = np.random.default_rng(3)
    found = []
    for _ in range(SIMULATIONS):
        q = replicated(crossed(rng, 10, 48, mix))
        found.append(difference_of(q[:, :5], q[:, 5:], 48))
    assert 0.93 <= share_inside(found) <= 0.97


@pytest.mark.parametrize("mix", MIXES)
def test_coverage_of_one_method_less_another(mix: tuple[float, float, float]) -> None:
    """Paired by subject; the methods' effects differ between subjects and prompts."""
    rng = np.random.default_rng(4)
    found = []
    for _ in range(SIMULATIONS):
        shared = crossed(rng, 10, 48, (0.2, 0.2, 0.0))
        first, second = (shared + crossed(rng, 10, 48, mix) for _ in "ab")
        found.append(mean_over(replicated(first) - replicated(second), 48))
    assert 0.93 <= share_inside(found) <= 0.97


def test_coverage_of_a_trend() -> None:
    """Least-squares slopes of each subject, of curves with crossed effects at every step."""
    rng, steps = np.random.default_rng(5), np.linspace(-1, 1, 9)
    contrast = steps / (steps**2).sum()
    found = []
    for _ in range(SIMULATIONS):
        slope = crossed(rng, 10, 48, (0.03, 0.03, 0.0))
        scores = sum(
            c * (x * slope + crossed(rng, 10, 48, (0.02, 0.03, 0.2)))
            for c, x in zip(contrast, steps, strict=True)
        )
        found.append(mean_over(replicated(np.asarray(scores)), 48))
    assert 0.93 <= share_inside(found) <= 0.97


def test_a_combination_needs_every_group() -> None:
    q = replicated(crossed(np.random.default_rng(0), 4, 10, MIXES[0]))
    assert combination([(1.0, q), (-1.0, q[:, :0])], 10).over == NEITHER


def test_a_variance_at_least() -> None:
    exact = mean_over(np.full((5, 4), 3.0), 10)
    found = exact.at_least(0.25)
    assert (found.value, found.error) == (3.0, 0.5)
    assert (found.low, found.high) == pytest.approx(
        (3 - stats.t.ppf(0.975, 3) * 0.5, 3 + stats.t.ppf(0.975, 3) * 0.5)
    )
    wide = mean_over(replicated(np.random.default_rng(0).normal(size=(4, 30))), 30)
    assert wide.at_least(wide.error**2 / 2) == wide
    assert wide.at_least(4.0).error == 2.0
