"""The table against the runs' own reports, and against plain computations from the rows."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from diffusion_lab.records import UserError
from diffusion_lab.runs.reading import read_run
from diffusion_lab.runs.scores import read
from diffusion_lab.studies.by_prompt import pseudo
from diffusion_lab.studies.definition import Point, Study
from diffusion_lab.studies.record import write_study
from diffusion_lab.studies.stops import rule_of, score, stop_of
from diffusion_lab.studies.table import read_table
from tests.studies import planted


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four runs, one unfinished, a copy, one that cannot be read, one without evaluations."""
    place = tmp_path_factory.mktemp("runs")
    noise = planted.Noise(1, prompts=12)
    for subject, n, missing in (("anna", 4, 0.0), ("anna", 8, 0.3), ("ben", 4, 0.3), ("ben", 8, 1.0)):
        config = planted.configuration(subject, n)
        run = planted.study_run(config, planted.usual, noise)
        planted.write_run(place / f"{subject}{n}", run, config, missing=missing)
    config = planted.configuration("carla", 4)
    run = planted.study_run(config, planted.usual, noise, steps=(0, 50), status="running")
    planted.write_run(place / "carla4", run, config)
    config = planted.configuration("anna", 4)
    run = planted.study_run(config, planted.usual, noise, steps=(0, 50), status="interrupted")
    planted.write_run(place / "copy", run, config)
    config = planted.configuration("dan", 4)
    (place / "dan4").mkdir()
    (place / "dan4" / "result.json").write_text(
        json.dumps({"status": "failed", "error": "no memory", "config": config}), encoding="utf-8"
    )
    (place / "broken").mkdir()
    (place / "broken" / "result.json").write_text("{", encoding="utf-8")
    return place


def test_what_is_listed(folder: Path) -> None:
    table = read_table(folder)
    assert [run.name for run in table.runs] == ["anna4", "anna8", "ben4", "ben8", "carla4"]
    assert [run.name for run in table.unfinished] == ["carla4"]
    assert table.repeated == (("copy", "anna4"),)
    assert table.pending == (("dan4", "failed: no memory"),)
    assert [name for name, _ in table.unreadable] == ["broken"]
    assert [run.gender for run in table.runs] == ["woman", "woman", "man", "man", "woman"]
    assert table.ranges["similarity"] == (0.0, 0.8)
    assert sum(table.weights.values()) == pytest.approx(1)
    assert set(table.weights) == {
        "similarity",
        "aesthetics",
        "diversity",
    }


def test_values_are_those_of_the_report(folder: Path) -> None:
    for run in read_table(folder).runs:
        own = read_run(run.folder)
        assert run.id == own.id
        for step, index in zip(run.steps, range(len(run.steps)), strict=True):
            for name, s in own.summaries[step].items():
                value = s.mean if s.penalised is None else s.penalised
                if all(own.summaries[k][name].mean is None for k in run.steps):
                    assert np.isnan(run.values[name][index])
                else:
                    assert run.values[name][index] == value


def test_the_mean_over_prompts_is_the_value(folder: Path) -> None:
    for run in read_table(folder).runs:
        for name, values in run.values.items():
            if np.isfinite(values).all():
                np.testing.assert_allclose(run.by_prompt[name].mean(1), values, atol=1e-6)


def test_scores_by_prompt_are_the_rows(folder: Path) -> None:
    run = next(run for run in read_table(folder).runs if run.name == "ben4")
    rows = [
        {"step": r["step"], "prompt": r["prompt_id"], "value": r["value"]}
        for r in _rows(run.folder)
        if r["metric"] == "similarity"
    ]
    assert any(row["value"] is None for row in rows)
    for row in rows:
        found = run.by_prompt["similarity"][run.steps.index(row["step"]), run.prompts.index(row["prompt"])]
        assert found == pytest.approx(row["value"] or 0.0, abs=1e-6)


def _rows(folder: Path) -> list[dict[str, object]]:
    import pyarrow.parquet as pq

    return pq.read_table(folder / "scores.parquet").to_pylist()


