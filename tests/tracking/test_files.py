from __future__ import annotations

import errno
import getpass
import json
import logging
import os
import platform
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import yaml
from PIL import Image

from diffusion_lab.records import Summary, UserError
from diffusion_lab.runs import samples, scores
from diffusion_lab.runs.files import FileTracker
from diffusion_lab.system import provenance
from diffusion_lab.values import jsonable

KEYS = {
    "schema", "status", "error", "config", "provenance", "evaluations", "references", "recommendation", "cost",
    "metrics", "encoders", "prompts", "started", "finished", "steps_done", "ended", "run", "files",
}  # fmt: skip


def result(folder: Path) -> dict:  # type: ignore[type-arg]
    return json.loads((folder / "result.json").read_text(), parse_constant=lambda text: pytest.fail(text))


def events(folder: Path) -> list[dict]:  # type: ignore[type-arg]
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


class Similarity:
    """A metric's description; the record needs nothing else of it."""

    name, version, label, unit, higher_is_better = "similarity", "2", "Similarity", "cosine", True


def test_a_run_from_start_to_finish(tmp_path: Path, cases: ModuleType) -> None:
    folder = tmp_path / "run"
    tracker = FileTracker(folder)
    tracker.start(cases.CONFIG)
    assert result(folder)["status"] == "running"
    assert yaml.safe_load((folder / "config.yaml").read_text()) == cases.CONFIG
    tracker.metrics([Similarity()])  # type: ignore[list-item]
    tracker.encoders({"face": {"sha256": "00"}})
    ceiling = Summary(0.8, 20, 0, 0.01, 0.78, 0.82)
    tracker.references({"similarity": ceiling, "aesthetics": None}, {"similarity": None})
    tracker.training_pictures([np.zeros((64, 64, 3), np.uint8)] * 4, ["a.png", "b.png", "c.png", "d.png"])
    for step in (0, 50, 100):
        tracker.scalars(max(step, 1), {"train/loss": 0.5, "train/learning_rate": 1e-4})
        tracker.evaluation(cases.evaluation(step), cases.prompt_set())
    cost = {
        "training": {"seconds": 5.0, "peak_memory_bytes": 10},
        "evaluation": {"seconds": 50.0, "peak_memory_bytes": 20},
    }
    tracker.conclusion({"step": 50, "reason": "similarity stopped rising"}, cost, 100)
    tracker.finish("completed", {"steps_done": 120})

    told = result(folder)
    assert set(told) == KEYS
    assert (told["schema"], told["status"], told["error"], told["steps_done"]) == (1, "completed", None, 120)
    assert told["config"] == cases.CONFIG
    assert told["started"] < told["finished"]
    assert [entry["step"] for entry in told["evaluations"]] == [0, 50, 100]
    expected = {name: asdict(item) for name, item in cases.evaluation(50).summaries.items()}
    assert told["evaluations"][1]["metrics"] == expected
    assert told["evaluations"][1]["seconds"] == {"sampling": 1.5, "encoding": 0.5}
    assert told["references"] == {
        "similarity": {"ceiling": asdict(ceiling), "impostor": None},
        "aesthetics": {"ceiling": None, "impostor": None},
    }
    assert told["metrics"]["similarity"] == {
        "version": "2", "label": "Similarity", "unit": "cosine", "higher_is_better": True,
    }  # fmt: skip
    assert told["recommendation"]["step"] == 50
    assert told["cost"]["evaluation"] == {"seconds": 50.0, "peak_memory_bytes": 20}
    assert told["encoders"] == {"face": {"sha256": "00"}}

    rows = [row for step in (0, 50, 100) for row in cases.evaluation(step).rows]
    key = lambda row: (row.step, row.prompt_id, row.index, row.metric)  # noqa: E731
    assert scores.read(folder / "scores.parquet") == sorted(rows, key=key)

    kinds = [event["event"] for event in events(folder)]
    assert kinds == ["start", *["scalars", "evaluation"] * 3, "finish"]
    assert events(folder)[1]["values"] == {"train/loss": 0.5, "train/learning_rate": 1e-4}
    times = [event["time"] for event in events(folder)]
    assert times == sorted(times)

    sheets = sorted(path.name for path in (folder / "samples").iterdir())
    assert sheets == ["step-000000.png", "step-000050.png", "step-000100.png", "training.png"]
    drawn = np.asarray(Image.open(folder / "samples" / "step-000050.png"))
    top = samples.TITLE + 2 * samples.MARGIN
    shown = drawn[top : top + samples.PICTURE, samples.MARGIN : samples.MARGIN + samples.PICTURE]
    assert np.array_equal(shown[::2, ::2], cases.evaluation(50).images[0])


