from __future__ import annotations

import builtins
import json
import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from diffusion_lab.config import schema as config
from diffusion_lab.records import UserError
from diffusion_lab.runs.files import FileTracker
from diffusion_lab.trackers import Fanout, build_trackers


class Broken:
    """A view that fails from its n-th call on, its end included."""

    essential = False

    def __init__(self, good_calls: int) -> None:
        self.left, self.calls = good_calls, []  # type: tuple[int, list[str]]

    def _call(self, name: str) -> None:
        self.calls.append(name)
        self.left -= 1
        if self.left < 0:
            raise ConnectionError("the line is dead")

    def start(self, config: Any) -> None:
        self._call("start")

    def scalars(self, step: int, values: Any) -> None:
        self._call("scalars")

    def evaluation(self, evaluation: Any, prompts: Any) -> None:
        self._call("evaluation")

    def finish(self, status: Any, summary: Any) -> None:
        self._call("finish")


@pytest.mark.parametrize("good_calls", [0, 1, 2, 3])
def test_a_broken_view_stops_nothing_and_is_closed(
    tmp_path: Path, cases: ModuleType, caplog: pytest.LogCaptureFixture, good_calls: int
) -> None:
    broken = Broken(good_calls)
    tracker = Fanout([broken, FileTracker(tmp_path)])
    with caplog.at_level(logging.WARNING, logger="diffusion_lab"):
        tracker.start({})
        tracker.scalars(1, {"train/loss": 1.0})
        tracker.evaluation(cases.evaluation(1), cases.prompt_set())
        tracker.scalars(2, {"train/loss": 1.0})
        tracker.finish("completed", {})
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["status"] == "completed"
    assert len(result["evaluations"]) == 1
    assert caplog.text.count("Broken stopped") == 1
    assert broken.calls[good_calls:] == [["start", "scalars", "evaluation", "scalars"][good_calls], "finish"]


def test_files_that_cannot_be_written_stop_the_run_and_close_the_views(
    tmp_path: Path, cases: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = Broken(100)
    tracker = Fanout([FileTracker(tmp_path / "run"), good])
    tracker.start({})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="free some space"):
        tracker.evaluation(cases.evaluation(1), cases.prompt_set())
    with pytest.raises(UserError, match="free some space"):
        tracker.finish("failed", {})
    assert good.calls == ["start", "finish"]


def test_ctrl_c_is_not_swallowed(tmp_path: Path) -> None:
    class Slow(Broken):
        def scalars(self, step: int, values: Any) -> None:
            raise KeyboardInterrupt

    tracker = Fanout([FileTracker(tmp_path), Slow(100)])
    tracker.start({})
    with pytest.raises(KeyboardInterrupt):
        tracker.scalars(1, {})
    tracker.finish("interrupted", {})
    assert json.loads((tmp_path / "result.json").read_text())["status"] == "interrupted"


def test_a_wandb_that_cannot_be_imported_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name == "wandb" or name.startswith("wandb."):
            raise ImportError("no module named wandb")
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    for name in [name for name in sys.modules if name == "diffusion_lab.trackers.wandb"]:
        monkeypatch.delitem(sys.modules, name)
    with caplog.at_level(logging.WARNING, logger="diffusion_lab"):
        trackers = build_trackers(config.Tracking(), tmp_path)
    assert [type(tracker).__name__ for tracker in trackers] == ["FileTracker"]
    assert "continues without it" in caplog.text


def test_building_trackers_loads_nothing_slow() -> None:
    import subprocess

    code = (
        "import sys; import diffusion_lab.trackers, diffusion_lab.system.progress\n"
        "print([m for m in ('torch', 'wandb', 'pyarrow', 'rich', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
