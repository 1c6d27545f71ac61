"""The end of a run: killed at every step of it, out of room, diverged. The status never says more than is there."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from diffusion_lab.cli.compose import compose
from diffusion_lab.config.schema import Config
from diffusion_lab.jobs import conclude as module
from diffusion_lab.jobs import perform
from diffusion_lab.plan.defaults import fill_defaults
from diffusion_lab.runs.resume import folder_status

ROOT = Path(__file__).parents[1]
WORDS = [
    "experiment=debug", "metrics=debug", "metrics.names=[diversity]", "steps.total=2", "steps.every=1", "prompts.n=2",
    "steps.batch_size=1", "steps.log_every=1", "model.device=cpu",
]  # fmt: skip

# Where the process ends: a function of the program, before or after its first (or last) call at the run's end.
KILLS = (
    "after FileTracker.conclusion", "before _place_artefact", "before annotate",
    "after _place_artefact", "before _report", "after _report", "before FileTracker.finish", "before backup.write",
    "after backup.write", "after FileTracker.finish",
)  # fmt: skip

DRIVER = """
import json, os, shutil, sys, traceback
from pathlib import Path
import torch
torch.set_num_threads(1)
from diffusion_lab.cli.compose import compose
from diffusion_lab.plan.defaults import fill_defaults
from diffusion_lab.jobs import conclude, load, perform
from diffusion_lab.runs import backup
from diffusion_lab.runs.files import FileTracker
load("finetune")
root, words, kills = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
config = fill_defaults(compose(words))
owners = {"FileTracker": FileTracker, "backup": backup}

def kill(where):
    when, _, name = where.partition(" ")
    owner, _, function = name.rpartition(".")
    holder = owners.get(owner, conclude)
    real = getattr(holder, function)
    def wrapped(*given, **named):
        if when == "before":
            os._exit(9)
        real(*given, **named)
        os._exit(9)
    setattr(holder, function, wrapped)

def ended(work):
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(work())
        except BaseException:
            traceback.print_exc()
        os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def run(folder, where=None):
    def work():
        if where and where.startswith(("before backup", "after backup")):  # the one at the end
            real = conclude._report
            def report(*given):
                kill(where)
                return real(*given)
            conclude._report = report
        elif where:
            kill(where)
        return perform(config, folder).exit_status
    return ended(work)

codes = {"whole": [run(root / "whole")]}
codes["trained"] = [run(root / "trained", "before FileTracker.conclusion")]
for where in kills:
    folder = root / where.replace(" ", "-")
    # Only the first comes from the training itself: from there on its end is made from the record, and quick.
    shutil.copytree(root / ("trained" if where == kills[0] else kills[0].replace(" ", "-")), folder)
    codes[where] = [run(folder, where)]
    codes[where].append(json.loads((folder / "result.json").read_text())["status"])
for where in kills:
    codes[where].append(run(root / where.replace(" ", "-")))
print(json.dumps(codes))
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[Any]]]:
    """Every one of KILLS and the same command after it, out of one process: imports take longest."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    root = tmp_path_factory.mktemp("kills")
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(root), json.dumps(WORDS), json.dumps(KILLS)],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=1800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return root, json.loads(done.stdout.splitlines()[-1])


def files(folder: Path) -> dict[str, bytes]:
    """Those whose bytes are the same in every run; of others that they are there."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and path.name != ".lock":
            timed = name in ("result.json", "events.jsonl", "run.log", "record.zip", "report.html")
            found[name] = b"" if timed or name.startswith("checkpoints/") else path.read_bytes()
    return found


