"""The stop rule against cases computed by hand, and against what must not change it."""

from __future__ import annotations

import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from diffusion_lab.analysis.limits import limits_of, value_of
from diffusion_lab.analysis.scoring import scale
from diffusion_lab.analysis.stop import Recommendation, check, contenders, recommend, settle_weights
from diffusion_lab.records import Summary, UserError

METRICS = [
    SimpleNamespace(name=name, higher_is_better=name != "memorisation")
    for name in ("similarity", "aesthetics", "diversity", "clip_image", "memorisation")
]
RANGES = {"similarity": [0.45, 0.85], "aesthetics": [0.3, 0.7], "diversity": [0.5, 0.75]}
NOWHERE = Summary(None, 0, 100, None, None, None, 0.0)


def near(mean: float | None, error: float | None = None, **more: float) -> Summary:
    return Summary(mean, 100, 0, error, None, None, **more)  # type: ignore[arg-type]


def half_width(summary: Summary) -> float:
    low, high = limits_of(summary) or (math.nan, math.nan)
    return (high - low) / 2


def run(**curves: list[float]) -> dict[int, dict[str, Summary]]:
    """Summaries at steps 0, 50, ... without error."""
    count = len(next(iter(curves.values())))
    return {50 * i: {name: near(curve[i]) for name, curve in curves.items()} for i in range(count)}


def must(found: Recommendation | None) -> Recommendation:
    assert found is not None
    return found


def test_scale_is_min_max_without_clipping() -> None:
    assert scale(0.65, 0.45, 0.85) == pytest.approx(0.5)
    assert scale(0.05, 0.45, 0.85) == pytest.approx(-1.0)
    assert scale(1.05, 0.45, 0.85) == pytest.approx(1.5)
    assert scale(0.55, 0.85, 0.45) == pytest.approx(0.75)  # inverted
    with pytest.raises(ValueError, match="must differ"):
        scale(1.0, 0.5, 0.5)


def test_weighted_sum_by_hand() -> None:
    # scaled: similarity 0, .5, 1; aesthetics .5, .5, 0; diversity 1, .8, .4 -> means .5, .6, .4667
    found = must(
        recommend(
            run(similarity=[0.45, 0.65, 0.85], aesthetics=[0.5, 0.5, 0.3], diversity=[0.75, 0.7, 0.6]),
            {}, RANGES, METRICS,
        )
    )  # fmt: skip
    assert found.step == 50
    assert [s.score for s in found.scores] == pytest.approx([0.5, 0.6, 1.4 / 3])
    assert found.weights == pytest.approx(dict.fromkeys(RANGES, 1 / 3))
    assert "No weights were set, so they are equal" in found.reason
    # weights 4 : 1 : 1 -> (4*0+.5+1)/6, (2+.5+.8)/6, (4+0+.4)/6
    weighted = must(
        recommend(
            run(similarity=[0.45, 0.65, 0.85], aesthetics=[0.5, 0.5, 0.3], diversity=[0.75, 0.7, 0.6]),
            {"similarity": 4, "aesthetics": 1, "diversity": 1}, RANGES, METRICS,
        )
    )  # fmt: skip
    assert [s.score for s in weighted.scores] == pytest.approx([0.25, 0.55, 4.4 / 6])
    assert weighted.step == 100
    assert "last evaluation is the best" in weighted.reason
    assert "No weights" not in weighted.reason


def test_lower_is_better_is_inverted() -> None:
    found = must(recommend(run(memorisation=[0.3, 0.9, 0.1]), {"memorisation": 1}, {}, METRICS))
    assert found.step == 100
    assert [s.scaled["memorisation"] for s in found.scores] == pytest.approx([0.75, 0.0, 1.0])


def test_ties_go_to_the_earliest() -> None:
    curves = run(similarity=[0.5, 0.8, 0.7, 0.8])
    assert must(recommend(curves, {"similarity": 1}, RANGES, METRICS)).step == 50


def test_without_a_range_floor_and_ceiling_are_the_ends() -> None:
    curves = run(similarity=[0.2, 0.5, 0.6])
    over = {"similarity": {"ceiling": near(0.8), "impostor": near(0.3)}}
    found = must(recommend(curves, {"similarity": 1}, {}, METRICS, references=over))
    assert found.ranges["similarity"] == (0.2, 0.8)
    assert [s.score for s in found.scores] == pytest.approx([0.0, 0.5, 2 / 3])
    alone = must(recommend(curves, {"similarity": 1}, {}, METRICS))
    assert alone.ranges["similarity"] == (0.2, 0.6)  # over the run


