"""The line about a running sweep: plain lines at changes, a live one on a terminal, above a job's own bars."""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path

import pytest

from diffusion_lab.cli import sweep_live
from diffusion_lab.studies.watch import ENDED, Watch, Watched
from diffusion_lab.system import progress


def standard_error(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Takes the place of sys.stderr; not as a fixture, since pytest sets its own before the test begins."""
    found = io.StringIO()
    monkeypatch.setattr(sys, "stderr", found)
    monkeypatch.setattr(sweep_live, "LOOK", 0.01)
    return found


def end(folder: Path, name: str, status: str, error: str = "") -> None:
    with (folder / ENDED).open("a") as file:
        file.write(f'{{"job": "{name}", "name": "{name}", "status": "{status}", "error": "{error}"}}\n')


def until(what: object, stream: io.StringIO) -> None:
    deadline = time.monotonic() + 10
    while str(what) not in stream.getvalue():
        assert time.monotonic() < deadline, stream.getvalue()
        time.sleep(0.01)


def sweep(folder: Path) -> Watch:
    return Watch([Watched(folder / name) for name in ("a", "b", "c")], folder)


@pytest.mark.parametrize("mode", ["lines", "bars"])
def test_changes_and_failures_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    stream = standard_error(monkeypatch)
    with sweep_live.told(sweep(tmp_path), mode, in_process=False):
        (tmp_path / "a" / ".hydra").mkdir(parents=True)
        (tmp_path / "a" / ".hydra" / "overrides.yaml").write_text("[]")
        until("0 of 3 done, 1 running, 0 failed, 2 to come", stream)
        end(tmp_path, "a", "completed")
        until("1 of 3 done, 0 running, 0 failed, 2 to come", stream)
        end(tmp_path, "b", "failed", "UserError: too dark")
        until("failed: b: UserError: too dark", stream)
        until("1 of 3 done, 0 running, 1 failed, 1 to come", stream)
    told = stream.getvalue()
    assert told.count("failed: b") == 1
    if mode == "lines":
        assert told.count("1 of 3 done, 0 running, 0 failed") == 1, "said at the change only"


def test_off_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = standard_error(monkeypatch)
    with sweep_live.told(sweep(tmp_path), "off", in_process=False):
        end(tmp_path, "a", "failed")
        time.sleep(0.1)
    assert stream.getvalue() == ""


def test_jobs_in_this_process_show_it_above_their_bars(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = standard_error(monkeypatch)
    with (
        sweep_live.told(sweep(tmp_path), "bars", in_process=True),
        progress.Progress("bars", stream=stream) as shown,
        shown.task("training", 4) as task,
    ):
        task.advance()
        until("0 of 3 done, 0 running, 0 failed, 3 to come", stream)
        until("training", stream)
    assert progress.headline is None