@pytest.mark.parametrize("where", KILLS)
def test_killed_while_it_was_closed(killed: tuple[Path, dict[str, list[Any]]], where: str) -> None:
    root, codes = killed
    assert codes["whole"] == [0]
    assert codes["trained"] == [9]
    code, status, again = codes[where]
    assert code == 9, "it was killed there"
    assert status == ("completed" if where == "after FileTracker.finish" else "running")
    assert again == 0
    folder, whole = root / where.replace(" ", "-"), root / "whole"
    assert files(folder) == files(whole)
    results = [json.loads((one / "result.json").read_text()) for one in (folder, whole)]
    for name in ("status", "error", "recommendation", "references", "steps_done", "prompts", "run", "config"):
        assert results[0][name] == results[1][name], name
    assert results[0]["cost"].keys() == results[1]["cost"].keys()
    assert results[0]["files"].keys() == results[1]["files"].keys()
    for one, other in zip(*(result["evaluations"] for result in results), strict=True):
        assert (one["step"], one["metrics"]) == (other["step"], other["metrics"])
    assert folder_status(fill_defaults(compose(WORDS)), folder) == "finished"


# --- out of room --------------------------------------------------------------------------------------


@pytest.fixture
def _no_log_left() -> Iterator[None]:
    import logging

    root = logging.getLogger()
    handlers = root.handlers[:]
    yield
    assert root.handlers == handlers


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.usefixtures("_no_log_left")
@pytest.mark.parametrize("place", ["_link_all", "_report"])
@pytest.mark.parametrize("checkpoints", ["null", "0"])
def test_a_disk_that_fills_up_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, checkpoints: str
) -> None:
    """The run is not called completed; with room the same command completes it, without training again."""
    config = fill_defaults(compose([*WORDS, f"steps.checkpoint_every={checkpoints}"]))
    monkeypatch.setattr(module, place, full)
    outcome = perform(config, tmp_path)
    assert outcome.exit_status == 2
    assert "free some space" in outcome.message
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["status"] == "failed"
    assert "free some space" in result["error"] or "No space left" in result["error"]
    assert folder_status(config, tmp_path) == "incomplete"
    monkeypatch.undo()

    def trained(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr("diffusion_lab.training.loop.train", trained)
    assert perform(config, tmp_path).exit_status == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["status"], result["error"]) == ("completed", None)
    assert (tmp_path / "report.html").is_file()
    assert (tmp_path / "artefact" / "pytorch_lora_weights.safetensors").is_file()
    assert folder_status(config, tmp_path) == "finished"


# --- diverged, failed ---------------------------------------------------------------------------------

DIVERGING = [
    *WORDS, "method.learning_rate=1e30", "steps.max_grad_norm=0", "steps.total=12", "steps.every=12", "steps.batch_size=1",
]  # fmt: skip


def test_a_diverged_run_stays_diverged(
    run_main: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Given again, alone, with a part missing, and as a job of a sweep."""
    words = [*DIVERGING, "hydra.run.dir=sweep/first"]
    assert run_main(*words) == 3
    folder = tmp_path / "sweep" / "first"
    before = json.loads((folder / "result.json").read_text())
    assert before["status"] == "diverged"
    capfd.readouterr()
    assert run_main(*words) == 3
    told = capfd.readouterr().err
    assert "diverged" in told
    assert before["error"] in told
    assert json.loads((folder / "result.json").read_text()) == before
    (folder / "report.html").unlink()
    assert run_main(*words) == 3
    assert (folder / "report.html").is_file()
    after = json.loads((folder / "result.json").read_text())
    assert (after["status"], after["error"]) == ("diverged", before["error"])
    capfd.readouterr()
    for _ in range(2):  # the sweep's own job is the same run, whatever its folder would be called
        assert run_main("-m", *DIVERGING, "seed=0", "hydra.sweep.dir=sweep") == 1
        told = capfd.readouterr().err
        assert "0 of 1 jobs completed, 1 failed" in told
        assert "diverged: " in told
        assert [path.parent.name for path in Path("sweep").glob("*/result.json")] == ["first"]


def test_a_failed_run_is_tried_again_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import logging

    caplog.set_level(logging.INFO)
    config: Config = fill_defaults(compose(WORDS))
    with monkeypatch.context() as patch:
        patch.setattr("diffusion_lab.training.loop.training_step", full)
        assert perform(config, tmp_path).exit_status == 2
    assert json.loads((tmp_path / "result.json").read_text())["status"] == "failed"
    assert perform(config, tmp_path).exit_status == 0
    assert "it failed before, and is tried again: " in caplog.text
