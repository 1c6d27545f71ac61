"""The entry point: exit statuses, messages, folders, sweeps. The job itself is a small one of our own."""

from __future__ import annotations

import json
import logging
import os
import random
import subprocess
import sys
import textwrap
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from diffusion_lab import jobs
from diffusion_lab.__main__ import main
from diffusion_lab.cli.folders import claim
from diffusion_lab.config.schema import Config
from diffusion_lab.jobs import finetune
from diffusion_lab.records import TrainingDiverged, UserError
from diffusion_lab.studies.record import find_studies

QUICK = ["model=folder", "model.path=owner/name"]  # a hub id passes the checks; the job here loads nothing

Job = Callable[[Config, Path], None]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty working folder; the logging that Hydra sets up does not outlive the test."""
    monkeypatch.chdir(tmp_path)
    root, ours = logging.getLogger(), logging.getLogger("diffusion_lab")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    yield
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


@pytest.fixture
def run_as(monkeypatch: pytest.MonkeyPatch) -> Callable[[Job], None]:
    """Puts a function in the place of job=finetune."""

    def put(job: Job) -> None:
        module = types.ModuleType("job_of_the_test")
        module.run, module.check = job, finetune.check  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "job_of_the_test", module)
        monkeypatch.setitem(jobs.JOBS, "finetune", "job_of_the_test")
        # The job loads nothing, so the hub's files that it would need are not fetched before it either.
        monkeypatch.setattr("diffusion_lab.plan.fetch.fetch", lambda config, files: None)

    return put


def complete(config: Config, run_folder: Path) -> None:
    (run_folder / "result.json").write_text(json.dumps({"status": "completed", "n": config.data.n_images}))


def folders(pattern: str = "outputs/*/*") -> list[Path]:
    return sorted(path for path in Path().glob(pattern) if path.is_dir())


def test_one_run(run_as: Callable[[Job], None]) -> None:
    seen: list[tuple[Config, Path]] = []
    run_as(lambda config, folder: seen.append((config, folder)))
    assert main([*QUICK, "data.n_images=4"]) == 0
    [(config, folder)] = seen
    assert folder == Path.cwd() / folders()[0]
    assert folder.is_dir()
    assert (config.data.n_images, config.steps.total, config.steps.every) == (4, 400, 67)
    assert config.data.class_noun == "woman"
    assert (folder / ".hydra" / "overrides.yaml").read_text().splitlines() == [
        f"- {q}" for q in [*QUICK, "data.n_images=4"]
    ]
    assert "evaluations of 100 images" in (folder / "run.log").read_text()


def test_runs_of_one_second_have_folders_of_their_own(run_as: Callable[[Job], None]) -> None:
    run_as(complete)
    words = [*QUICK, "hydra.run.dir=same"]
    assert main(words) == 0
    record = Path("same/result.json").read_bytes()
    assert main(words) == 0, "a folder chosen by hand that holds a finished run is left alone"
    assert Path("same/result.json").read_bytes() == record
    assert main([*words, "resume=never"]) == 2
    taken = Path("outputs")
    claimed = [claim(taken.absolute() / "now", "hydra.run.dir", [], 0).name for _ in range(3)]
    assert claimed == ["now", "now-2", "now-3"]


@pytest.mark.parametrize(
    ("error", "exit_status", "status"),
    [
        (UserError("data.folder=x: is bad; choose another"), 2, "failed"),
        (TrainingDiverged("loss is nan at step 3"), 3, "diverged"),
        (KeyError("boom"), 1, "failed"),
        (OSError(28, "No space left on device", "scores.parquet"), 2, "failed"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_a_job_that_fails_leaves_a_record_and_its_exit_status(
    run_as: Callable[[Job], None],
    capfd: pytest.CaptureFixture[str],
    error: BaseException,
    exit_status: int,
    status: str,
) -> None:
    def fail(config: Config, folder: Path) -> None:
        raise error

    run_as(fail)
    assert main(QUICK) == exit_status
    [folder] = folders()
    result = json.loads((folder / "result.json").read_text())
    assert result["status"] == status
    assert type(error).__name__ in result["error"] or "scores.parquet" in result["error"]
    told = capfd.readouterr().err
    assert ("Traceback" in told) == (exit_status == 1), "only what a person cannot mend shows a traceback"
    assert ("Traceback" in (folder / "run.log").read_text()) == (exit_status == 1)
    if exit_status == 1:
        assert "raise error" in result["traceback"]
    if exit_status in (2, 3):
        assert told.splitlines()[-1].startswith("error: ")
        assert "HYDRA" not in told


def test_a_jobs_own_record_is_left_as_it_is(run_as: Callable[[Job], None]) -> None:
    def fail(config: Config, folder: Path) -> None:
        (folder / "result.json").write_text('{"status": "diverged", "measured": 7}')
        raise TrainingDiverged("nan")

    run_as(fail)
    assert main(QUICK) == 3
    assert json.loads((folders()[0] / "result.json").read_text()) == {"status": "diverged", "measured": 7}


@pytest.mark.parametrize(
    "word",
    [
        "data.n_image=4", "+data.n_image=4",
        "metod=lora", "method=lroa", "data.n_images=no", "data.n_images=0",
        "data.subject=ana", "data.n_images", "--frobnicate", "experiment=dbug", "hydra.run.dir=file/x",
        "--config-name=other", "seed=1,2", "data.impostors=nowhere",
    ],
)  # fmt: skip
def test_what_is_wrong_ends_with_2_one_line_and_no_folder(
    capfd: pytest.CaptureFixture[str], word: str
) -> None:
    Path("file").write_text("")
    assert main([*QUICK, word]) == 2
    told = capfd.readouterr().err.strip()
    assert told.startswith("error: ")
    assert told.count("\n") <= 1
    assert word.lstrip("+-").split("=")[0].split("/")[0] in told
    assert "Traceback" not in told
    assert "HYDRA_FULL_ERROR" not in told
    assert os.listdir() == ["file"]


@pytest.mark.parametrize(
    "word",
    [
        "tracker.entity=hf_" + "a" * 34,
        "tracker.tags=[" + "wandb_v1_" + "b" * 40 + "]",
        "model.path=https://me:secret@host/x",
        "tracker.run_name=${oc.env:WANDB_API_KEY}",
        "tracker.run_name=" + "0f" * 20,
        "hydra.job.env_copy=[HF_TOKEN]",
        "+hydra.job.env_set.WANDB_API_KEY=x",
    ],
)
def test_secrets_are_refused_and_not_repeated(capfd: pytest.CaptureFixture[str], word: str) -> None:
    assert main([*QUICK, word]) == 2
    told = capfd.readouterr().err
    assert "token" in told
    assert word.partition("=")[2] not in told
    assert os.listdir() == []


def test_a_revision_is_no_secret(run_as: Callable[[Job], None]) -> None:
    run_as(complete)
    assert main([*QUICK, f"model.revision={'0f' * 20}", f"tracker.run_name=cache/{'0f' * 20}"]) == 0


@pytest.mark.parametrize("word", ["--dry-run", "job.dry_run=true"])
def test_dry_run_prints_the_plan_and_writes_nothing(capfd: pytest.CaptureFixture[str], word: str) -> None:
    assert main([*QUICK, word, "steps.total=60"]) == 0
    told = capfd.readouterr().out
    for words in ("images sampled", "700", "0, 10, 20, 30, 40, 50, 60", "about", "GiB"):
        assert words in told
    assert os.listdir() == []


def test_help_names_every_group_and_option(capfd: pytest.CaptureFixture[str]) -> None:
    from diffusion_lab.cli.compose import groups

    assert main(["--help"]) == 0
    told = capfd.readouterr().out
    for group, options in groups().items():
        for word in (group, *options):
            assert word in told
    assert "--dry-run" in told
    assert max(map(len, told.splitlines())) <= 110


def test_cfg_job_prints_the_configuration(capfd: pytest.CaptureFixture[str]) -> None:
    import yaml

    assert main(["--cfg", "job", "data.n_images=9"]) == 0
    told = yaml.safe_load(capfd.readouterr().out)
    assert told["data"]["n_images"] == 9
    assert told["method"]["name"] == "lora"


def test_options_of_ones_own(run_as: Callable[[Job], None]) -> None:
    seen: list[Config] = []
    run_as(lambda config, folder: seen.append(config))
    Path("mine/steps").mkdir(parents=True)
    Path("mine/steps/long.yaml").write_text("total: 12345\n")
    assert main([*QUICK, "--config-dir", "mine", "steps=long"]) == 0
    assert seen[0].steps.total == 12345


def test_other_jobs_make_no_run_folder() -> None:
    assert main(["job=subjects", "job.output=people"]) == 0
    assert len(list(Path("people").glob("*/*.png"))) == 280
    assert os.listdir() == ["people"]


@pytest.mark.parametrize(
    "value", ["a b", "it's", "back\\slash", "x=1,y=[2]", "${now:%H}"[:1] + "5", "trail\\"]
)
def test_quoted_values_come_back_unchanged(value: str) -> None:
    from diffusion_lab.cli.compose import compose
    from diffusion_lab.values.quoting import quoted

    assert compose([f"tracker.run_name={quoted(value)}"]).tracker.run_name == value


# --- sweeps -------------------------------------------------------------------------------------------


def test_a_sweep_goes_on_after_a_failure_and_leaks_nothing(
    run_as: Callable[[Job], None], capfd: pytest.CaptureFixture[str]
) -> None:
    import numpy as np
    import torch

    before: list[tuple[object, ...]] = []

    def job(config: Config, folder: Path) -> None:
        before.append(
            (
                random.random(), float(np.random.rand()), float(torch.rand(())), torch.get_num_threads(),  # noqa: NPY002
                torch.get_default_dtype(), torch.is_grad_enabled(),
                torch.are_deterministic_algorithms_enabled(),
                os.environ.get("LEFT_BEHIND"), os.getcwd(),
            )
        )  # fmt: skip
        torch.set_num_threads(torch.get_num_threads() + 1)
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        torch.use_deterministic_algorithms(True)
        os.environ["LEFT_BEHIND"] = "yes"
        os.chdir(folder)
        if config.data.n_images == 5:
            raise KeyError("boom")
        complete(config, folder)

    run_as(job)
    assert main([*QUICK, "-m", "data.n_images=4,5,14", "tracker.group=try"]) == 1
    assert len(before) == 3
    assert before[0] == before[1] == before[2]
    [sweep] = folders("outputs/sweeps/try_*")
    results = {path.parent.name: json.loads(path.read_text()) for path in sweep.glob("*/result.json")}
    assert {name: result["status"] for name, result in results.items()} == {
        "n_images=4": "completed", "n_images=5": "failed", "n_images=14": "completed",
    }  # fmt: skip
    failed = sweep / "n_images=5"
    assert "boom" in json.loads((failed / "result.json").read_text())["error"]
    assert "KeyError: 'boom'" in (failed / "run.log").read_text(), "its traceback is kept"
    told = capfd.readouterr().err
    assert "2 of 3 jobs completed, 1 failed" in told
    assert f"failed: {failed.name}: KeyError: 'boom'" in told


def test_a_study_is_a_sweep_and_ends_with_its_page(
    run_as: Callable[[Job], None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_as(complete)
    (tmp_path / "mine.yaml").write_text("# Question: seeds?\ndata.n_images: [4, 14]\n", "utf-8")
    assert main([*QUICK, "--sweep", str(tmp_path / "mine.yaml"), "seed=3"]) == 0
    [sweep] = folders("outputs/studies")
    assert len(list(sweep.glob("*/result.json"))) == 2
    assert [study.name for study in find_studies(sweep)] == ["mine"]
    told = capfd.readouterr().err
    for page in ("_mine/index.html", "index.html"):
        assert (sweep / page).is_file()
        assert f"{sweep}/{page}\n" in told


def test_a_sweep_without_failures(run_as: Callable[[Job], None]) -> None:
    groups: list[str | None] = []

    def job(config: Config, folder: Path) -> None:
        groups.append(config.tracker.group)
        complete(config, folder)

    run_as(job)
    assert main([*QUICK, "-m", "data.n_images=4,14"]) == 0
    [sweep] = folders("outputs/sweeps/*")
    assert groups == [sweep.name] * 2
    ended = [json.loads(line) for line in (sweep / "jobs.jsonl").read_text().splitlines()]
    assert [job["status"] for job in ended] == ["completed", "completed"]


def test_what_preflight_refuses_fails_one_job_only(run_as: Callable[[Job], None]) -> None:
    run_as(complete)
    assert main([*QUICK, "-m", "data.n_images=4,99,14"]) == 1
    [sweep] = folders("outputs/sweeps/*")
    results = {path.parent.name: json.loads(path.read_text()) for path in sweep.glob("*/result.json")}
    assert {name: result["status"] for name, result in results.items()} == {
        "n_images=4": "completed", "n_images=99": "failed", "n_images=14": "completed",
    }  # fmt: skip
    assert "UserError: data.n_images=99" in results["n_images=99"]["error"]


def test_ctrl_c_stops_a_sweep(run_as: Callable[[Job], None], capfd: pytest.CaptureFixture[str]) -> None:
    seen: list[int] = []

    def job(config: Config, folder: Path) -> None:
        seen.append(config.data.n_images)
        if config.data.n_images == 5:
            raise KeyboardInterrupt
        complete(config, folder)

    run_as(job)
    assert main([*QUICK, "-m", "data.n_images=4,5,6"]) == 130
    assert seen == [4, 5]
    [record] = Path().glob("outputs/sweeps/*/n_images=5/result.json")
    assert json.loads(record.read_text())["status"] == "interrupted"
    assert "1 of 3 jobs completed" in capfd.readouterr().err


@pytest.mark.parametrize(
    "word", ["data.n_images=4,0", "data.n_images=4,x", "method=lora,lroa", "steps.every=5,-1"]
)
def test_a_wrong_value_stops_a_sweep_before_it_starts(
    run_as: Callable[[Job], None], capfd: pytest.CaptureFixture[str], word: str
) -> None:
    run_as(complete)
    assert main([*QUICK, "-m", word]) == 2
    assert capfd.readouterr().err.startswith(f"error: {word.partition('=')[0]}")
    assert os.listdir() == []


def test_dry_run_of_a_sweep(capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*QUICK, "-m", "steps.total=6,12", "--dry-run"]) == 0
    told = capfd.readouterr().out
    assert "0, 1, 2, 3, 4, 5, 6" in told
    assert "0, 2, 4, 6, 8, 10, 12" in told
    assert os.listdir() == []


@pytest.mark.slow
def test_another_launcher_marks_its_failures_too(capfd: pytest.CaptureFixture[str]) -> None:
    """joblib hands jobs and outcomes to other processes and back."""
    words = ["-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "data.n_images=98,99"]
    assert main([*QUICK, *words]) == 1
    [sweep] = folders("outputs/sweeps/*")
    results = [json.loads(path.read_text()) for path in sorted(sweep.glob("*/result.json"))]
    assert [result["error"].split(",")[0] for result in results] == [
        "UserError: data.n_images=98", "UserError: data.n_images=99",
    ]  # fmt: skip
    assert "0 of 2 jobs completed, 2 failed" in capfd.readouterr().err


# --- nothing slow before the work begins --------------------------------------------------------------


def test_answers_come_before_anything_slow_is_imported(tmp_path: Path) -> None:
    script = """
        import contextlib, io, sys, time
        from diffusion_lab.__main__ import main
        for words in [["--help"], ["--cfg", "job"], ["data.n_image=3"], ["method=lroa"], ["data.n_images=x"],
                      ["data.n_images=0"], ["data.subject=ana"], ["model=sd15", "--dry-run"]]:
            began = time.process_time()
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                status = main(words)
            heavy = {"torch", "diffusers", "transformers", "wandb", "pyarrow"}
            if words == ["--help"]:  # the first word of all, so nothing else has brought them
                heavy |= {"numpy", "hydra", "PIL", "http.client", "huggingface_hub"}
            slow = sorted(heavy & set(sys.modules))
            print(words[0], status, slow, round(time.process_time() - began, 2))
        print("all", round(time.process_time(), 2))
    """
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, cwd=tmp_path,
        check=True,         env={**os.environ, "PYTHONPATH": str(Path(jobs.__file__).parents[2])},
    ).stdout.splitlines()  # fmt: skip
    told = [line.rsplit(" ", 1) for line in found]
    assert [words for words, _ in told] == [
        "--help 0 []", "--cfg 0 []", "data.n_image=3 2 []", "method=lroa 2 []", "data.n_images=x 2 []",
        "data.n_images=0 2 []", "data.subject=ana 2 []", "model=sd15 0 []", "all",
    ]  # fmt: skip
    assert all(float(seconds) < 2 for _, seconds in told[:-1]), found


def test_as_a_program(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "diffusion_lab", "data.n_images=0"], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(jobs.__file__).parents[2])}, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "error: data.n_images=0: must be a whole number from 1 to 100000\n"