def test_scores_do_not_depend_on_the_run(tmp_path: Path, cases: ModuleType) -> None:
    for name in ("one", "two"):
        tracker = FileTracker(tmp_path / name)
        tracker.start({"run": name})
        for step in (0, 50):
            tracker.evaluation(cases.evaluation(step), cases.prompt_set())
        tracker.finish("completed", {})
    one, two = ((tmp_path / name / "scores.parquet").read_bytes() for name in ("one", "two"))
    assert one == two


def test_a_step_measured_again_replaces_what_stood(tmp_path: Path, cases: ModuleType) -> None:
    tracker = FileTracker(tmp_path)
    tracker.start({})
    for step in (50, 0, 50):
        tracker.evaluation(cases.evaluation(step), cases.prompt_set())
    assert [entry["step"] for entry in result(tmp_path)["evaluations"]] == [0, 50]
    assert len(scores.read(tmp_path / "scores.parquet")) == 24
    tracker.finish("completed", {})


def test_no_picture_needs_no_sheet(tmp_path: Path, cases: ModuleType) -> None:
    whole = cases.evaluation(0)
    tracker = FileTracker(tmp_path)
    tracker.start({})
    tracker.evaluation(type(whole)(0, (), whole.rows, whole.summaries, {}), cases.prompt_set())
    tracker.finish("completed", {})
    assert result(tmp_path)["evaluations"][0]["step"] == 0
    assert not (tmp_path / "samples").exists()


@pytest.mark.parametrize("status", ["interrupted", "diverged", "failed"])
def test_a_run_that_ends_early_says_so(tmp_path: Path, cases: ModuleType, status: str) -> None:
    tracker = FileTracker(tmp_path)
    tracker.start({})
    tracker.evaluation(cases.evaluation(50), cases.prompt_set())
    tracker.finish(
        status, {"error": "the loss is not finite at step 51", "cost": {"training": {"seconds": 1}}}
    )  # type: ignore[arg-type]
    tracker.finish("completed", {"error": None})  # somebody's `finally`
    told = result(tmp_path)
    assert told["status"] == status
    assert told["error"] == "the loss is not finite at step 51"
    assert told["cost"] == {"training": {"seconds": 1}}
    assert told["steps_done"] == 50
    assert len(told["evaluations"]) == 1


def test_a_folder_that_holds_a_run_is_refused(tmp_path: Path) -> None:
    first = FileTracker(tmp_path)
    first.start({"seed": 1})
    first.finish("completed", {})
    with pytest.raises(UserError, match=r"already holds a run.*hydra\.run\.dir"):
        FileTracker(tmp_path).start({"seed": 2})
    assert result(tmp_path)["config"] == {"seed": 1}