def test_a_ceiling_below_the_floor_does_not_turn_the_metric_round() -> None:
    # Photographs of one person are less diverse than the untouched model's images.
    curves = run(diversity=[0.6, 0.5, 0.4])
    found = must(
        recommend(curves, {"diversity": 1}, {}, METRICS, references={"diversity": {"ceiling": near(0.3)}})
    )
    assert found.step == 0
    assert [s.score for s in found.scores] == pytest.approx([1.0, 2 / 3, 1 / 3])


def test_noise_is_not_taken_for_movement() -> None:
    curves = {0: {"aesthetics": near(0.500, 0.01)}, 50: {"aesthetics": near(0.502, 0.01)}}
    low, high = must(recommend(curves, {"aesthetics": 1}, {}, METRICS)).ranges["aesthetics"]
    assert high - low == pytest.approx(4 * 1.96 * 0.01)


def test_images_without_a_face_count_as_zero() -> None:
    curves = {
        0: {"similarity": near(0.6)},
        50: {"similarity": Summary(0.8, 50, 50, 0.01, 0.78, 0.82, 0.4)},
    }
    found = must(recommend(curves, {"similarity": 1}, RANGES, METRICS))
    assert found.step == 0
    assert "without a face count as 0" in found.reason


def test_no_face_anywhere_falls_back_to_whole_images() -> None:
    curves = run(aesthetics=[0.5, 0.5, 0.3], diversity=[0.7, 0.7, 0.5], clip_image=[0.5, 0.7, 0.8])
    for at in curves.values():
        at["similarity"] = NOWHERE
    for weights in ({}, {"similarity": 1.0, "aesthetics": 1.0, "diversity": 1.0}):
        found = must(recommend(curves, weights, {}, METRICS))
        assert found.weights == pytest.approx(dict.fromkeys(("aesthetics", "diversity", "clip_image"), 1 / 3))
        assert found.step == 50
        assert "clip_image" in found.reason
        assert "similarity" not in found.ranges


def test_nothing_to_weigh_is_no_recommendation() -> None:
    assert recommend({}, {}, {}, METRICS) is None
    assert recommend({0: {"similarity": NOWHERE}}, {"similarity": 1}, {}, METRICS) is None
    curves = {0: {"aesthetics": near(0.5)}, 50: {"aesthetics": near(None)}}  # undefined there: not comparable
    found = must(recommend(curves, {"aesthetics": 1}, {}, METRICS))
    assert (found.step, found.scores[1].score) == (0, None)


