"""When the recommended stop is settled: cases by hand, scipy's paired interval, and simulated runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from diffusion_lab.analysis.intervals import normal_quantile, summarise
from diffusion_lab.analysis.limits import widened
from diffusion_lab.analysis.scoring import Measured
from diffusion_lab.analysis.settled import Settled, settled
from diffusion_lab.analysis.shares import wilson
from diffusion_lab.records import Summary

METRICS = [SimpleNamespace(name=name, higher_is_better=True) for name in ("a", "b")]
UNIT = {"a": [0.0, 1.0], "b": [0.0, 1.0]}


def of(images: Mapping[str, Sequence[NDArray[Any]]]) -> tuple[dict[int, dict[str, Summary]], dict[int, Any]]:
    """Summaries and image values at steps 0, 10, ...: one image for each prompt."""
    steps = range(len(next(iter(images.values()))))
    summaries = {10 * i: {m: summarise(images[m][i]) for m in images} for i in steps}
    paired = {
        10 * i: {m: {(p, 0): float(v) for p, v in enumerate(images[m][i])} for m in images} for i in steps
    }
    return summaries, paired


def drawn(
    curve: Sequence[float], seed: int = 0, prompts: int = 50, noise: float = 0.05
) -> list[NDArray[Any]]:
    """Images' values around the curve; half of their variance belongs to the prompt and is the same at every step."""
    rng = np.random.default_rng(seed)
    own = rng.normal(size=prompts)
    return [x + noise * (own + rng.normal(size=prompts)) / np.sqrt(2) for x in curve]


def decide(images: Mapping[str, Sequence[NDArray[Any]]], ranges: Any = UNIT, **more: Any) -> Settled | None:
    summaries, paired = of(images)
    return settled(summaries, dict.fromkeys(images, 1.0), ranges, METRICS, paired=paired, **more)


def test_a_curve_that_falls_is_settled_after_k_evaluations() -> None:
    a = drawn([0.2, 0.5, 0.4, 0.3, 0.2])
    assert decide({"a": a[:2]}) is None, "the last is the best"
    assert decide({"a": a[:3]}) is None, "one evaluation below it is not two"
    found = decide({"a": a[:4]})
    assert found is not None
    assert found.step == 10
    assert list(found.gaps) == [20, 30]
    assert all(0 < low < 0.1 * (i + 1) < high for i, (low, high) in enumerate(found.gaps.values()))
    low, high = found.gaps[20]
    assert found.reason.startswith(
        "The recommended stop, step 10, is settled: the newest 2 evaluations have lower weighted scores by more than the"
        f" paired 95 % interval, corrected for the choice among 2 steps (by {low:.3f} to {high:.3f} at step 20, by"
    )
    assert decide({"a": a[:3]}, evaluations=1) is not None
    assert decide({"a": a[:4]}, evaluations=3) is None
    assert decide({"a": a}, evaluations=3) is not None


def test_every_one_of_the_newest_must_be_surely_below() -> None:
    assert decide({"a": drawn([0.2, 0.5, 0.4, 0.499])}) is None
    assert decide({"a": drawn([0.2, 0.5, 0.499, 0.4])}) is None
    assert decide({"a": drawn([0.2, 0.5, 0.499, 0.4])}, evaluations=1) is not None


def test_without_an_interval_nothing_is_settled() -> None:
    one_image = [np.array([value]) for value in (0.2, 0.5, 0.1, 0.0)]
    assert decide({"a": one_image}) is None