def test_a_run_goes_on_after_a_step(tmp_path: Path, cases: ModuleType) -> None:
    """Everything beyond that step goes, in all files alike, and comes again once."""
    first = FileTracker(tmp_path)
    first.start({"seed": 1})
    for step in (0, 2, 4):
        first.scalars(step + 1, {"train/loss": 1.0 / (step + 1)})
        first.evaluation(cases.evaluation(step), cases.prompt_set())
    first.finish("interrupted", {"error": "stopped"})
    started = result(tmp_path)["started"]
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"time": "2026')  # torn by a kill

    tracker = FileTracker(tmp_path, resume_step=2)
    tracker.start({"seed": 1})
    told = result(tmp_path)
    assert (told["status"], told["error"], told["finished"], told["started"]) == (
        "running",
        None,
        None,
        started,
    )
    assert [entry["step"] for entry in told["evaluations"]] == [0, 2]
    assert tracker.measured()[2] == cases.evaluation(2).summaries
    assert tracker.evaluation_seconds(2) == 2.0
    assert tracker.evaluation_seconds(4) == 0.0
    assert {row.step for row in scores.read(tmp_path / "scores.parquet")} == {0, 2}
    assert [(e["event"], e.get("step")) for e in events(tmp_path)] == [
        ("start", None), ("scalars", 1), ("evaluation", 0), ("evaluation", 2), ("finish", None), ("resume", None),
    ]  # fmt: skip
    tracker.scalars(3, {"train/loss": 0.5})
    tracker.evaluation(cases.evaluation(4), cases.prompt_set())
    tracker.finish("completed", {})
    whole = FileTracker(tmp_path / "whole")
    whole.start({"seed": 1})
    for step in (0, 2, 4):
        whole.evaluation(cases.evaluation(step), cases.prompt_set())
    whole.finish("completed", {})
    assert (tmp_path / "scores.parquet").read_bytes() == (tmp_path / "whole" / "scores.parquet").read_bytes()
    assert result(tmp_path)["evaluations"] == result(tmp_path / "whole")["evaluations"]


