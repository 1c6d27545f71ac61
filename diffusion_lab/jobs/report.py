"""job=report: the page of one run, or the comparison of a folder of runs, rebuilt from their files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from diffusion_lab.config.jobs import Report, as_job
from diffusion_lab.plan.plan import Plan
from diffusion_lab.records import UserError

if TYPE_CHECKING:
    from diffusion_lab.config.schema import Config


def check(config: Config, run_folder: Path) -> Plan:
    """The plan: checks that the folder exists. `run_folder` is not used."""
    named = as_job(config.job, Report).runs
    runs = Path(named).expanduser()
    if not runs.is_dir():
        raise UserError(f"job.runs={named}: there is no such folder")
    return Plan(rows=(("job", "report"), ("of", str(runs))))


def run(config: Config, run_folder: Path) -> None:
    """Writes report.html (of a run or a job=score) or comparison.html to `job.runs` and prints its path.

    `run_folder` is not used.

    Raises:
        UserError: (job.runs) if no folder is given, or if it contains no run.
    """
    from diffusion_lab.report.comparison import write_comparison
    from diffusion_lab.report.page import write_report
    from diffusion_lab.runs.reading import is_run, is_score_run

    folder = Path(as_job(config.job, Report).runs).expanduser()
    if not folder.is_dir():
        raise UserError(f"job.runs: there is no folder {folder}")
    if is_score_run(folder):
        from diffusion_lab.report.score_page import write_score_report

        print(write_score_report(folder))
        return
    print(write_report(folder) if is_run(folder) else write_comparison(folder))
