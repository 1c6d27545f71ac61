"""How a sweep ended: its jobs' outcomes, how to go on, and the pages that compare its runs."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_lab.cli.folders import shown
from diffusion_lab.cli.words import keys
from diffusion_lab.records import UserError
from diffusion_lab.runs.folder_record import read_folder_record
from diffusion_lab.runs.resume import error_of
from diffusion_lab.studies.watch import ENDED
from diffusion_lab.values.quoting import pasted

if TYPE_CHECKING:
    from diffusion_lab.cli.sweep_jobs import Job
    from diffusion_lab.cli.words import Line
    from diffusion_lab.config.schema import Tracking

log = logging.getLogger("diffusion_lab")

GOOD = ("completed", "pruned")  # ends of a job that are no failure


def again(typed: Sequence[str], line: Line, folder: Path) -> str:
    """The command that repeats the sweep in its folder."""
    placed = [] if "hydra.sweep.dir" in keys(typed) or line.studies else [f"hydra.sweep.dir={shown(folder)}"]
    return pasted("python", "-m", "diffusion_lab", *typed, *placed)


def told(folder: Path, found: Sequence[Job], ended: Sequence[Mapping[str, Any]], again: str) -> bool:
    """Reports how the jobs ended, and how to go on; returns whether all are complete.

    `ended`: the outcomes of those that ran now.
    """
    outcomes: dict[str, tuple[str, str | None]] = {}
    for job in found:
        if job.status == "finished":
            outcomes[job.folder] = ("completed", None)
        elif job.status == "diverged":
            outcomes[job.folder] = ("diverged", error_of(job.config, folder / job.folder))
        elif _completed(folder / job.folder):  # its line was lost, or another sweep has finished it
            outcomes[job.folder] = ("completed", None)
    names = {job.folder for job in found}
    outcomes |= {end["job"]: (end["status"], end["error"]) for end in ended if end["job"] in names}
    good = tell(folder, outcomes, len(found))
    if not good:
        print(f"to retry what failed and go on: {again}", file=sys.stderr)
    return good


def _completed(run_folder: Path) -> bool:
    try:
        record = read_folder_record(run_folder, lambda config: True)
    except UserError:
        return False
    return record is not None and record.result.get("status") == "completed"


def tell(folder: Path, outcomes: dict[str, tuple[str, str | None]], jobs_of_it: int) -> bool:
    """`outcomes`: status and error of each job that has ended. `jobs_of_it`: their number, 0 if unknown."""
    failed = {name: end for name, end in outcomes.items() if end[0] not in GOOD}
    of = f" of {jobs_of_it}" if jobs_of_it else ""
    done = len(outcomes) - len(failed)
    print(f"{shown(folder)}: {done}{of} jobs completed, {len(failed)} failed", file=sys.stderr)
    for name, (status, error) in failed.items():
        print(f"{status}: {name}: {error}", file=sys.stderr)
    return not failed and len(outcomes) >= jobs_of_it


def ended_jobs(sweep: Path) -> list[dict[str, Any]]:
    """The recorded outcomes of the jobs that have ended, oldest first; unreadable lines are skipped."""
    try:
        lines = (sweep / ENDED).read_bytes().splitlines()
    except FileNotFoundError:
        return []
    ended = []
    for line in lines:
        with contextlib.suppress(ValueError):
            ended.append(json.loads(line))
    whole = {"name", "status", "error"}
    return [{"job": end["name"], **end} for end in ended if isinstance(end, dict) and whole <= set(end)]


def compare(folder: Path, studies: Sequence[str]) -> bool:
    """Writes the page of each study and the index of the folder, or the comparison of a sweep that is none.

    After several studies the claims are checked on all runs, too.
    Returns False on failure, which must not hide how the sweep ended. `studies`: their names.
    """
    from diffusion_lab.report.comparison import write_comparison
    from diffusion_lab.report.study.claims_page import write_claims_page
    from diffusion_lab.report.study.index_page import write_index
    from diffusion_lab.report.study.page import write_study
    from diffusion_lab.runs.reading import find_runs
    from diffusion_lab.studies.record import NAME as DEFINITION
    from diffusion_lab.studies.record import read_study, study_folder
    from diffusion_lab.studies.table import read_table

    def comparison() -> None:
        print(f"comparison: {shown(write_comparison(folder))}", file=sys.stderr)

    def study_page(name: str) -> None:
        study = read_study(study_folder(folder, name) / DEFINITION)
        print(f"study {name}: {shown(write_study(folder, study))}", file=sys.stderr)

    def claims() -> None:
        print(f"claims: {shown(write_claims_page(folder, read_table(folder)))}", file=sys.stderr)

    def index() -> None:
        print(f"studies: {shown(write_index(folder))}", file=sys.stderr)

    if not find_runs(folder):
        return True
    if not studies:
        return _page(comparison, pasted("job=report", f"job.runs={folder}"))
    pages = [
        _page(partial(study_page, name), pasted("job=study", f"job.runs={folder}", f"job.study={name}"))
        for name in studies
    ]
    if len(studies) > 1:
        pages.append(_page(claims, pasted("job=study", f"job.runs={folder}", "job.study=claims")))
    pages.append(_page(index, pasted("job=study", f"job.runs={folder}")))
    return all(pages)


def track(folder: Path, tracking: Tracking, studies: Sequence[str]) -> None:
    """Logs a table of the runs to Weights & Biases, for each study or for a sweep that is none.

    A failure is logged: the runs and the pages are complete without it.
    """
    if tracking.wandb == "disabled":
        return
    from diffusion_lab.studies.record import study_folder
    from diffusion_lab.studies.summary import ByName, rows_of
    from diffusion_lab.studies.table import read_table
    from diffusion_lab.trackers.wandb_study import log_study

    names: list[str | None] = [*studies] or [None]
    for name in names:
        group = name or tracking.group or folder.name
        try:
            table = read_table(folder, None if name is None else ByName(name))
            log_study(
                folder if name is None else study_folder(folder, name), tracking, group, *rows_of(table)
            )
        except Exception as error:
            log.warning("Weights & Biases: there is no table of %s: %s", group, error)


def _page(write: Callable[[], None], again: str) -> bool:
    try:
        write()
        return True
    except UserError as error:
        log.error("no page could be written: %s", error)
    except Exception:
        log.exception("no page could be written; %s makes it again", again)
    return False