def test_an_evaluation_that_the_events_lack_is_told_again(tmp_path: Path, cases: ModuleType) -> None:
    """A kill between result.json and events.jsonl: what was measured stands in the other files."""
    first = FileTracker(tmp_path)
    first.start({})
    for step in (0, 2):
        first.evaluation(cases.evaluation(step), cases.prompt_set())
    lines = (tmp_path / "events.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "events.jsonl").write_text("".join(lines[:-1]))
    first.finish("interrupted", {})
    tracker = FileTracker(tmp_path, resume_step=2)
    tracker.start({})
    assert list(tracker.measured()) == [0, 2]
    assert {row.step for row in scores.read(tmp_path / "scores.parquet")} == {0, 2}
    assert [e["step"] for e in events(tmp_path) if e["event"] == "evaluation"] == [0, 2]
    tracker.finish("failed", {})


def test_other_code_is_noted_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for session, commit in enumerate(("a", "a", "b")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(provenance, "collect", lambda device, commit=commit: {"commit": commit})
            tracker = FileTracker(tmp_path, resume_step=0 if session else None)
            tracker.start({})
            tracker.finish("interrupted", {})
        assert ("other code" in caplog.text) == (commit == "b")
    assert result(tmp_path)["provenance"] == {"commit": "a", "resumed_with": {"commit": "b"}}


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "outputs").write_text("a file")
    with pytest.raises(UserError, match=r"hydra\.run\.dir"):
        FileTracker(tmp_path / "outputs" / "run").start({})


def test_a_disk_that_fills_up_keeps_what_was_measured(
    tmp_path: Path, cases: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk holds the first evaluation and half of the second one's scores."""
    tracker = FileTracker(tmp_path)
    tracker.start({})
    tracker.evaluation(cases.evaluation(0), cases.prompt_set())
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    room = 500
    real = os.write

    def write(descriptor: int, content: bytes) -> int:
        nonlocal room
        if room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = real(descriptor, bytes(content)[:room])
        room -= written
        return written

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(UserError, match="free some space"):
        tracker.evaluation(cases.evaluation(50), cases.prompt_set())
    with pytest.raises(UserError, match="free some space"):
        tracker.finish("failed", {"error": "disk"})
    monkeypatch.undo()
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before
    assert result(tmp_path)["status"] == "running"  # never "completed"
    assert not any(str(tmp_path) in getattr(h, "baseFilename", "") for h in logging.getLogger().handlers)


WRITER = """
import sys; sys.path.insert(0, sys.argv[1]); import cases, pathlib
from diffusion_lab.runs.files import FileTracker
tracker = FileTracker(sys.argv[2])
tracker.start({"seed": 0})
step = 0
while True:
    step += 1
    tracker.scalars(step, {"train/loss": 1 / step})
    tracker.evaluation(cases.evaluation(step, n=12), cases.prompt_set(12))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.parametrize("delay", [0.0, 0.013, 0.029, 0.051])
def test_a_kill_at_any_moment_leaves_whole_files(tmp_path: Path, delay: float) -> None:
    folder = tmp_path / "run"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(Path(__file__).parent), str(folder)])
    try:
        until = time.monotonic() + 120  # a busy machine takes long to start Python
        while not (folder / "samples" / "step-000003.png").exists():
            assert writer.poll() is None
            assert time.monotonic() < until
            time.sleep(0.002)
        time.sleep(delay)
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    told = result(folder)
    assert told["status"] == "running"
    assert told["finished"] is None
    steps = [entry["step"] for entry in told["evaluations"]]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) >= 2
    measured: dict[int, int] = {}
    for row in scores.read(folder / "scores.parquet"):
        measured[row.step] = measured.get(row.step, 0) + 1
    assert set(steps) <= set(measured)
    assert set(measured.values()) == {24}
    for sheet in (folder / "samples").glob("step-*.png"):
        Image.open(sheet).load()
    assert [event["event"] for event in events(folder)][:2] == ["start", "scalars"]
    assert {path.name for path in folder.iterdir() if not path.name.startswith(".")} == {
        "config.yaml", "result.json", "scores.parquet", "events.jsonl", "record.zip", "run.log", "samples",
    }  # fmt: skip


def test_the_log_of_one_run_does_not_reach_the_next(tmp_path: Path) -> None:
    logger = logging.getLogger("diffusion_lab.test")
    handlers = list(logging.getLogger().handlers)
    for name in ("one", "two"):
        tracker = FileTracker(tmp_path / name)
        tracker.start({})
        logger.warning("message of %s", name)
        tracker.finish("completed", {})
    logger.warning("message of nobody")
    assert logging.getLogger().handlers == handlers
    assert "message of one" in (tmp_path / "one" / "run.log").read_text()
    assert "message of two" not in (tmp_path / "one" / "run.log").read_text()
    assert "nobody" not in (tmp_path / "two" / "run.log").read_text()


def test_a_log_file_that_is_open_already_is_not_written_twice(tmp_path: Path) -> None:
    handler = logging.FileHandler(tmp_path / "run.log")
    logging.getLogger().addHandler(handler)
    try:
        tracker = FileTracker(tmp_path)
        tracker.start({})
        logging.getLogger("diffusion_lab.test").warning("once")
        tracker.finish("completed", {})
        assert handler in logging.getLogger().handlers
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
    assert (tmp_path / "run.log").read_text().count("once") == 1


# --- provenance ---------------------------------------------------------------------------------------


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=T", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", "-C", folder, *identity, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_commit_and_dirty_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "checkout" / "package"
    package.mkdir(parents=True)
    assert provenance.checkout(package) == (None, None)  # no repository
    git(package.parent, "init", "-q")
    (package / "__init__.py").write_text("")
    assert provenance.checkout(package) == (None, None)  # not the repository's file
    git(package.parent, "add", ".")
    assert provenance.checkout(package) == (None, None)  # before the first commit
    git(package.parent, "commit", "-qm", "first")
    commit = git(package.parent, "rev-parse", "HEAD")
    assert provenance.checkout(package) == (commit, False)
    (package / "new.py").write_text("x = 1")
    assert provenance.checkout(package) == (commit, True)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.checkout(package) == (None, None)  # no git


def test_what_is_collected_names_nobody() -> None:
    found = provenance.collect("cpu")
    assert set(found) == {
        "commit", "dirty", "versions", "device", "os", "python", "cores", "memory_bytes", "environment",
    }  # fmt: skip
    assert found["device"].startswith("cpu")
    assert found["python"] == platform.python_version()
    assert found["cores"] >= 1
    assert found["memory_bytes"] > 2**28
    assert {"torch", "diffusers", "numpy"} <= set(found["versions"])
    text = jsonable.dumps(found)
    assert str(Path.home()) not in text
    if len(platform.node()) > 3:
        assert platform.node() not in text
    if len(getpass.getuser()) > 4:
        assert getpass.getuser() not in text
