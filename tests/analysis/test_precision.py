"""Variance components against scipy's F, simulation and the errors that are found by drawing anew."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from diffusion_lab.records import ScoreRow, UserError
from diffusion_lab.report.precision import is_pairwise, paired_differences, tables, variances
from diffusion_lab.runs.scores import write


def drawn(seed: int, prompts: int, images: int, between: float = 0.03, within: float = 0.1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return 0.5 + rng.normal(0, between, (prompts, 1)) + rng.normal(0, within, (prompts, images))


def by_prompt(values: np.ndarray) -> dict[str, list[float]]:
    return {f"p{i}": list(row) for i, row in enumerate(values)}


def test_ratio_of_mean_squares_is_scipys() -> None:
    values = drawn(0, 30, 4, between=0.2)
    parts = variances(by_prompt(values))
    ratio = (4 * parts.between + parts.within) / parts.within
    assert ratio == pytest.approx(stats.f_oneway(*values).statistic)


def test_variances_are_found_again() -> None:
    parts = variances(by_prompt(drawn(1, 4000, 3, between=0.1)))
    assert parts.between == pytest.approx(0.1**2, rel=0.1)
    assert parts.within == pytest.approx(0.1**2, rel=0.05)
    ragged = by_prompt(drawn(2, 4000, 3, between=0.1))
    for name in list(ragged)[::2]:
        ragged[name] = ragged[name][:1]
    uneven = variances(ragged)
    assert uneven.between == pytest.approx(0.1**2, rel=0.15)
    assert uneven.images == 8000


@pytest.mark.parametrize(("prompts", "images"), [(25, 1), (50, 2)])
def test_errors_are_those_of_drawing_anew(prompts: int, images: int) -> None:
    parts = variances(by_prompt(drawn(3, 5000, 2)))
    means = [drawn(100 + k, prompts, images).mean() for k in range(1500)]
    assert parts.error(prompts, images) == pytest.approx(np.std(means, ddof=1), rel=0.08)


def test_without_a_prompts_part_it_is_the_plain_error() -> None:
    parts = variances({"a": [1.0, 2.0], "b": [2.0, 1.0]})
    assert parts.between == 0
    assert parts.error(2, 2) == pytest.approx(np.sqrt(0.5 / 4))


def test_a_mean_over_pairs_has_twice_the_error() -> None:
    """Distances of numbers to all others: the error of their mean by drawing anew."""

    def diversity(x: np.ndarray) -> np.ndarray:
        return np.abs(x[:, None] - x[None, :]).sum(1) / (len(x) - 1)

    means = [diversity(np.random.default_rng(k).normal(size=100)).mean() for k in range(800)]
    values = diversity(np.random.default_rng(9000).normal(size=1000))
    parts = variances({str(i): list(pair) for i, pair in enumerate(values.reshape(-1, 2))})
    assert parts.error(100, 1, pairwise=True) == pytest.approx(np.std(means), rel=0.2)
    assert is_pairwise("diversity")
    assert not is_pairwise("similarity")


def test_differences_are_of_the_same_prompt_and_noise() -> None:
    first = {("a", 0): 1.0, ("a", 1): 2.0, ("b", 0): 5.0}
    second = {("a", 0): 1.5, ("b", 0): 4.0, ("c", 0): 9.0}
    assert paired_differences(first, second) == {"a": [0.5], "b": [-1.0]}


def test_tables(tmp_path: Path) -> None:
    values = drawn(5, 20, 3)

    def rows(images: int) -> list[ScoreRow]:
        return [
            ScoreRow(
                step=step, prompt_id=f"p{i}", index=k, seed=1, metric="similarity", version="1",
                value=float(values[i, k]) + step / 100, slots={},
            )
            for step in (0, 10) for i in range(20) for k in range(images)
        ]  # fmt: skip

    write(tmp_path / "scores.parquet", rows(3))
    text = tables(tmp_path, [(20, 3), (100, 1)])
    wanted = variances(by_prompt(values))
    assert f"{wanted.error(20, 3):.4f} | {wanted.error(100, 1):.4f} |" in text
    assert text.count("| `similarity` |") == 2
    assert "0.0000 | 0.0000" in text  # the steps differ by a constant
    write(tmp_path / "scores.parquet", rows(1))
    with pytest.raises(UserError, match=r"images_per_prompt=4"):
        tables(tmp_path)
    with pytest.raises(UserError, match="no scores"):
        tables(tmp_path / "nowhere")


def row(metric: str, prompt: int, index: int, value: float | None, step: int = 0, **slots: str) -> ScoreRow:
    return ScoreRow(step, f"p{prompt}", index, 1, metric, "1", value, slots)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            [row("a", i, 0, 0.1 * i) for i in range(4)],
            "one image per prompt.*prompts.images_per_prompt=4",
        ),
        ([row("a", i, 0, 0.1 * i, file=f"{i}.png") for i in range(4)], "score a folder with several images"),
        ([row("a", 0, i, 0.1 * i) for i in range(4)], "same prompt.*prompts.n=20"),
        (
            [row("a", 0, i, 0.1 * i, file=f"{i}.png") for i in range(4)],
            "same prompt.*score images of several prompts",
        ),
        ([row("a", i // 2, i % 2, None) for i in range(4)], "no metric has a value"),
        ([row("a", i // 2, i % 2, 0.1 if i == 0 else None) for i in range(4)], "no metric has two values"),
        ([], "contains no scores"),
    ],
)
def test_advice_that_applies(rows: list[ScoreRow], words: str, tmp_path: Path) -> None:
    write(tmp_path / "scores.parquet", rows)
    with pytest.raises(UserError, match=words) as error:
        tables(tmp_path)
    assert ("prompts." in str(error.value)) <= (not any(one.slots for one in rows))


def test_a_metric_without_enough_values_does_not_hide_the_others(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        row("good", i, k, float(rng.normal()), step) for step in (0, 9) for i in range(5) for k in range(2)
    ]
    rows += [
        row("plain_only", i, k, 0.5 if i == k == 0 else None, step)
        for step in (0, 9)
        for i in range(5)
        for k in range(2)
    ]
    rows += [row("late", i, k, float(rng.normal()), 9) for i in range(5) for k in range(2)]
    write(tmp_path / "scores.parquet", rows)
    text = tables(tmp_path, [(20, 3)])
    assert text.count("| `plain_only` | - | - |") == 2
    assert text.count("| `late` | - | - |") == 1
    assert "No error for plain_only, late" in text
    write(tmp_path / "scores.parquet", [one for one in rows if one.step == 0])
    assert "One step was evaluated" in tables(tmp_path)


@pytest.mark.parametrize("content", [None, b"", b"PAR1 not a table"])
def test_user_errors_are_one_line(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "scores.parquet").write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-m", "diffusion_lab.report.precision", str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path}")
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
