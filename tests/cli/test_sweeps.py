"""Sweeps and studies from the command line, with a job of our own: what is launched, retried, and said at the end."""

from __future__ import annotations

import json
import logging
import random
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffusion_lab import jobs
from diffusion_lab.__main__ import main
from diffusion_lab.config.schema import Config, as_plain_dict
from diffusion_lab.jobs import finetune
from diffusion_lab.studies.record import find_studies
from diffusion_lab.values.jsonable import plain

WORDS = ["experiment=debug", "tracker.progress=off"]


class Trained:
    """What was trained, in order; `failing`: seeds that fail, `stopping`: seeds at which Ctrl-C is pressed."""

    def __init__(self) -> None:
        self.runs: list[tuple[int, int]] = []
        self.failing: set[int] = set()
        self.stopping: set[int] = set()
        self.statuses: dict[int, str] = {}

    def run(self, config: Config, folder: Path) -> None:
        from diffusion_lab.runs.resume import folder_status

        if folder_status(config, folder) == "finished":
            return
        if config.seed in self.stopping:
            raise KeyboardInterrupt
        status = "failed" if config.seed in self.failing else self.statuses.get(config.seed, "completed")
        (folder / "result.json").write_text(
            json.dumps({"status": status, "error": "boom", "config": plain(as_plain_dict(config))})
        )
        self.runs.append((config.data.n_images, config.seed))
        if status == "failed":
            raise ValueError("boom")


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Trained]:
    found = Trained()
    module = types.ModuleType("job_of_the_test")
    module.run, module.check = found.run, finetune.check  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "job_of_the_test", module)
    monkeypatch.setitem(jobs.JOBS, "finetune", "job_of_the_test")
    monkeypatch.chdir(tmp_path)
    root, ours = logging.getLogger(), logging.getLogger("diffusion_lab")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    yield found
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


def study(name: str, text: str) -> str:
    Path(f"{name}.yaml").write_text(text)
    return f"{name}.yaml"


def test_finished_runs_are_not_launched_and_failed_ones_are_retried(
    trained: Trained, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*WORDS, "-m", "hydra.sweep.dir=here", "seed=0,1,2"]
    trained.failing = {1}
    assert main(words) == 1
    said = capfd.readouterr().err
    assert "here: 3 runs: 3 to start" in said
    assert "here: 2 of 3 jobs completed, 1 failed\nfailed: seed=1: ValueError: boom\n" in said
    again = "python -m diffusion_lab experiment=debug tracker.progress=off -m hydra.sweep.dir=here seed=0,1,2"
    assert f"to retry what failed and go on: {again}\n" in said
    trained.failing = set()
    assert main(words) == 0
    assert trained.runs == [(4, 0), (4, 1), (4, 2), (4, 1)]
    said = capfd.readouterr().err
    assert "here: 3 runs: 2 finished, 1 to resume" in said
    assert "Launching 1 jobs" in said
    assert "3 of 3 jobs completed, 0 failed" in said
    from diffusion_lab.cli import sweep

    monkeypatch.setattr(sweep, "hand_over", lambda *_: pytest.fail("nothing is left to launch"))
    assert main(words) == 0


def test_a_dated_sweep_says_where_it_goes_on(trained: Trained, capfd: pytest.CaptureFixture[str]) -> None:
    trained.failing = {1}
    assert main([*WORDS, "-m", "seed=0,1"]) == 1
    [folder] = Path("outputs/sweeps").iterdir()
    assert f"seed=0,1 hydra.sweep.dir={folder}\n" in capfd.readouterr().err


def test_a_run_that_diverged_is_told_but_not_repeated(
    trained: Trained, capfd: pytest.CaptureFixture[str]
) -> None:
    trained.statuses = {1: "diverged"}
    main([*WORDS, "-m", "hydra.sweep.dir=here", "seed=0,1"])
    capfd.readouterr()
    assert main([*WORDS, "-m", "hydra.sweep.dir=here", "seed=0,1,2"]) == 1
    assert trained.runs == [(4, 0), (4, 1), (4, 2)]
    assert "diverged: seed=1: boom" in capfd.readouterr().err


