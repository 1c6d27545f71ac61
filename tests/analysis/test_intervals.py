from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from diffusion_lab.analysis.intervals import (
    interval_of,
    normal_quantile,
    student_t,
    summarise,
    undefined_summary,
)

NAN = math.nan
numbers = st.lists(st.floats(-10, 10, width=32), min_size=3, max_size=20)


def test_without_repeated_prompts_it_is_the_t_interval_of_scipy() -> None:
    x = np.random.default_rng(0).normal(size=17)
    summary = summarise(x, [f"p{i}" for i in range(17)])
    assert summary.mean == pytest.approx(x.mean())
    assert summary.standard_error == pytest.approx(stats.sem(x))
    expected = stats.t.interval(0.95, 16, loc=x.mean(), scale=stats.sem(x))
    assert (summary.low, summary.high) == pytest.approx(expected)
    assert (summary.n, summary.missing, summary.penalised) == (17, 0, None)


@pytest.mark.parametrize("degrees", [1, 2, 5, 99, 10_000])
def test_student_t_is_scipys(degrees: int) -> None:
    assert student_t(degrees) == pytest.approx(stats.t.ppf(0.975, degrees))


def test_images_of_one_prompt_are_one_observation() -> None:
    """Four copies of each prompt's image carry no more information than one."""
    x = np.random.default_rng(1).normal(size=9)
    once = summarise(x, list(range(9)))
    copies = summarise(np.repeat(x, 4), np.repeat(np.arange(9), 4).tolist())
    assert copies.mean == pytest.approx(once.mean)
    assert copies.standard_error == pytest.approx(once.standard_error)
    assert (copies.low, copies.high) == pytest.approx((once.low, once.high))


def test_unequal_clusters_by_the_written_formula() -> None:
    x, ids = np.array([1.0, 2.0, 4.0, 8.0, 16.0]), ["a", "a", "b", "c", "c"]
    residual = x - x.mean()
    total = sum(sum(residual[i] for i in range(5) if ids[i] == g) ** 2 for g in "abc")
    assert summarise(x, ids).standard_error == pytest.approx(math.sqrt(3 / 2 * total) / 5)


def test_missing_images_are_counted_and_penalised() -> None:
    summary = summarise([0.5, NAN, 0.7, NAN], list("abcd"), can_miss=True)
    assert (summary.n, summary.missing) == (2, 2)
    assert summary.mean == pytest.approx(0.6)
    assert summary.penalised == pytest.approx(0.3)
    assert summarise([0.5, 0.7], list("ab"), can_miss=True).penalised == pytest.approx(0.6)


def test_nothing_defined() -> None:
    summary = summarise([NAN, NAN], list("ab"), can_miss=True)
    assert (summary.mean, summary.n, summary.missing, summary.penalised) == (None, 0, 2, 0.0)
    assert (summary.standard_error, summary.low, summary.high) == (None, None, None)
    assert summarise([NAN, NAN], list("ab")).penalised is None


@pytest.mark.parametrize("values", [[0.5], [0.5, NAN]])
def test_one_value_has_no_error(values: list[float]) -> None:
    summary = summarise(values, list("ab")[: len(values)])
    assert summary.mean == 0.5
    assert (summary.standard_error, summary.low, summary.high) == (None, None, None)


def test_refuses_what_it_cannot_average() -> None:
    with pytest.raises(ValueError, match="infinite"):
        summarise([1.0, math.inf], ["a", "b"])
    with pytest.raises(ValueError, match="2 values for 1"):
        summarise([1.0, 2.0], ["a"])


def _pair_means(points: np.ndarray) -> np.ndarray:
    """Each point's mean distance to the others, by plain loops."""
    n = len(points)
    return np.array([sum(abs(points[i] - points[j]) for j in range(n) if j != i) / (n - 1) for i in range(n)])


