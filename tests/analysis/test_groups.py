"""Means over seeds, against scipy and by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from diffusion_lab.report.comparison import _between, write_comparison
from diffusion_lab.report.groups import at_stop, grouped, mean, telling
from diffusion_lab.runs.reading import find_runs, read_run
from diffusion_lab.runs.resume import folder_size

Write = Callable[..., Any]


def test_settings_that_follow_from_others_are_left_out() -> None:
    configs = [
        {"method": {"rank": 8, "learning_rate": rate, "name": name}, "seed": seed}
        for name, rate in (("lora", 1e-4), ("dreambooth", 1e-6), ("x", 1e-4))
        for seed in (0, 1)
    ]
    keys = ["method.rank", "method.learning_rate", "method.name", "seed"]
    assert telling(configs, keys) == ["method.name", "seed"]
    assert telling(configs[:1], keys) == []


@pytest.mark.parametrize("values", [[0.2, 0.5], [0.1, 0.4, 0.35, 0.9]])
def test_interval_between_runs_is_scipys(values: list[float]) -> None:
    found = mean(values)
    assert found is not None
    assert found.half is not None
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((low, high))


def test_few_values() -> None:
    one = mean([0.5, None])
    assert one is not None
    assert (one.mean, one.half, one.n) == (0.5, None, 1)
    assert mean([None]) is None


def test_runs_that_differ_by_their_seed_are_one_group(tmp_path: Path, write_run: Write) -> None:
    for method in ("lora", "dreambooth"):
        for seed in (0, 1, 2):
            write_run(tmp_path / f"{method}{seed}", config={"method.name": method, "seed": seed}, seed=seed)
    write_run(tmp_path / "failed", status="failed", steps=(), config={"method.name": "lora", "seed": 9})
    runs = [read_run(folder) for folder in find_runs(tmp_path)]
    groups = grouped(runs, ["method.name", "seed"])
    assert {group.settings["method.name"]: group.runs for group in groups} == {"lora": 3, "dreambooth": 3}
    for group in groups:
        own = [at_stop(run) for run in runs if run.folder.name.startswith(str(group.settings["method.name"]))]
        known = [values["similarity"] for values in own if values]
        found = group.values["similarity"]
        assert found is not None
        assert found.mean == pytest.approx(np.mean(known))
    page = write_comparison(tmp_path).read_text("utf-8")
    assert "Means over seeds" in page


def test_without_seeds_there_is_no_table_of_means(tmp_path: Path, write_run: Write) -> None:
    write_run(tmp_path / "a", config={"data.n_images": 4})
    write_run(tmp_path / "b", config={"data.n_images": 8})
    assert "Means over seeds" not in write_comparison(tmp_path).read_text("utf-8")


def test_size_of_an_artefact(tmp_path: Path) -> None:
    assert folder_size(tmp_path / "nothing") == 0
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a").write_bytes(b"123")
    (tmp_path / "b").write_bytes(b"4567")
    assert folder_size(tmp_path) == 7


# --- a run counts once ----------------------------------------------------------------------------------

BASE = {"method.name": "lora", "seed": 0, "data.folder": None}


def seeds_page(folder: Path) -> tuple[list[Any], str]:
    """The groups of the runs in a folder, and its page."""
    from diffusion_lab.report.comparison import differing_keys

    runs = [read_run(path) for path in find_runs(folder)]
    keys = telling([run.config for run in runs], differing_keys([run.config for run in runs]))
    return grouped(runs, keys), write_comparison(folder).read_text("utf-8")


@pytest.mark.parametrize(
    "again",
    [
        {},  # a copy, or a sweep that was given anew
        {"tracker.run_name": "other", "tracker.project": "b"},
        {"steps.keep_checkpoints": 5, "steps.checkpoint_every": 7, "steps.keep_adapters": "best"},
        {"resume": "must", "job.dry_run": False},
    ],
)
def test_copies_and_repetitions_count_once(tmp_path: Path, write_run: Write, again: dict[str, Any]) -> None:
    for seed in (0, 1, 2):
        write_run(tmp_path / f"{seed}", config=BASE | {"seed": seed}, seed=seed)
    [alone], page = seeds_page(tmp_path)
    assert "not counted again" not in page
    write_run(tmp_path / "deeper" / "7_seed=0", config=BASE | again, seed=9)  # measured a little otherwise
    [group], page = seeds_page(tmp_path)
    assert group.runs == 3
    assert group.values["similarity"].n == alone.values["similarity"].n == 3
    assert "is the same run as" in page
    assert page.count("not counted again") == 1


def test_of_repetitions_the_finished_and_then_the_newest_counts(tmp_path: Path, write_run: Write) -> None:
    from diffusion_lab.studies.copies import distinct

    write_run(tmp_path / "a", config=BASE, seed=1)
    write_run(tmp_path / "b", config=BASE, seed=2)
    write_run(tmp_path / "c", config=BASE, seed=3, status="interrupted", error="stopped")
    runs = [read_run(path) for path in find_runs(tmp_path)]
    kept, repeated = distinct(runs)
    assert [run.folder.name for run in kept] == ["b"]
    assert {(one.folder.name, other.folder.name) for one, other in repeated} == {("a", "b"), ("c", "b")}
    page = write_comparison(tmp_path).read_text("utf-8")
    assert "a is the same run as b" in page
    assert "c is the same run as b" in page
    assert "Means over seeds" not in page, "one run has no mean over seeds"


@pytest.mark.parametrize(
    "other", [{"seed": 5}, {"data.subset_seed": 1}, {"prompts.seed": 3}, {"prompts.noise_seed": 4}]
)
def test_every_seed_makes_another_run_of_one_group(
    tmp_path: Path, write_run: Write, other: dict[str, Any]
) -> None:
    write_run(tmp_path / "a", config=BASE, seed=1)
    write_run(tmp_path / "b", config=BASE | other, seed=2)
    [group], page = seeds_page(tmp_path)
    assert group.runs == 2
    assert "not counted again" not in page


@pytest.mark.parametrize("other", [{"method.rank": 9}, {"model.path": "x"}, {"data.folder": "/elsewhere"}])
def test_another_setting_is_another_run(tmp_path: Path, write_run: Write, other: dict[str, Any]) -> None:
    write_run(tmp_path / "a", config=BASE, seed=1)
    write_run(tmp_path / "b", config=BASE | other, seed=2)
    groups, page = seeds_page(tmp_path)
    assert [group.runs for group in groups] == [1, 1]
    assert "not counted again" not in page


def test_a_record_of_an_older_version_counts_once_too(tmp_path: Path, write_run: Write) -> None:
    """It lacks a key that newer ones have with its default: by that alone it is no second run of its seed."""
    write_run(tmp_path / "old", config=BASE, seed=1)
    write_run(tmp_path / "new", config=BASE | {"data.flip": False}, seed=2)
    write_run(tmp_path / "other", config=BASE | {"data.flip": False, "seed": 1}, seed=3)
    [group], _ = seeds_page(tmp_path)
    assert group.runs == 2


def test_runs_that_came_to_the_same_have_no_interval_and_none_leaves_the_range() -> None:
    alike = mean([0.9, 0.9, 0.9])
    assert alike is not None
    assert (alike.half, alike.n) == (None, 3)
    two = mean([0.8, 1.0])
    assert two is not None
    assert two.half is not None
    assert two.half > 0.5  # Student's t with one degree of freedom
    assert _between(two, "share") == "0.000 to 1.000"
    assert _between(two, "squared distance").startswith("-")
    assert _between(alike, "share") == ""
