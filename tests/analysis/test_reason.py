"""What the reason says, its numbers show: over a table of evaluations, and over random ones."""

from __future__ import annotations

import re
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from diffusion_lab.analysis.differences import difference
from diffusion_lab.analysis.intervals import BOUNDS, summarise
from diffusion_lab.analysis.limits import limits_of, value_of
from diffusion_lab.analysis.stop import Recommendation, recommend
from diffusion_lab.records import Summary, UserError

UNITS = {"similarity": "cosine", "aesthetics": "0 to 1", "diversity": "cosine distance", "face_rate": "share"}
METRICS = [SimpleNamespace(name=name, higher_is_better=True) for name in UNITS]
NAN = float("nan")


def summary(metric: str, values: np.ndarray, ids: list[int]) -> Summary:
    return summarise(
        values, ids, can_miss=metric == "similarity", share=metric == "face_rate", pairwise=metric == "diversity",
        bounds=BOUNDS[UNITS[metric]],
    )  # fmt: skip


def evaluations(metric: str, values: list[np.ndarray], each: int = 1) -> dict[int, dict[str, Summary]]:
    return {
        50 * i: {metric: summary(metric, v, [k // each for k in range(len(v))])} for i, v in enumerate(values)
    }


def reason(found: dict[int, dict[str, Summary]], metric: str) -> str:
    return must(recommend(found, {metric: 1.0}, {}, METRICS)).reason


def must(found: Recommendation | None) -> Recommendation:
    assert found is not None
    return found


def faces(*found: int, of: int = 20) -> list[np.ndarray]:
    return [np.array([1.0] * k + [0.0] * (of - k)) for k in found]


# --- single cases ---------------------------------------------------------------------------------------


def test_all_faces_found_at_one_step_are_no_proof() -> None:
    said = reason(evaluations("face_rate", faces(18, 20, 19)), "face_rate")
    assert "Stop at step 50" in said
    assert said.count("within its error") == 2
    assert "Steps 0 and 100 score within the error of the difference" in said
    assert "clearly" not in said


def test_shares_that_do_differ_are_called_so() -> None:
    assert "Its neighbours score clearly less" in reason(
        evaluations("face_rate", faces(2, 20, 3)), "face_rate"
    )


def test_what_comes_back_has_not_stayed() -> None:
    said = reason(evaluations("face_rate", faces(20, 0, 20)), "face_rate")
    assert "until step 100 face rate comes back to 1.00" in said
    assert "stays near" not in said
    assert "stays near 1.00" in reason(evaluations("face_rate", faces(20, 20, 20)), "face_rate")
    said = reason(evaluations("face_rate", faces(10, 3, 11, 10)), "face_rate")
    assert "from step 0 to there face rate went from 0.50 to 0.55" in said


def test_clearly_less_and_still_hardly_less() -> None:
    """A difference may be certain and tiny: then both are said."""
    noise = 0.001 * np.random.default_rng(3).normal(size=40)
    values = [0.5 + noise + gain for gain in (0.0, 0.02, 0.0)]
    found = evaluations("aesthetics", values)
    said = must(recommend(found, {"aesthetics": 1.0}, {"aesthetics": [0.0, 1.0]}, METRICS)).reason
    assert "score clearly less, but at most 0.1 less, so the exact step matters little" in said
    said = must(recommend(found, {"aesthetics": 1.0}, {}, METRICS)).reason
    assert said.count("clearly less") == 1
    assert "matters little" not in said, "of the run's own range it is all there is"
    rising = evaluations("aesthetics", [0.5 + noise + gain for gain in (0.0, 0.01, 0.02)])
    said = must(recommend(rising, {"aesthetics": 1.0}, {"aesthetics": [0.0, 1.0]}, METRICS)).reason
    assert (
        "the evaluation beside it scores clearly less, but at most 0.1 less, so the last steps gained little"
        in said
    )


def test_a_range_too_narrow_to_compute_with_is_refused() -> None:
    found = evaluations("aesthetics", [np.linspace(0.4, 0.6, 9)] * 2)
    for high in (1e-300, 1e-160, 1e-7):
        with pytest.raises(UserError, match=r"metrics\.ranges\.aesthetics"):
            recommend(found, {"aesthetics": 1.0}, {"aesthetics": [0.0, high]}, METRICS)
    assert recommend(found, {"aesthetics": 1.0}, {"aesthetics": [0.0, 1e-6]}, METRICS) is not None


def test_a_neighbour_without_a_score_has_none() -> None:
    x = np.random.default_rng(0).normal(0.5, 0.01, 20)
    said = reason(evaluations("aesthetics", [x - 0.2, x, np.full(20, NAN)]), "aesthetics")
    assert "Step 0 scores clearly less; step 100 has no score" in said
    assert "aesthetics has no value at step 100" in said
    alone = reason(evaluations("aesthetics", [np.full(20, NAN), x, np.full(20, NAN)]), "aesthetics")
    assert alone.startswith("Step 50 is the only evaluation with a score")
    assert "Steps 0 and 100 have no score" in alone


def test_values_that_are_all_alike_are_not_certain() -> None:
    said = reason(
        evaluations("aesthetics", [np.full(20, 0.3), np.full(20, 0.5), np.full(20, 0.4)]), "aesthetics"
    )
    assert "cannot be told: aesthetics has no interval (all 20 values are alike" in said
    assert "clearly" not in said
    assert "with an unknown error" in said


@pytest.mark.parametrize(
    ("n", "words"), [(1, "One image per evaluation is"), (2, "Two images per evaluation are")]
)
@pytest.mark.parametrize("prompts", [1, 2])
def test_one_or_two_images_cannot_carry_advice(n: int, words: str, prompts: int) -> None:
    values = [np.full(n, 0.2) + 0.001 * np.arange(n), np.full(n, 0.9) + 0.001 * np.arange(n), np.full(n, 0.3)]
    said = reason(evaluations("aesthetics", values, each=n if prompts == 1 else 1), "aesthetics")
    assert f"{words} too few for advice" in said
    assert "clearly" not in said


def test_one_prompt_speaks_of_its_noise_only() -> None:
    rng = np.random.default_rng(1)
    values = [rng.normal(level, 0.02, 30) for level in (0.3, 0.6, 0.4)]
    said = reason(evaluations("aesthetics", values, each=30), "aesthetics")
    assert "All images have the same prompt, so these errors cover the noise only" in said
    assert "noise only" not in reason(evaluations("aesthetics", values), "aesthetics")


def test_flat_is_said_only_where_it_is_shown() -> None:
    rng = np.random.default_rng(2)
    noise = rng.normal(0, 0.02, 400)
    levels = (0.2, 0.600, 0.601, 0.600)
    flat = reason(evaluations("aesthetics", [noise + level for level in levels]), "aesthetics")
    assert "the optimum is flat and the exact step matters little" in flat
    few = reason(evaluations("aesthetics", [noise[:4] * 4 + level for level in levels]), "aesthetics")
    assert "flat" not in few
    assert "do not tell which is best" in few


def test_the_same_images_tell_more_than_different_ones() -> None:
    rng = np.random.default_rng(3)
    prompts = rng.normal(0, 0.15, 40)
    values = [0.5 + prompts + gain + rng.normal(0, 0.01, 40) for gain in (0.0, 0.05, 0.0)]
    found = evaluations("aesthetics", values)
    paired = {
        50 * i: {"aesthetics": {(f"p{k}", 0): float(x) for k, x in enumerate(v)}}
        for i, v in enumerate(values)
    }
    alone, same = (recommend(found, {"aesthetics": 1.0}, {}, METRICS, paired=p) for p in (None, paired))
    assert "within the error of the difference" in must(alone).reason
    assert "Its neighbours score clearly less" in must(same).reason
    assert must(alone).step == must(same).step
    assert must(alone).scores == must(same).scores


# --- any evaluation -------------------------------------------------------------------------------------


def check(found: dict[int, dict[str, Summary]], metric: str) -> None:
    """Every claim of the reason, held against the summaries."""
    result = recommend(found, {metric: 1.0}, {}, METRICS)
    if result is None:
        return
    said, steps = result.reason, sorted(found)
    best = steps.index(result.step)
    values = {step: value_of(found[step][metric]) for step in steps}
    limits = {step: limits_of(found[step][metric]) for step in steps}
    width = result.ranges[metric][1] - result.ranges[metric][0]

    def change(a: int, b: int) -> tuple[float, float] | None:
        x, y, p, q = values[a], values[b], limits[a], limits[b]
        return None if x is None or y is None or p is None or q is None else difference(x, p, y, q)

    for a, b, rose, fell in (
        (steps[0], result.step, "rose", "fell"),
        (result.step, steps[-1], "rises", "falls"),
    ):
        both = change(a, b)
        if a == b:
            continue
        if f" {rose} " in said:
            assert both is not None
            assert both[0] > 0
        if f" {fell} " in said:
            assert both is not None
            assert both[1] < 0
    images = found[result.step][metric].n + found[result.step][metric].missing
    neighbours = [steps[i] for i in (best - 1, best + 1) if 0 <= i < len(steps)]
    if images <= 2 and neighbours:
        assert "too few for advice" in said
        assert not re.search("clearly|flat|within the error of", said)
        return
    less = set(map(int, re.findall(r"(\d+) scores clearly less", said, re.I)))
    if re.search("(neighbours score|beside it scores) clearly less", said):
        less = set(neighbours)
    close = {
        int(n)
        for part in re.findall(r"steps? ([\d and]+) scores? within", said, re.I)
        for n in re.findall(r"\d+", part)
    }
    unknown = {
        int(n)
        for part in re.findall(r"against steps? ([\d and]+) cannot", said)
        for n in re.findall(r"\d+", part)
    }
    nothing = {
        int(n)
        for part in re.findall(r"steps? ([\d and]+) (?:has|have) no score", said, re.I)
        for n in re.findall(r"\d+", part)
    }
    assert sorted([*less, *close, *unknown, *nothing]) == neighbours  # each one is spoken of, once
    for step in neighbours:
        gap = change(step, result.step)
        assert (step in nothing) == (values[step] is None)
        assert (step in unknown) == (values[step] is not None and gap is None)
        if gap is not None:
            assert (step in less) == (gap[0] > 1e-12) or abs(gap[0]) < 1e-9
            assert "flat" not in said or step not in close or gap[1] / width <= 0.1 + 1e-9
    if found[result.step][metric].within_one_prompt:
        assert "noise only" in said
    if (
        any(value is None for value in values.values())
        and len([v for v in values.values() if v is not None]) == 1
    ):
        assert "only evaluation with a score" in said


SHAPES = [(1, 1), (1, 2), (1, 12), (2, 1), (2, 6), (3, 1), (5, 1), (5, 4), (20, 1), (60, 1)]


@pytest.mark.parametrize("metric", UNITS)
@pytest.mark.parametrize(("prompts", "each"), SHAPES)
def test_no_sentence_claims_what_its_numbers_do_not_show(metric: str, prompts: int, each: int) -> None:
    rng = np.random.default_rng([prompts, each])
    n = prompts * each
    for gain, spread, lost in product((0.0, 0.03, 0.3), (0.0, 0.02, 0.2), ("none", "some", "all of one")):
        values = []
        for level in (0.4, 0.4 + gain, 0.4 + gain / 2):
            v = level + rng.normal(0, spread, prompts).repeat(each) + rng.normal(0, spread, n)
            if metric == "face_rate":
                v = (rng.random(n) < level + 0.3).astype(float)
            if metric == "diversity" and n < 2:
                v = np.full(n, NAN)
            if lost == "some" and metric == "similarity":
                v = np.where(rng.random(n) < 0.3, NAN, v)
            values.append(np.clip(v, 0, 1))
        if lost == "all of one" and metric != "face_rate":
            values[0 if gain else 2] = np.full(n, NAN)
        check(evaluations(metric, values, each), metric)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["aesthetics", "similarity", "face_rate"]),
    st.lists(
        st.lists(st.sampled_from([0.0, 0.1, 0.5, 0.52, 1.0, NAN]), min_size=6, max_size=6),
        min_size=2,
        max_size=4,
    ),
    st.sampled_from([1, 2, 3, 6]),
)
def test_nor_of_any_values(metric: str, rows: list[list[float]], each: int) -> None:
    values = [np.array(row) for row in rows]
    if metric == "face_rate":
        values = [np.round(np.nan_to_num(v)) for v in values]
    check(evaluations(metric, values, each), metric)


@pytest.mark.parametrize(("prompts", "paired"), [(5, False), (20, False), (20, True), (100, True)])
def test_where_nothing_differs_certainty_is_rare(prompts: int, paired: bool) -> None:
    """Seven evaluations of the same quality. The best of seven is chosen, so its lead over a neighbour is luck."""
    rng, wrong = np.random.default_rng(4), 0
    for _ in range(200):
        of_prompts = rng.normal(0, 0.1, prompts)
        values = [0.5 + of_prompts + rng.normal(0, 0.05, prompts) for _ in range(7)]
        images = {
            50 * i: {"aesthetics": {(f"p{k}", 0): float(x) for k, x in enumerate(v)}}
            for i, v in enumerate(values)
        }
        found = recommend(
            evaluations("aesthetics", values),
            {"aesthetics": 1.0},
            {},
            METRICS,
            paired=images if paired else None,
        )
        wrong += "neighbours score clearly less" in must(found).reason
    assert wrong <= 200 * (0.1 if paired else 0.05)


def test_the_paired_claim_is_the_paired_test() -> None:
    rng = np.random.default_rng(5)
    x = rng.normal(0.5, 0.1, 30)
    for gain in (0.0, 0.01, 0.02, 0.04):
        y = x + gain + rng.normal(0, 0.05, 30)
        first, second = (x, y) if y.mean() > x.mean() else (y, x)
        images = {
            50 * i: {"aesthetics": {(f"p{k}", 0): float(z) for k, z in enumerate(v)}}
            for i, v in enumerate((first, second))
        }
        found = recommend(
            evaluations("aesthetics", [first, second]), {"aesthetics": 1.0}, {}, METRICS, paired=images
        )
        certain = stats.ttest_rel(first, second).pvalue < 0.05
        assert ("clearly less" in must(found).reason) == certain