def test_a_sweep_that_was_stopped_goes_on(trained: Trained) -> None:
    trained.stopping = {1}
    words = [*WORDS, "-m", "hydra.sweep.dir=here", "seed=0,1,2"]
    assert main(words) == 130
    trained.stopping = set()
    assert main(words) == 0
    assert trained.runs == [(4, 0), (4, 1), (4, 2)]


def test_studies_share_their_runs(trained: Trained, capfd: pytest.CaptureFixture[str]) -> None:
    one = study("one", "runs: {experiment: debug, data.n_images: [2, 3]}\nquick: {data.n_images: 1}\n")
    two = study(
        "two",
        "question: q?\ncharts: [stop]\nruns:\n- {experiment: debug, seed: [0, 5], data.n_images: 3}\n"
        "- {experiment: debug, data.n_images: 2, method.rank: 8}\n",  # the default rank
    )
    assert main(["--sweep", one, "tracker.progress=off"]) == 0
    assert main(["--sweep", f"{one},{two}", "tracker.progress=off"]) == 0
    assert trained.runs == [(2, 0), (3, 0), (3, 5)]
    pool = Path("outputs/studies")
    first, second = find_studies(pool)
    assert (first.name, second.name, second.question, second.charts) == ("one", "two", "q?", ("stop",))
    assert [point.folder for point in first.points] == ["n_images=2", "n_images=3"]
    assert [point.folder for point in second.points] == ["n_images=3", "seed=5,n_images=3", "n_images=2"]
    assert "3 of 3 jobs completed" in capfd.readouterr().err
    assert main(["--sweep", one, "--quick", "tracker.progress=off"]) == 0
    assert trained.runs[3:] == [(1, 0)]
    assert [found.name for found in find_studies(pool)] == ["one", "one_quick", "two"]


def test_a_study_that_is_narrowed_on_the_command_line_keeps_its_points(trained: Trained) -> None:
    name = study("one", "runs: {experiment: debug, data.n_images: [2, 3]}\n")
    pool = Path("outputs/studies")

    def folders(*words: str) -> list[str]:
        assert main(["--sweep", name, "tracker.progress=off", *words]) == 0
        [found] = find_studies(pool)
        assert all((pool / point.folder / "result.json").is_file() for point in found.points)
        return [point.folder for point in found.points]

    assert folders("data.n_images=3") == ["n_images=3"]
    whole = ["n_images=3", "n_images=2"]
    assert sorted(folders()) == sorted(whole)
    assert sorted(folders("data.n_images=2")) == sorted(whole)  # fewer of the same
    assert len(folders("data.n_images=4", "seed=0,1")) == 4  # more of the same
    assert len(folders("steps.batch_size=1")) == 2  # the study does not vary it: another study
    assert sorted(folders()) == sorted(whole)
    assert len(trained.runs) == 6


