"""Each job has its own keys: others are refused, and records of the time when all jobs shared one set stay readable."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from diffusion_lab import jobs as entry_points
from diffusion_lab.cli.compose import compose, conf_folder
from diffusion_lab.cli.explain import explain
from diffusion_lab.cli.sweep_names import settle
from diffusion_lab.config import paths
from diffusion_lab.config.jobs import JOBS, SET_BY_US, Generate, Score, as_job
from diffusion_lab.config.schema import Config, as_plain_dict
from diffusion_lab.jobs import finetune
from diffusion_lab.plan.defaults import fill_defaults
from diffusion_lab.records import UserError
from diffusion_lab.runs.extended_sweep import runs_in
from diffusion_lab.runs.resume import bound_flat, describe_differences, run_id
from diffusion_lab.values.jsonable import plain

NEEDED = {
    "report": ["job.runs=x"], "study": ["job.runs=x"], "score": ["job.images=x"], "train_aesthetics": ["job.images=x", "job.ratings=x"],
}  # fmt: skip
BAG: dict[str, Any] = {  # the keys that every job once had, with what they were where nothing was said
    "name": "finetune", "dry_run": False, "images": "", "runs": "", "output": "", "artefact": "", "texts": [],
    "text": "", "texts_file": "", "weight": 1.0, "given": None, "stages": [], "scale": 1.0, "start": "",
    "ratings": "", "balance": "density", "exponent": 1.0, "hidden": [64], "epochs": 100, "learning_rate": 0.001,
}  # fmt: skip


def refused(*words: str) -> str:
    with pytest.raises(Exception) as caught:
        compose(words)
    return str(caught.value) if isinstance(caught.value, UserError) else explain(caught.value)


@pytest.mark.parametrize("name", list(JOBS))
def test_every_job_is_its_own_class(name: str) -> None:
    assert set(JOBS) == set(entry_points.JOBS)
    job = compose([f"job={name}", *NEEDED.get(name, [])]).job
    assert type(job) is JOBS[name]
    assert job.name == name
    written = yaml.safe_load((conf_folder() / "job" / f"{name}.yaml").read_text("utf-8"))
    kept = {key: value for key, value in written.items() if key != "defaults"}
    assert {*kept, "dry_run", *SET_BY_US} >= {part.name for part in dataclasses.fields(JOBS[name])}
    kept |= {word.removeprefix("job.").partition("=")[0]: "x" for word in NEEDED.get(name, [])}
    made = JOBS[name](**kept)
    assert dataclasses.asdict(made) | {"given": None} == dataclasses.asdict(job) | {"given": None}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["job=generate", "job.epochs=3"],
            "job.epochs: job=generate has no such key; its keys are dry_run, artefact, text, texts, texts_file, "
            "weight, output; job=train_aesthetics has it",
        ),
        (["job=generate", "+job.epochs=3"], "job.epochs: job=generate has no such key"),
        (["job=generate", "job={epochs:3}"], "job.epochs: job=generate has no such key"),
        (["job.images=x"], "job.images: job=finetune has no such key; its keys are dry_run; job=score and "
                           "job=train_aesthetics have it"),
        (["job=generate", "job.wieght=3"], "did you mean 'weight'?"),
        (["job=score", "job.images=x", "job.text=a, b"], "job.text: job=score has no such key; its keys are dry_run, images"),
        (["job.name=score"], "job.name=score: cannot be changed; job=score chooses another job"),
        (["job=generate", "job.weight=x"], "job.weight=x: must be a number"),
        (["job=pretrain", "job.stages=[unnet]"], "did you mean 'unet'"),
        (["job=pretrain", "job.scale=0"], "job.scale=0.0: must be a number above 0"),
        (["job=train_aesthetics", "job.images=x"], "job.ratings is missing: job=train_aesthetics"),
        (["job=subjects", "job.output=''"], "job.output is missing: job=subjects job.output=FOLDER"),
    ],
)  # fmt: skip
def test_what_a_job_does_not_take(words: list[str], told: str) -> None:
    assert told in refused(*words)


def test_a_job_is_asked_for_as_what_it_is() -> None:
    score = Score(images="x")
    assert as_job(score, Score) is score
    with pytest.raises(TypeError, match="job=score is no Generate"):
        as_job(score, Generate)


def test_options_of_ones_own_have_the_keys_of_the_job_that_they_name(tmp_path: Path) -> None:
    files = {
        "job/bare.yaml": "name: generate\nartefact: x\noutput: y\n",
        "job/full.yaml": "defaults:\n  - /schema/job/generate@_here_\noutput: y\n",
        "job/wrong.yaml": "name: generate\nartfact: x\noutput: y\n",
        "job/none.yaml": "name: generator\n",
        "method/bare.yaml": "name: lora\nrank: 3\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, "utf-8")
    found = f"hydra.searchpath=['file://{tmp_path}']"
    assert as_job(compose([found, "job=bare"]).job, Generate).artefact == "x"
    assert as_job(compose([found, "job=full", "job.weight=0.5"]).job, Generate).weight == 0.5
    assert compose([found, "method=bare"]).method.rank == 3  # type: ignore[attr-defined]
    assert "job.artfact: job=generate has no such key" in refused(found, "job=wrong")
    assert "did you mean 'generate'" in refused(found, "job=none")
    assert "begin it with defaults: [/schema/job/NAME@_here_]" in refused(found, "job=bare", "job.text=a")


# --- records of earlier versions ----------------------------------------------------------------------


def before(config: Config, **job: Any) -> dict[str, Any]:
    """The record that an earlier version made of the configuration."""
    now = plain(as_plain_dict(config))
    return {**now, "job": {**BAG, **now["job"], **job}}


def test_a_record_with_the_keys_of_all_jobs_is_the_same_run() -> None:
    config = fill_defaults(compose(["experiment=debug"]))
    now = plain(as_plain_dict(config))
    assert now["job"] == {"name": "finetune", "dry_run": False}
    for old in (before(config), before(config, weight=0.5, epochs=7, texts=["a"], output="/there")):
        assert describe_differences(old, now) == []
        assert bound_flat(old) == bound_flat(now), "so that its checkpoints are taken up"
        assert run_id(old) == run_id(now)
    scoring = fill_defaults(compose(["experiment=debug", "job=score", "job.images=/x"]))
    assert describe_differences(before(scoring), plain(as_plain_dict(scoring))) == []
    assert bound_flat(before(scoring)) == bound_flat(plain(as_plain_dict(scoring)))
    assert bound_flat(before(scoring))["job.name"] == "score"
    assert "job.name was finetune, is score" in describe_differences(
        before(config), plain(as_plain_dict(scoring))
    )


def test_a_sweep_of_an_earlier_version_keeps_its_folders(tmp_path: Path) -> None:
    words = ["experiment=debug", "data.n_images=3"]
    config = paths.resolve(fill_defaults(compose(words)), tmp_path)
    (tmp_path / "n=3").mkdir()
    (tmp_path / "n=3" / "result.json").write_text(json.dumps({"config": before(config, scale=2.0)}))
    known = runs_in(tmp_path)
    assert settle(["n_images=3"], [plain(as_plain_dict(config))], tmp_path, known) == ["n=3"]


def test_a_run_of_an_earlier_version_is_resumed(
    run_main: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its words and its record set keys that job=finetune no longer has."""

    def run(config: Config, folder: Path) -> None:
        old = before(config, weight=0.5, output="/there")
        old["as_typed"]["job.output"] = "there"
        result = {"status": "completed", "config": old}
        (folder / "result.json").write_text(json.dumps(result))
        (folder / "config.yaml").write_text(yaml.safe_dump(old))

    module = types.ModuleType("job_of_the_test")
    module.run, module.check = run, finetune.check  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "job_of_the_test", module)
    monkeypatch.setitem(entry_points.JOBS, "finetune", "job_of_the_test")
    assert run_main("experiment=debug", "hydra.run.dir=run") == 0
    notes = Path("run/.hydra/overrides.yaml")
    notes.write_text(notes.read_text() + "- job.weight=0.5\n- job.output=there\n")
    capfd.readouterr()
    assert run_main("resume=run") == 0
    assert "run: a finished run, which is left alone" in capfd.readouterr().out
    assert run_main("resume=run", "seed=7") == 2
    assert "seed was 0, is 7" in capfd.readouterr().err
    assert run_main("resume=run", "job.weight=0.5") == 2
    assert "job.weight: job=finetune has no such key" in capfd.readouterr().err