@pytest.mark.parametrize(
    ("weights", "ranges", "words"),
    [
        ({"similarty": 1.0}, {}, "metrics.weights.*'similarty'.*clip_image"),
        ({"similarity": -1.0}, {}, "metrics.weights.similarity"),
        ({"similarity": math.nan}, {}, "metrics.weights.similarity"),
        ({"similarity": 0.0}, {}, "metrics.weights.*all are 0"),
        ({}, {"similarity": [0.8, 0.4]}, "metrics.ranges.similarity"),
        ({}, {"similarity": [0.8]}, "metrics.ranges.similarity"),
    ],
)
def test_wrong_weights_and_ranges_name_their_key(
    weights: dict[str, float], ranges: dict[str, list[float]], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        check(weights, ranges, [m.name for m in METRICS])
    with pytest.raises(UserError, match=words):
        recommend(run(similarity=[0.1, 0.2]), weights, ranges, METRICS)


def test_flat_optimum_is_said() -> None:
    flat = {i: {"similarity": near(0.6 + 0.001 * (i == 50), 0.02)} for i in (0, 50, 100)}
    assert "Steps 0 and 100 score within" in must(recommend(flat, {"similarity": 1}, {}, METRICS)).reason
    sharp = {i: {"similarity": near(0.3 + 0.3 * (i == 50), 0.005)} for i in (0, 50, 100)}
    assert "neighbours score clearly less" in must(recommend(sharp, {"similarity": 1}, {}, METRICS)).reason


def test_rules_of_thumb_only_where_the_run_comes_near_them() -> None:
    long = {0: {"similarity": near(0.2)}, 400: {"similarity": near(0.5)}}
    weights = {"similarity": 1.0}
    woman = must(recommend(long, weights, {}, METRICS, n_images=4, class_noun="woman")).reason
    assert "400 in general" in woman
    assert "600 for women" in woman
    assert "480 for men" in must(recommend(long, weights, {}, METRICS, n_images=4, class_noun="man")).reason
    assert "Rules" not in must(recommend(long, weights, {}, METRICS, n_images=28)).reason


def test_interval_of_the_penalised_mean_is_that_of_the_zeros_included() -> None:
    values = np.array([0.5, 0.7, 0.6, 0.9, np.nan, np.nan, 0.4])
    known, filled = values[~np.isnan(values)], np.nan_to_num(values)
    s = Summary(known.mean(), 5, 2, known.std(ddof=1) / math.sqrt(5), None, None, filled.mean())
    assert value_of(s) == filled.mean()
    assert half_width(s) == pytest.approx(1.96 * filled.std(ddof=1) / math.sqrt(7))
    assert half_width(Summary(0.5, 9, 0, 0.1, 0.25, 0.75)) == pytest.approx(0.25)  # as the interval has it


curve = st.lists(st.floats(0, 1), min_size=5, max_size=5)
weight = st.floats(0.01, 10)


@settings(deadline=None, max_examples=60)
@given(curve, curve, curve, weight, weight, weight, st.floats(0.001, 1000), st.randoms())
def test_neither_order_nor_scale_of_the_weights_matters(
    a: list[float], b: list[float], c: list[float], u: float, v: float, w: float, k: float, rng: random.Random
) -> None:
    curves = run(similarity=a, aesthetics=b, diversity=c)
    weights = {"similarity": u, "aesthetics": v, "diversity": w}
    first = must(recommend(curves, weights, RANGES, METRICS))
    steps = list(curves)
    rng.shuffle(steps)
    shuffled = must(recommend({s: curves[s] for s in steps}, weights, RANGES, METRICS))
    assert shuffled == first
    scaled = must(recommend(curves, {m: k * x for m, x in weights.items()}, RANGES, METRICS))
    assert scaled.step == first.step
    assert [s.score for s in scaled.scores] == pytest.approx([s.score for s in first.scores])
    top = max(s.score for s in first.scores if s.score is not None)
    best = next(s for s in first.scores if s.score is not None and s.score >= top - 1e-9)
    assert first.step == best.step


def test_weights_are_shares_in_the_order_of_the_metrics() -> None:
    used, notes = settle_weights({"b": 3.0, "a": 1.0, "c": 0.0}, ["a", "b", "c"], {"a", "b", "c"})
    assert list(used.items()) == [("a", 0.25), ("b", 0.75)]
    assert notes == []
    used, notes = settle_weights({"a": 1.0, "b": 1.0}, ["a", "b"], {"a"})
    assert used == {"a": 1.0}
    assert "b has no value" in notes[0]


def test_reason_does_not_call_a_visible_change_none() -> None:
    visible = {0: {"similarity": near(0.50, 0.03)}, 50: {"similarity": near(0.57, 0.03)}}
    assert "similarity went from 0.50 to 0.57, within its error" in must(
        recommend(visible, {"similarity": 1}, {}, METRICS)
    ).reason  # fmt: skip
    hidden = {0: {"similarity": near(0.501, 0.03)}, 50: {"similarity": near(0.504, 0.03)}}
    flat = must(recommend(hidden, {"similarity": 1}, {}, METRICS))
    assert flat.step == 50
    assert "similarity stayed near 0.50" in flat.reason
    clear = {0: {"similarity": near(0.50, 0.01)}, 50: {"similarity": near(0.57, 0.01)}}
    assert (
        "similarity rose from 0.50 to 0.57" in must(recommend(clear, {"similarity": 1}, {}, METRICS)).reason
    )


def test_with_fixed_ranges_only_the_best_can_win() -> None:
    curves = run(similarity=[0.3, 0.6, 0.7], aesthetics=[0.6, 0.5, 0.3], diversity=[0.7, 0.6, 0.5])
    best = must(recommend(curves, {}, RANGES, METRICS)).step
    assert contenders(curves, {}, RANGES, METRICS) == {best}
    assert contenders({}, {}, RANGES, METRICS) == set()


values = st.one_of(st.none(), st.floats(0, 1).map(lambda value: round(value, 2)))


@given(
    rows=st.lists(st.tuples(values, values, values, values), min_size=1, max_size=7),
    fixed=st.sets(st.sampled_from(["similarity", "aesthetics", "diversity", "clip_image"])),
    weights=st.sampled_from([{}, {"similarity": 1.0}, {"diversity": 2.0, "clip_image": 1.0}]),
)
@example(rows=[(None,) * 4, (None, None, None, 1.0), (0.0, None, None, None)], fixed=set(), weights={})
@settings(max_examples=300, deadline=None)
def test_whoever_is_recommended_at_last_was_always_a_contender(rows, fixed, weights) -> None:
    """What `steps.keep_adapters=best` rests on: removed on the way, a step never comes back."""
    names = ("similarity", "aesthetics", "diversity", "clip_image")
    measured = {
        50 * i: {name: NOWHERE if v is None else near(v) for name, v in zip(names, row, strict=True)}
        for i, row in enumerate(rows)
    }
    ranges = {name: ends for name, ends in {**RANGES, "clip_image": [0.2, 0.9]}.items() if name in fixed}
    kept: set[int] = set()
    for now in measured:
        so_far = {step: found for step, found in measured.items() if step <= now}
        kept = (kept | {now}) & (contenders(so_far, weights, ranges, METRICS) | {now})
    last = recommend(measured, weights, ranges, METRICS)
    assert last is None or last.step in kept
