"""Sweeps of W&B's own: the files under sweeps/wandb, the command of its agent, and runs that belong to a sweep."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import wandb
import yaml
from wandb.sdk.launch.sweeps import utils

from diffusion_lab.cli.compose import compose, compose_raw
from diffusion_lab.cli.words import read
from diffusion_lab.config import schema as config
from diffusion_lab.plan.defaults import fill_defaults
from diffusion_lab.studies.run import StudyRun
from diffusion_lab.system import environment
from diffusion_lab.trackers import Fanout, build_trackers, wandb_study
from diffusion_lab.trackers.wandb import score_at_stop

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "sweeps" / "wandb").glob("*.yaml"))
RECOMMENDED = {"step": 10, "reason": "", "scores": [{"step": 0, "score": 0.25}, {"step": 10, "score": 0.75}]}


@pytest.fixture
def reading() -> ModuleType:
    """tests/tracking/test_wandb.py: what an offline run's file says."""
    spec = importlib.util.spec_from_file_location("reading_wandb", Path(__file__).with_name("test_wandb.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def a_person_without_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in environment.AGENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    wandb.teardown()
    yield
    wandb.teardown()


def agents_command(sweep: dict[str, Any], values: dict[str, Any]) -> list[str]:
    """As `wandb agent` makes it, by wandb's own functions."""
    parts = utils.create_sweep_command_args(
        {"args": {key: {"value": value} for key, value in values.items()}}
    )
    parts |= {"interpreter": ["python"], "program": [sweep["program"]], "env": ["/usr/bin/env"]}
    words: list[str] = []
    for part in utils.create_sweep_command(sweep["command"]):
        words += parts[part[2:-1]] if part.startswith("${") else [str(part)]
    return words


def values_of(parameter: dict[str, Any]) -> list[Any]:
    """Every value of a list, both ends and a middle of an interval."""
    if "values" in parameter:
        return list(parameter["values"])
    low, high = parameter["min"], parameter["max"]
    return [low, 0.5 * (low + high), high]


def test_there_are_sweeps_for_wandb() -> None:
    assert len(FILES) >= 3


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_command_of_the_agent_is_a_run(file: Path) -> None:
    sweep = utils.load_sweep_config(str(file))
    assert sweep is not None, "wandb's own reader"
    assert sweep["method"] in ("grid", "random", "bayes")
    assert sweep["metric"]["goal"] == "maximize"
    assert sweep["metric"]["name"] in score_at_stop({"recommendation": RECOMMENDED})
    for chosen in itertools.product(*map(values_of, sweep["parameters"].values())):
        values = dict(zip(sweep["parameters"], chosen, strict=True))
        words = agents_command(sweep, values)
        assert words[:4] == ["/usr/bin/env", "python", "-m", "diffusion_lab"]
        line = read(words[4:])
        assert not line.sweep
        composed = fill_defaults(compose(line.overrides))
        raw = compose_raw(line.overrides)
        for key, value in values.items():
            found: Any = raw
            for part in key.split("."):
                found = found[part]
            assert found == value, key
        assert composed.tracker.wandb == "online"


def test_the_search_of_each_file_has_comparable_scores() -> None:
    """Fixed ranges, as hydra/sweeper=optuna demands them too."""
    from diffusion_lab.cli.optuna_trials import check

    for file in FILES:
        sweep = yaml.safe_load(file.read_text("utf-8"))
        fixed = [word for word in sweep["command"] if "=" in word]
        check(fill_defaults(compose(fixed)))


def offline(folder: Path) -> Fanout:
    tracking = config.Tracking(wandb="offline", project="mine")
    return Fanout(build_trackers(tracking, folder, job_type="finetune", group="a-group"))


def test_a_run_of_the_agent_belongs_to_its_sweep(
    tmp_path: Path, cases: ModuleType, reading: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = tmp_path / "config-r1.yaml"
    given.write_text(yaml.safe_dump({"wandb_version": 1, "method.rank": {"value": 16}}))
    for name, value in {
        "WANDB_SWEEP_ID": "s1", "WANDB_RUN_ID": "r1", "WANDB_SWEEP_PARAM_PATH": str(given), "WANDB_PROJECT": "theirs",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    with environment.neutral():
        tracker = offline(tmp_path / "run")
        tracker.start(cases.CONFIG)
        tracker.evaluation(cases.evaluation(0), cases.prompt_set())
        tracker.finish("completed", {"recommendation": RECOMMENDED})
    read_back = reading.Read(tmp_path / "run")
    assert (read_back.run.sweep_id, read_back.run.run_id, read_back.run.project) == ("s1", "r1", "theirs")
    assert read_back.config["method.rank"] == 16
    assert read_back.config["method"] == cases.CONFIG["method"]
    assert read_back.summary["recommendation/score"] == 0.75
    assert environment.agent()["WANDB_RUN_ID"] == "r1"


def test_a_run_without_an_agent_belongs_to_no_sweep(
    tmp_path: Path, cases: ModuleType, reading: ModuleType
) -> None:
    with environment.neutral():
        assert environment.agent() == {}
        tracker = offline(tmp_path / "run")
        tracker.start(cases.CONFIG)
        tracker.finish("completed", {"recommendation": RECOMMENDED})
    read_back = reading.Read(tmp_path / "run")
    assert (read_back.run.sweep_id, read_back.run.project) == ("", "mine")
    assert read_back.summary["recommendation/score"] == 0.75


def test_an_agents_variables_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    with environment.neutral():
        assert "WANDB_SWEEP_ID" not in environment.os.environ
        with environment.neutral():
            assert environment.agent() == {"WANDB_SWEEP_ID": "s1"}
        assert environment.agent() == {"WANDB_SWEEP_ID": "s1"}
        with environment.with_variables({"WANDB_SWEEP_ID": "s2"}):
            assert environment.os.environ["WANDB_SWEEP_ID"] == "s2"
        assert "WANDB_SWEEP_ID" not in environment.os.environ
    monkeypatch.delenv("WANDB_SWEEP_ID")
    assert environment.agent() == {}


# --- a study's own run ----------------------------------------------------------------------------------

COLUMNS = ["run", "method.rank", "stop/step", "cost/seconds"]
ROWS = [["rank=4", 4, 10, 1.5], ["rank=8", 8, None, None]]


def table_of(folder: Path) -> dict[str, Any]:
    import json

    [file] = folder.glob("wandb/offline-run-*/files/media/table/study/*.json")
    return dict(json.loads(file.read_text()))


def test_a_study_is_a_run_with_a_table(tmp_path: Path, reading: ModuleType) -> None:
    tracking = config.Tracking(wandb="offline", tags=["mine"])
    assert wandb_study.log_study(tmp_path, tracking, "counts", COLUMNS, ROWS)
    read_back = reading.Read(tmp_path)
    assert (read_back.run.run_group, read_back.run.job_type) == ("counts", "study")
    assert read_back.exit_code == 0
    assert read_back.summary["runs"] == 2
    assert table_of(tmp_path) == {"columns": COLUMNS, "data": ROWS}
    # The page is made again with one more run: the same run at W&B, one log to upload.
    assert wandb_study.log_study(tmp_path, tracking, "counts", COLUMNS, [*ROWS, ["rank=2", 2, 5, 1.0]])
    again = reading.Read(tmp_path)
    assert again.run.run_id == read_back.run.run_id
    assert len(table_of(tmp_path)["data"]) == 3


def test_a_study_without_wandb_writes_nothing(tmp_path: Path) -> None:
    assert not wandb_study.log_study(tmp_path, config.Tracking(wandb="disabled"), "counts", COLUMNS, ROWS)
    assert not list(tmp_path.iterdir())


def test_a_refused_table_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(wandb, "init", lambda **_: (_ for _ in ()).throw(OSError(28, "no space")))
    assert not wandb_study.log_study(tmp_path, config.Tracking(wandb="offline"), "counts", COLUMNS, ROWS)
    assert "could not be logged" in caplog.text


def study_run(name: str, rank: int, similarity: list[float]) -> StudyRun:
    import numpy as np

    values = {"similarity": np.array(similarity)}
    return StudyRun(
        id=name, name=name, folder=Path(name), status="completed", subject="anna", class_noun="woman", gender="woman",
        n_images=4, method="lora", model="miniature", seed=0,
        settings={"seed": 0, "data.n_images": 4, "method.rank": rank, "steps.total": 20, "tracker.group": name},
        steps=(0, 10, 20), values=values, low=values, high=values, by_prompt={}, prompts=(), references={},
        costs={"seconds": 3.0, "bytes": None}, weights={"similarity": 1.0}, ranges={"similarity": (0.0, 1.0)},
    )  # fmt: skip


def test_one_row_a_run() -> None:
    from diffusion_lab.runs.reading import MetricInfo
    from diffusion_lab.studies.summary import rows_of
    from diffusion_lab.studies.table import Table

    info = MetricInfo.__new__(MetricInfo)
    for key, value in {"name": "similarity", "higher_is_better": True}.items():
        object.__setattr__(info, key, value)
    runs = (study_run("a", 4, [0.1, 0.8, 0.5]), study_run("b", 8, [0.1, 0.2, 0.4]))
    columns, rows = rows_of(Table(runs, {"similarity": info}, {}, {}))
    assert columns == [
        "run", "status", "subject", "n_images", "method", "model", "seed", "method.rank", "stop/step", "stop/score",
        "stop/similarity", "cost/seconds", "cost/bytes",
    ]  # fmt: skip
    assert rows == [
        ["a", "completed", "anna", 4, "lora", "miniature", 0, 4, 10, 0.8, 0.8, 3.0, None],
        ["b", "completed", "anna", 4, "lora", "miniature", 0, 8, 20, 0.4, 0.4, 3.0, None],
    ]


def test_a_workspace_is_made_without_a_network() -> None:
    pytest.importorskip("wandb_workspaces")
    made = wandb_study.workspace("us", "faces", "counts", ["similarity", "diversity"])
    text = made._to_model().model_dump_json(by_alias=True)
    for wanted in (
        "eval/similarity",
        "eval/diversity",
        "recommendation/score",
        "recommendation/step",
        "counts",
    ):
        assert wanted in text


def test_a_sweep_logs_the_table_of_each_study(tmp_path: Path, reading: ModuleType) -> None:
    from diffusion_lab.cli import sweep_end
    from diffusion_lab.studies.definition import Point, Study
    from diffusion_lab.studies.record import write_study
    from diffusion_lab.studies.stops import stop_of
    from diffusion_lab.studies.table import read_table
    from tests.studies import planted

    noise = planted.Noise(1, prompts=4)
    for n in (4, 8, 14):
        settings = planted.configuration("anna", n)
        planted.write_run(tmp_path / f"n{n}", planted.study_run(settings, planted.usual, noise), settings)
    table = read_table(tmp_path)
    points = tuple(Point((), run.id, run.name) for run in table.runs if run.n_images != 8)
    write_study(tmp_path, Study("mine", "", "", "", (), points))
    sweep_end.track(tmp_path, config.Tracking(wandb="offline"), ["mine"])
    read_back = reading.Read(tmp_path / "_mine")
    assert (read_back.run.run_group, read_back.run.job_type) == ("mine", "study")
    logged = table_of(tmp_path / "_mine")
    rows = {row[0]: dict(zip(logged["columns"], row, strict=True)) for row in logged["data"]}
    assert set(rows) == {"n4", "n14"}
    for run in table.runs:
        stop = stop_of(run, table.metrics)
        assert stop is not None
        if run.name in rows:
            assert rows[run.name]["stop/step"] == stop.step
            assert rows[run.name]["stop/similarity"] == pytest.approx(run.values["similarity"][stop.index])
    sweep_end.track(tmp_path, config.Tracking(wandb="offline", group="other"), ())
    assert len(table_of(tmp_path)["data"]) == 3
    sweep_end.track(tmp_path / "nowhere", config.Tracking(wandb="offline"), ())  # told, not raised
