"""The table of jobs behind the single entry point, and the error handling common to all jobs.

A job is a module with `check(config, run_folder) -> Plan`, which loads nothing slow, and
`run(config, run_folder)`.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion_lab.records import Pruned, Status, Terminated, TrainingDiverged, UserError
from diffusion_lab.system import environment, failures, processes

if TYPE_CHECKING:
    from diffusion_lab.config.schema import Config
    from diffusion_lab.plan.plan import Plan

log = logging.getLogger(__name__)

JOBS: dict[str, str] = {
    "finetune": "diffusion_lab.jobs.finetune",
    "generate": "diffusion_lab.jobs.generate",
    "score": "diffusion_lab.jobs.score",
    "report": "diffusion_lab.jobs.report",
    "study": "diffusion_lab.jobs.study",
    "pretrain": "diffusion_lab.jobs.pretrain",
    "subjects": "diffusion_lab.jobs.subjects",
    "train_aesthetics": "diffusion_lab.jobs.train_aesthetics",
}
WITH_RUN_FOLDER = (
    "finetune",
    "score",
)  # the others write to a given folder and need no run folder


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended. Always picklable, whatever the error, because launchers pass it between processes."""

    status: Status
    exit_status: int  # of the process, if it runs only this job
    error: str | None = None  # "UserError: data.subject=...: ..."

    @property
    def message(self) -> str:
        """The error without its type, for display to the user."""
        return (self.error or "").partition(": ")[2] or (self.error or "")


def load(name: str) -> Callable[[Config, Path], None]:
    """The job's `run` function."""
    run: Callable[[Config, Path], None] = importlib.import_module(JOBS[name]).run
    return run


def check(config: Config, run_folder: Path) -> Plan:
    """The job's plan. Writes nothing. The defaults in `config` are filled in. UserError if it cannot work."""
    plan: Plan = importlib.import_module(JOBS[config.job.name]).check(config, run_folder)
    return plan


def perform(config: Config, run_folder: Path, *, before: Callable[[], object] = lambda: None) -> Outcome:
    """Runs `before` (checks) and the job. An error is logged, written to the run folder and returned.

    Raises only KeyboardInterrupt and SystemExit, after recording them, because they must end an entire sweep.
    SIGTERM is treated the same.
    """
    try:
        with environment.neutral(), _terminable():
            before()
            load(config.job.name)(config, run_folder)
    except (KeyboardInterrupt, SystemExit) as stopped:
        _leave_record(run_folder, "interrupted", f"{type(stopped).__name__}: {reason(stopped)}", "")
        raise
    except Exception as error:
        outcome = outcome_of(error)
        if outcome.exit_status == 1:
            log.exception("the job failed")
        _leave_record(run_folder, outcome.status, outcome.error or "", traceback.format_exc())
        return outcome
    return Outcome("completed", 0)


def reason(stopped: KeyboardInterrupt | SystemExit) -> str:
    """What interrupted the run. submitit raises SystemExit when a cluster's time limit or a preemption is near."""
    if isinstance(stopped, SystemExit):
        return "stopped before the cluster's time limit or by a preemption"
    if isinstance(stopped, Pruned):
        return str(stopped)
    return "stopped by SIGTERM" if isinstance(stopped, Terminated) else "stopped by the user (Ctrl-C)"


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM raises Terminated inside, once only: a run closing its record is not interrupted again."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread can handle signals
        yield
        return

    def stop(number: int, frame: object) -> None:
        ignore_sigterm()
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def ignore_sigterm() -> None:
    """Ignores SIGTERM until the job ends: launchers send it after a Ctrl-C."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def outcome_of(error: Exception) -> Outcome:
    """The outcome for an error. Its exit status is 2 if the user can fix it, 3 for divergence, else 1."""
    described = f"{type(error).__name__}: {error}"
    if failures.out_of_memory(error):  # even if the error was mistaken for a damaged file
        return Outcome("failed", 2, f"UserError: {failures.failure_message(error)}")
    if isinstance(error, UserError):
        return Outcome("failed", 2, described)
    if isinstance(error, TrainingDiverged):
        return Outcome("diverged", 3, described)
    message = failures.failure_message(error)
    if message is not None:
        return Outcome("failed", 2, f"UserError: {message}")
    return Outcome("failed", 1, described)


def _leave_record(run_folder: Path, status: Status, error: str, trace: str) -> None:
    """Writes `result.json` for a job that ended before it wrote one. An existing record is left unchanged."""
    from diffusion_lab.runs.folder_record import has_run_files
    from diffusion_lab.system.atomic import write_json

    result = run_folder / "result.json"
    if result.exists() or has_run_files(run_folder) or not run_folder.is_dir() or not processes.is_main():
        return
    try:
        write_json(result, {"status": status, "error": error, "traceback": trace})
    except (OSError, UserError) as unwritable:
        log.error("result.json could not be written: %s", unwritable)