def test_pairwise_is_the_jackknife_over_images() -> None:
    points = np.random.default_rng(2).normal(size=12)
    n = len(points)
    left_out = np.array([_pair_means(np.delete(points, i)).mean() for i in range(n)])
    jackknife = math.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum())
    assert summarise(_pair_means(points), list(range(n)), pairwise=True).standard_error == pytest.approx(
        jackknife
    )
    assert summarise(_pair_means(points[:2]), [0, 1], pairwise=True).standard_error is None


def test_pairwise_error_is_right_where_the_plain_one_is_half() -> None:
    """The spread of the mean over many drawn sets is the truth that the standard error estimates."""
    generator = np.random.default_rng(3)
    draws = [generator.normal(size=30) for _ in range(400)]
    means = np.array([_pair_means_fast(x).mean() for x in draws])
    estimate = np.mean(
        [summarise(_pair_means_fast(x), range(30), pairwise=True).standard_error for x in draws]
    )
    plain = np.mean([summarise(_pair_means_fast(x), range(30)).standard_error for x in draws])
    assert estimate == pytest.approx(means.std(), rel=0.12)
    assert plain < 0.6 * means.std()


def _pair_means_fast(points: np.ndarray) -> np.ndarray:
    return np.abs(points[:, None] - points[None]).sum(1) / (len(points) - 1)


@settings(max_examples=40, deadline=None)
@given(numbers, st.randoms(use_true_random=False))
def test_order_changes_nothing(values: list[float], random: object) -> None:
    pairs = list(zip(values, [f"p{i % 3}" for i in range(len(values))], strict=True))
    random.shuffle(pairs)  # type: ignore[attr-defined]
    before = summarise(values, [f"p{i % 3}" for i in range(len(values))])
    after = summarise([v for v, _ in pairs], [p for _, p in pairs])
    assert before == after


@settings(max_examples=40, deadline=None)
@given(numbers)
def test_the_interval_holds_the_mean_and_the_mean_the_range(values: list[float]) -> None:
    summary = summarise(values, range(len(values)))
    assert summary.mean is not None
    if summary.low is None:
        assert (
            summary.note
            == f"no interval: all {len(values)} values are alike, so their error cannot be estimated"
        )
        assert max(values) - min(values) < 1e-6
        return
    assert summary.high is not None
    assert min(values) - 1e-9 <= summary.mean <= max(values) + 1e-9
    assert summary.low <= summary.mean <= summary.high


@settings(max_examples=40, deadline=None)
@given(numbers, st.floats(-5, 5), st.floats(-4, 4))
def test_intervals_move_and_stretch_with_the_values(values: list[float], shift: float, factor: float) -> None:
    ids = [f"p{i // 2}" for i in range(len(values))]
    before, after = summarise(values, ids), summarise([factor * v + shift for v in values], ids)
    for a, b in ((before, after),):
        assert a.mean is not None
        assert b.mean is not None
        assert b.mean == pytest.approx(factor * a.mean + shift, abs=1e-6)
        assert a.standard_error is not None
        assert b.standard_error == pytest.approx(abs(factor) * a.standard_error, abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(numbers, st.integers(0, 5))
def test_missing_images_never_move_the_mean_and_always_lower_the_penalised_one(
    values: list[float], missing: int
) -> None:
    before = summarise(values, can_miss=True)
    after = summarise([*values, *[NAN] * missing], can_miss=True)
    assert (after.mean, after.standard_error, after.low, after.n) == (
        before.mean, before.standard_error, before.low, before.n,
    )  # fmt: skip
    assert after.missing == missing
    assert after.penalised is not None
    assert before.penalised is not None
    assert after.penalised <= before.penalised + 1e-12


@settings(max_examples=40, deadline=None)
@given(st.floats(-10, 10), st.integers(2, 12))
def test_equal_values_have_no_spread(value: float, n: int) -> None:
    """No spread, and no certainty either: nothing is known about what other images would score."""
    summary = summarise([value] * n)
    assert summary.standard_error == 0
    assert (summary.low, summary.high) == (None, None)
    assert "alike" in (summary.note or "")


# --- shares ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("yes", "n"), [(1, 8), (5, 20), (50, 100), (99, 100)])
def test_the_interval_of_a_share_solves_wilsons_equation(yes: int, n: int) -> None:
    found = summarise([1.0] * yes + [0.0] * (n - yes), share=True)
    p, z = yes / n, stats.norm.ppf(0.975)
    roots = sorted(np.roots([1 + z * z / n, -(2 * p + z * z / n), p * p]).real)
    assert (found.low, found.high) == pytest.approx(tuple(roots))
    assert found.standard_error == pytest.approx(math.sqrt(p * (1 - p) / (n - 1)))


def test_the_interval_of_a_share_is_scipys_for_many_images() -> None:
    found = summarise([1.0] * 3000 + [0.0] * 7000, share=True)
    expected = stats.binomtest(3000, 10_000).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-5)