def test_pseudo_values_are_those_of_the_jackknife() -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(9, 4))
    distances = ((points[:, None] - points[None]) ** 2).sum(-1)
    own = distances.sum(1) / 8
    whole = own.mean()

    def without(i: int) -> float:
        kept = np.delete(np.delete(distances, i, 0), i, 1)
        return float(kept.sum() / (8 * 7))

    expected = [9 * whole - 8 * without(i) for i in range(9)]
    found = pseudo(own[None], np.ones((1, 9), int))[0]
    np.testing.assert_allclose(found, expected)


def test_the_stop_is_that_of_the_report(folder: Path) -> None:
    table = read_table(folder)
    for run in table.runs:
        own, stop = read_run(run.folder).recommendation, stop_of(run, table.metrics)
        assert own is not None
        assert stop is not None
        assert stop.step == own.step
        rule = rule_of(run, table.metrics)
        assert rule is not None
        assert dict(rule.weights) == pytest.approx(dict(own.weights))
        expected = [s.score for s in own.scores]
        np.testing.assert_allclose(score(run.values, rule, table.metrics), expected, atol=1e-12)


def test_members_of_a_study_and_points_not_begun(folder: Path) -> None:
    table = read_table(folder)
    ids = {run.name: run.id for run in table.runs}
    points = [
        Point(("data.n_images=8",), ids["anna8"], "anna8"),
        Point((), ids["carla4"], "carla4"),
        Point((), "0" * 16, "emil4"),
        Point(("seed=1",)),
    ]
    write_study(folder, Study("counts", "How many?", "", "", ("counts",), tuple(points)))
    some = read_table(folder, SimpleNamespace(name="counts"))
    assert [run.name for run in some.runs] == ["anna8", "carla4"]
    assert some.pending == (("emil4", "not begun"),)
    assert some.unreadable == (), "a damaged run that belongs to no point"
    (folder / "emil4").mkdir()
    (folder / "emil4" / "result.json").write_text("{")
    damaged = read_table(folder, SimpleNamespace(name="counts"))
    assert [name for name, _ in damaged.unreadable] == ["emil4"]
    assert damaged.pending == ()
    shutil.rmtree(folder / "emil4")
    with pytest.raises(UserError, match="--sweep NAME"):
        read_table(folder, SimpleNamespace(name="other"))


def test_scores_that_cannot_be_read_are_named(folder: Path, tmp_path: Path) -> None:
    config = planted.configuration("anna", 4)
    run = planted.study_run(config, planted.usual, planted.Noise(1, prompts=4))
    planted.write_run(tmp_path / "a", run, config)
    (tmp_path / "a" / "scores.parquet").write_bytes(b"PAR1")
    ((name, why),) = read_table(tmp_path).unreadable
    assert name == "a"
    assert "scores.parquet" in why
    assert "resume=" in why


def test_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"job\.runs: there is no run"):
        read_table(tmp_path)


def test_the_rows_of_the_program_are_read(tmp_path: Path) -> None:
    """`scores.read` and the table read the same file."""
    from diffusion_lab.records import ScoreRow
    from diffusion_lab.runs import scores

    rows = [ScoreRow(0, f"p{i}", j, 7, "aesthetics", "1", i + j / 10, {}) for i in range(3) for j in range(2)]
    config = planted.configuration("anna", 4)
    run = planted.study_run(config, planted.usual, planted.Noise(1, prompts=3), steps=(0,))
    planted.write_run(tmp_path / "a", run, config)
    scores.write(tmp_path / "a" / "scores.parquet", rows)
    (found,) = read_table(tmp_path).runs
    expected = [[np.mean([r.value for r in read(tmp_path / "a" / "scores.parquet") if r.prompt_id == f"p{i}"]) for i in range(3)]]  # fmt: skip
    np.testing.assert_allclose(found.by_prompt["aesthetics"], expected, atol=1e-6)


def test_reading_needs_no_torch() -> None:
    code = "import sys, diffusion_lab.studies.table, diffusion_lab.studies.measures; print('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "False\n"
    )
