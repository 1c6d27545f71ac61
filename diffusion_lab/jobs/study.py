"""job=study: the pages of the studies in a folder of runs, the claims and the index, made from files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion_lab.config.jobs import StudyPage, as_job
from diffusion_lab.plan.plan import Plan
from diffusion_lab.records import UserError
from diffusion_lab.studies.definition import CLAIMS

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
    names = ", ".join(pages(studies, job.study))
    return Plan(rows=(("job", "study"), ("of", str(runs)), ("pages", names)))


def run(config: Config, run_folder: Path) -> None:
    """Writes a page for each study, or one of all runs if there is no study, and prints their paths.

    Without `job.study` the claims are checked on all runs as well; `job.study=claims` does nothing else. The index
    of the folder's studies is written last. `run_folder` is not used.

    Raises:
        UserError: (job.runs) if the folder has no run, (job.study) if there is no such study in it.
    """
    from diffusion_lab.report.study.claims_page import write_claims_page
    from diffusion_lab.report.study.index_page import write_index
    from diffusion_lab.report.study.page import write_study
    from diffusion_lab.studies.record import find_studies
    from diffusion_lab.studies.table import read_tables

    job = as_job(config.job, StudyPage)
    runs = Path(job.runs).expanduser()
    studies: list[Study | None] = list(chosen(runs, job.study))
    if not studies and job.study != CLAIMS:
        studies = [None]
    wanted = [*studies, None] if job.study in ("", CLAIMS) else studies
    tables = read_tables(runs, wanted)
    for study, table in zip(studies, tables, strict=False):  # the last table may be that of the claims
        print(write_study(runs, study, table))
    if wanted[-1] is None:
        print(write_claims_page(runs, tables[-1]))
    if find_studies(runs):
        print(write_index(runs))


def pages(studies: Sequence[Study], name: str) -> list[str]:
    """What is written. `name`: job.study."""
    found = [study.name for study in studies]
    if name == CLAIMS:
        return [CLAIMS]
    return found if name else [*(found or ["all runs of the folder"]), CLAIMS]


def chosen(runs: Path, name: str) -> list[Study]:
    """The study of this name, or all studies in the folder for ""; none for "claims".

    Raises:
        UserError: (job.study) if it is not in the folder.
    """
    from diffusion_lab.studies.record import find_studies
    from diffusion_lab.values.checks import closest

    if name == CLAIMS:
        return []
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