def test_a_share_of_all_is_not_certain_and_clusters_count_once() -> None:
    few, many = summarise([1.0] * 8, share=True), summarise([1.0] * 100, share=True)
    assert few.standard_error == many.standard_error == 0
    assert few.low is not None
    assert many.low is not None
    assert 0.5 < few.low < many.low < 0.97
    assert few.high == many.high == 1
    assert summarise([0.0] * 8, share=True).high == pytest.approx(1 - few.low)
    assert summarise([1.0] * 32, np.repeat(np.arange(8), 4).tolist(), share=True).low == pytest.approx(
        few.low
    )
    with pytest.raises(ValueError, match="0 or 1"):
        summarise([0.5, 1.0], share=True)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([0.0, 1.0, NAN]), min_size=2, max_size=30), st.integers(1, 4))
def test_the_interval_of_a_share_stays_within_its_bounds(values: list[float], of_a_prompt: int) -> None:
    found = summarise(values, [i // of_a_prompt for i in range(len(values))], share=True)
    if found.low is not None and found.high is not None and found.mean is not None:
        assert 0 <= found.low <= found.mean <= found.high <= 1
        assert found.low < found.high


# --- what cannot be estimated ---------------------------------------------------------------------------


def test_one_prompt_speaks_of_its_noise_and_says_so() -> None:
    x = np.random.default_rng(5).normal(size=9)
    alone = summarise(x, ["a"] * 9)
    each = summarise(x, range(9))
    assert (alone.low, alone.high) == (each.low, each.high)
    assert (alone.within_one_prompt, each.within_one_prompt) == (True, False)
    assert "noise only" in (alone.note or "")
    assert each.note is None


@pytest.mark.parametrize(
    ("n", "prompts", "more", "words"),
    [
        (1, 1, {}, "one image is too few, at least two are needed"),
        (2, 2, {"pairwise": True}, "two prompts are too few, at least three are needed"),
        (8, 2, {"pairwise": True}, "two prompts are too few, at least three are needed"),
        (2, 1, {"pairwise": True}, "two images are too few, at least three are needed"),
        (4, 4, {"share": True}, "four prompts are too few, at least five are needed"),
        (12, 3, {"share": True}, "three prompts are too few, at least five are needed"),
        (3, 1, {"share": True}, "three images are too few, at least five are needed"),
    ],
)
def test_too_few_have_no_interval_and_the_note_says_why(
    n: int, prompts: int, more: dict[str, bool], words: str
) -> None:
    values = [float(i % 2) for i in range(n)]
    found = summarise(values, [i % prompts for i in range(n)], **more)  # type: ignore[arg-type]
    assert found.mean is not None
    assert (found.standard_error or 0, found.low, found.high) == (0, None, None)
    assert words in (found.note or "")
    assert not found.within_one_prompt


@settings(max_examples=80, deadline=None)
@given(st.lists(st.floats(0, 2), min_size=2, max_size=9), st.booleans())
def test_an_interval_never_leaves_the_metrics_range(values: list[float], pairwise: bool) -> None:
    found = summarise(values, pairwise=pairwise, bounds=(0.0, 2.0))
    assert (found.low is None) == (found.high is None)
    if found.low is not None and found.high is not None:
        assert 0 <= found.low < found.high <= 2


# --- images without a face ------------------------------------------------------------------------------

scores = st.lists(st.one_of(st.floats(-1, 1), st.just(NAN)), min_size=1, max_size=12)


@settings(max_examples=200, deadline=None)
@given(scores, st.floats(-1, 1))
def test_the_mean_over_all_images_is_never_above_the_one_over_faces(values: list[float], line: float) -> None:
    found = summarise(values, can_miss=True, imputed=min(0.0, line), bounds=(-1.0, 1.0))
    assert found.penalised is not None
    assert found.imputed is not None
    assert found.imputed == min(0.0, line, *([] if found.mean is None else [found.mean]))
    if found.mean is not None:
        assert found.penalised <= found.mean
    if found.penalised_low is not None and found.penalised_high is not None:
        assert -1 <= found.penalised_low <= found.penalised <= found.penalised_high <= 1


@settings(max_examples=200, deadline=None)
@given(scores, st.floats(-1, 1), st.integers(0, 11))
def test_losing_a_face_never_raises_the_mean_over_all_images(
    values: list[float], line: float, which: int
) -> None:
    """Of any face that scores no less than a missing one counts, and however low it scores never above the mean over
    the faces that are left.
    """
    which %= len(values)
    before = summarise(values, can_miss=True, imputed=min(0.0, line))
    lost = [NAN if i == which else value for i, value in enumerate(values)]
    after = summarise(lost, can_miss=True, imputed=min(0.0, line))
    assert before.penalised is not None
    assert after.penalised is not None
    assert after.imputed is not None
    if values[which] >= min(0.0, line):
        assert after.penalised <= before.penalised + 1e-12
    if after.mean is not None:
        assert after.penalised <= after.mean


def test_cosines_below_zero_are_not_raised_by_a_missing_face() -> None:
    values = [-0.09, -0.12, -0.102, NAN]
    found = summarise(values, can_miss=True)
    assert found.mean == pytest.approx(-0.104)
    assert found.imputed == found.mean
    assert found.penalised == found.mean
    assert summarise(values, can_miss=True, imputed=-0.3).penalised == pytest.approx((-0.312 - 0.3) / 4)
    assert (
        summarise([0.5, NAN], can_miss=True, imputed=0.0).penalised == 0.25
    )  # as ever where cosines are positive


def test_all_faces_found_in_a_few_images_are_not_all_faces() -> None:
    """Of ten images with a face the share of faces may be .72 (Wilson): the mean over all images may be so much less."""
    x = 0.6 + 0.05 * np.random.default_rng(1).normal(size=10)
    found = summarise(x, can_miss=True)
    assert found.mean is not None
    assert found.penalised == found.mean
    assert found.penalised_low is not None
    assert found.low is not None
    assert found.penalised_low < found.mean * 0.75
    assert found.low > found.mean * 0.9


# --- numbers of whole sets ------------------------------------------------------------------------------


def test_interval_of_a_sets_number_and_its_refusal() -> None:
    summary = interval_of(2.0, 10, 0.5, 5, note="few")
    assert (summary.mean, summary.n, summary.note) == (2.0, 10, "few")
    assert (summary.low, summary.high) == pytest.approx(
        (2 - stats.t.ppf(0.975, 4) * 0.5, 2 + stats.t.ppf(0.975, 4) * 0.5)
    )
    refused = interval_of(2.0, 10, None, 1, note="few", why="no interval: because")
    assert (refused.low, refused.note) == (None, "few; no interval: because")
    with pytest.raises(ValueError, match="finite"):
        interval_of(NAN, 10, 0.5, 5)
    assert undefined_summary("no prompt", 3) == summarise([], []).__class__(
        None, 0, 3, None, None, None, None, "no prompt"
    )


def test_normal_is_scipys() -> None:
    assert normal_quantile() == pytest.approx(stats.norm.ppf(0.975))