def test_ranges_that_grow_with_the_run_must_not_change_the_choice() -> None:
    """Derived from the run, the range of a grows at the last step and so its weight shrinks: the best was step 10."""
    a, b = drawn([0.2, 0.5, 0.0, -1.0], noise=0.001), drawn([0.6, 0.25, 0.0, 0.0], noise=0.001)
    summaries, paired = of({"a": a, "b": b})
    before = {step: summaries[step] for step in (0, 10, 20)}
    weights = {"a": 1.0, "b": 1.0}
    assert settled(before, weights, {}, METRICS, evaluations=1, paired=paired).step == 10  # type: ignore[union-attr]
    assert settled(summaries, weights, {}, METRICS, evaluations=1, paired=paired).step == 0  # type: ignore[union-attr]
    assert settled(summaries, weights, {}, METRICS, evaluations=2, paired=paired) is None
    fixed = {"a": [-1.0, 0.5], "b": [0.0, 0.6]}
    found = settled(summaries, weights, fixed, METRICS, evaluations=2, paired=paired)
    assert found is not None
    assert found.step == 0


@pytest.mark.parametrize("level", [0.5, 0.8, 0.95, 0.99, 0.9999])
@pytest.mark.parametrize("prompts", [3, 5, 50])
def test_the_gap_is_scipys_paired_interval_at_every_level(level: float, prompts: int) -> None:
    first, second = (x / 4 for x in drawn([2.0, 2.2], prompts=prompts))
    summaries, paired = of({"a": [first, second]})
    run = Measured.of(summaries, {"a": METRICS[0]}, paired)
    found = run.gap(0, 1, {"a": 1.0}, {"a": (0.0, 1.0)}, level)
    expected = stats.ttest_rel(second, first).confidence_interval(level)
    if prompts >= 5:  # with fewer, the correlation is not used
        assert found == pytest.approx(tuple(expected))
    else:
        degrees = prompts - 1
        half = stats.t.ppf(0.5 + level / 2, degrees) * np.hypot(stats.sem(first), stats.sem(second))
        difference = second.mean() - first.mean()
        assert found is not None
        assert found[0] <= difference <= found[1]
        assert (found[1] - found[0]) / 2 >= half * (1 - 1e-9)


def test_levels_of_fractions_are_close_to_wilsons() -> None:
    for p in (0.1, 0.3, 0.5, 0.9):
        for level in (0.9, 0.99):
            exact = wilson(p, 100, normal_quantile(level))
            near = widened(p, wilson(p, 100, normal_quantile()), normal_quantile(level) / normal_quantile())
            for ours, wanted in zip(near, exact, strict=True):
                assert abs(ours - p) == pytest.approx(abs(wanted - p), rel=0.1)


def ends(a: Sequence[float], b: Sequence[float], ranges: Any, seed: int) -> int | None:
    """The recommended step with which a simulated run ends before its last evaluation; None if it does not."""
    images = {"a": drawn(a, 2 * seed, prompts=40), "b": drawn(b, 2 * seed + 1, prompts=40)}
    for count in range(3, len(a)):
        found = decide({name: values[:count] for name, values in images.items()}, ranges)
        if found is not None:
            return found.step
    return None


RUNS = 200
TIME = np.linspace(0, 1, 9)
PEAK = 0.3 * np.minimum(TIME, 0.375) / 0.375, -0.3 * np.maximum(0, TIME - 0.375) / 0.625  # best at the fourth


@pytest.mark.parametrize("ranges", [UNIT, {}], ids=["fixed", "derived"])
def test_rates_of_simulated_runs(ranges: Any) -> None:
    """A flat or rising score hardly ever ends a run; one that falls does, at its peak."""
    flat = [ends(0 * TIME, 0 * TIME, ranges, seed) for seed in range(RUNS)]
    rising = [ends(0.05 * TIME, 0.02 * TIME, ranges, seed) for seed in range(RUNS)]
    peak = [ends(*PEAK, ranges, seed) for seed in range(RUNS // 4)]
    assert sum(found is not None for found in flat) <= 0.05 * RUNS
    assert sum(found is not None for found in rising) <= 0.02 * RUNS
    assert sum(found is not None for found in peak) >= 0.95 * len(peak)
    assert all(abs(found - 30) <= 10 for found in peak if found is not None)
