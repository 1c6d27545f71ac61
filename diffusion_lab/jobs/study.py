"""job=study: the pages of the studies in a folder of runs, made from files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from diffusion_lab.config.jobs import StudyPage, as_job
from diffusion_lab.plan.plan import Plan
from diffusion_lab.records import UserError

if TYPE_CHECKING:
    from diffusion_lab.config.schema import Config
    from diffusion_lab.studies.definition import Study


def check(config: Config, run_folder: Path) -> Plan:
    """The plan: checks that the folder and the study exist. `run_folder` is not used."""
    job = as_job(config.job, StudyPage)
    runs = Path(job.runs).expanduser()
    if not runs.is_dir():
        raise UserError(f"job.runs={job.runs}: there is no such folder")
    studies = chosen(runs, job.study)
    names = ", ".join(study.name for study in studies) or "all runs of the folder"
    return Plan(rows=(("job", "study"), ("of", str(runs)), ("pages", names)))


def run(config: Config, run_folder: Path) -> None:
    """Writes a page for each study, or one of all runs if there is no study, and prints their paths.

    `run_folder` is not used.

    Raises:
        UserError: (job.runs) if the folder has no run, (job.study) if there is no such study in it.
    """
    from diffusion_lab.report.study.page import write_study

    job = as_job(config.job, StudyPage)
    runs = Path(job.runs).expanduser()
    studies: list[Study | None] = list(chosen(runs, job.study))
    for study in studies or [None]:
        print(write_study(runs, study))


def chosen(runs: Path, name: str) -> list[Study]:
    """The study of this name, or all studies in the folder for "".

    Raises:
        UserError: (job.study) if it is not in the folder.
    """
    from diffusion_lab.studies.record import find_studies
    from diffusion_lab.values.checks import closest

    found = find_studies(runs)
    if not name:
        return found
    for study in found:
        if study.name == name:
            return [study]
    known = [study.name for study in found]
    there = f"there are {', '.join(known)}" if known else "it has none"
    raise UserError(
        f"job.study={name}: {runs} has no such study; {there}{closest(name, known)}. --sweep {name} writes "
        "its study.json; without job.study the page is of all studies, or of all runs if there is none"
    )
