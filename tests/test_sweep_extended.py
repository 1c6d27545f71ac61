"""A sweep that is extended: finished points are found by what they are, and nothing is trained or counted twice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from diffusion_lab.cli.compose import compose
from diffusion_lab.plan.defaults import fill_defaults
from diffusion_lab.runs.extended_sweep import already_begun
from diffusion_lab.runs.reading import find_runs, read_run
from diffusion_lab.studies.copies import distinct

WORDS = [
    "experiment=debug", "metrics=debug", "metrics.names=[diversity]", "steps.total=1", "steps.every=1", "prompts.n=2",
    "steps.batch_size=1", "model.device=cpu",
]  # fmt: skip


def test_a_second_dimension_trains_nothing_twice(
    run_main: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusion_lab.training import loop

    trained: list[int] = []
    real = loop.training_step

    def step(state: object, steps: object) -> tuple[float, float]:
        trained.append(1)
        return real(state, steps)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "training_step", step)
    sweep = tmp_path / "sweep"
    words = ["-m", *WORDS, f"hydra.sweep.dir={sweep}"]
    assert run_main(*words, "seed=0,1") == 0
    assert len(trained) == 2
    before = {path: path.read_bytes() for path in sweep.glob("*/result.json")}
    # Now a second key, before the first one, so that jobs are numbered and named anew; and one point twice.
    assert run_main(*words, "data.n_images=3,4", "seed=0,1") == 0
    assert len(trained) == 4
    assert {path: path.read_bytes() for path in before} == before, "finished points are left alone"
    runs = [read_run(path) for path in find_runs(sweep)]
    assert sorted((run.config["data"]["n_images"], run.config["seed"]) for run in runs) == [
        (3, 0), (3, 1), (4, 0), (4, 1),
    ]  # fmt: skip
    assert distinct(runs)[1] == []
    assert run_main(*words, "data.n_images=4,3", "seed=1,0,0") == 0
    assert len(trained) == 4
    assert len(find_runs(sweep)) == 4


def test_the_folder_of_the_same_run(tmp_path: Path) -> None:
    """A finished one before an unfinished one, whatever it is called; another configuration or seed never."""
    from diffusion_lab.config.schema import as_plain_dict
    from diffusion_lab.values.jsonable import plain

    config = fill_defaults(compose(WORDS))

    def put(name: str, status: str, *words: str) -> Path:
        folder = tmp_path / "sweep" / name
        folder.mkdir(parents=True)
        recorded = plain(as_plain_dict(fill_defaults(compose([*WORDS, *words]))))
        (folder / "result.json").write_text(json.dumps({"schema": 1, "status": status, "config": recorded}))
        return folder

    new = tmp_path / "sweep" / "3_new"

    def made() -> Path:
        (new / ".hydra").mkdir(parents=True, exist_ok=True)
        (new / "run.log").touch()
        return new

    put("0_other", "completed", "seed=1")
    put("1_other", "completed", "method.rank=3")
    assert already_begun(config, made()) == new
    unfinished = put("2_same", "interrupted", "tracker.run_name=x")
    assert already_begun(config, made()) == unfinished
    assert not new.exists(), "nothing is left of the job's own folder"
    finished = put("0_same", "completed", "steps.keep_checkpoints=9")
    assert already_begun(config, made()) == finished
    (finished / "result.json").write_text("torn")
    assert already_begun(config, made()) == unfinished
    shutil.rmtree(unfinished)
    own = made()
    (own / "result.json").write_text(json.dumps({"status": "running", "config": {"seed": 7}}))
    assert already_begun(config, own) == own