def test_study_json_is_there_before_the_first_job(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    name = study("one", "runs: {experiment: debug, data.n_images: [2, 3]}\n")
    seen: list[int] = []

    def run(config: Config, folder: Path) -> None:
        [found] = find_studies(folder.parent)
        assert folder.name in [point.folder for point in found.points]
        seen.append(len([point for point in found.points if point.run and point.folder]))

    monkeypatch.setattr(sys.modules["job_of_the_test"], "run", run, raising=False)
    main(["--sweep", name, "tracker.progress=off"])
    assert seen == [2, 2]


def test_all_studies_are_one_queue(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from diffusion_lab.studies import definition

    Path("sweeps").mkdir()
    monkeypatch.setattr(definition, "folders", lambda: [Path("sweeps")])
    for name, seeds, more in (("a", "[0, 1]", ""), ("b", "[1, 2]", ""), ("c", "[9]", "in_all: false\n")):
        Path(f"sweeps/{name}.yaml").write_text(f"runs: {{experiment: debug, seed: {seeds}}}\n{more}")
    assert main(["--sweep", "all", "tracker.progress=off"]) == 0
    assert trained.runs == [(4, 0), (4, 1), (4, 2)]
    assert capfd.readouterr().err.count("Launching") == 1
    pool = Path("outputs/studies")
    assert [found.name for found in find_studies(pool)] == ["a", "b"]
    assert (pool / "_claims" / "claims.md").is_file()
    assert all(
        f'href="_{name}/index.html"' in (pool / "index.html").read_text() for name in ("a", "b", "claims")
    )
    groups = {
        path.parent.name: json.loads(path.read_text())["config"]["tracker"]["group"]
        for path in Path("outputs/studies").glob("*/result.json")
    }
    assert groups == {"seed=0": "a", "seed=1": "a", "seed=2": "b"}
    assert main(["--sweep", "all,c,a", "tracker.progress=off"]) == 0
    assert trained.runs[3:] == [(4, 9)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--quick"], "--quick selects the short form of a study; give --sweep NAME as well"),
        (["--sweep"], "no such study; there are"),
        (["--sweep", "claims.yaml"], "claims is the name of a page of all runs; rename claims.yaml"),
        (["--sweep", "counts", "hydra.sweeper._target_=other"], "hydra/sweeper: a study lists its runs"),
        (["--sweep", "counts", "data.n_images=0"], "data.n_images=0"),
    ],
)
def test_what_cannot_work_is_refused(
    trained: Trained, capfd: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    study("claims", "runs: {seed: 0}\n")
    assert main(words) == 2
    assert message in capfd.readouterr().err
    assert not Path("outputs").exists()


def test_the_plan_of_a_study_says_what_is_there(trained: Trained, capfd: pytest.CaptureFixture[str]) -> None:
    name = study("one", "runs: {experiment: debug, data.n_images: [2, 3]}\n")
    main(["--sweep", name, "data.n_images=2", "tracker.progress=off"])
    assert main(["--sweep", name, "--dry-run"]) == 0
    assert capfd.readouterr().out.rstrip().endswith("2 runs: 1 finished, 1 to start")


def test_however_sweeps_grow_each_configuration_is_trained_once(trained: Trained) -> None:
    """Random values in random order, failures included; every further sweep is an extension of the earlier ones."""
    draw = random.Random(0)
    wanted: set[tuple[int, int]] = set()
    for _ in range(8):
        values = {
            "seed": draw.sample(range(4), draw.randint(1, 3)),
            "data.n_images": draw.sample([1, 2, 3], draw.randint(1, 2)),
        }
        keys = draw.sample(list(values), 2)
        words = [f"{key}={','.join(map(str, [*values[key], values[key][0]]))}" for key in keys]
        trained.failing = set(draw.sample(range(4), draw.randint(0, 1)))
        failing = trained.failing & set(values["seed"])
        status = main([*WORDS, "-m", "hydra.sweep.dir=here", *words])
        missing = {(n, seed) for n in values["data.n_images"] for seed in failing} - wanted
        assert status == (1 if missing else 0)
        wanted |= {
            (n, seed) for n in values["data.n_images"] for seed in values["seed"] if seed not in failing
        }
        completed = [json.loads(path.read_text()) for path in Path("here").glob("*/result.json")]
        assert sorted(
            (found["config"]["data"]["n_images"], found["config"]["seed"])
            for found in completed if found["status"] == "completed"
        ) == sorted(wanted)  # fmt: skip
    assert len({key for key in trained.runs if key in wanted}) == len(wanted)
    folders = list(Path("here").glob("*/result.json"))
    assert len(folders) == len(set(trained.runs))


def test_the_page_can_be_made_while_the_sweep_runs(
    trained: Trained, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """With runs that are finished, failed before they began, running, just begun, and to come."""
    from diffusion_lab.report.comparison import write_comparison

    pages: list[str] = []

    def run(config: Config, folder: Path) -> None:
        if config.seed == 2:
            pages.append(write_comparison(folder.parent).read_text("utf-8"))  # only Hydra's files are there
            record = {"status": "running", "config": plain(as_plain_dict(config))}
            (folder / "result.json").write_text(json.dumps(record))
            pages.append(write_comparison(folder.parent).read_text("utf-8"))
        trained.run(config, folder)

    monkeypatch.setattr(sys.modules["job_of_the_test"], "run", run)
    name = study("one", "runs: {experiment: debug, seed: [0, 1, 2, 3], data.n_images: 2}\n")
    trained.failing = {1}
    assert main(["--sweep", name, "tracker.progress=off"]) == 1
    assert all("seed=0" in page and "seed=2" in page and "seed=3" not in page for page in pages)
    assert main(["job=report", "job.runs=outputs/studies"]) == 0
    assert "seed=3" in Path("outputs/studies/comparison.html").read_text("utf-8")
