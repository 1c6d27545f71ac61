"""job=subjects: writes the people of the miniature world as ordinary image folders."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion_lab.config.jobs import Subjects, as_job
from diffusion_lab.plan.into import check_output
from diffusion_lab.plan.plan import Plan

if TYPE_CHECKING:
    from diffusion_lab.config.schema import Config

log = logging.getLogger(__name__)


def check(config: Config, run_folder: Path) -> Plan:
    """The plan: checks that inputs exist and that the output is writable. `run_folder` is not used."""
    return check_output(config, as_job(config.job, Subjects))


def run(config: Config, run_folder: Path) -> None:
    """Writes <job.output>/<name>/00.png and so on. `run_folder` is not used."""
    from diffusion_lab.miniature.subjects import write_subjects

    log.info("subjects: %s", write_subjects(Path(as_job(config.job, Subjects).output).expanduser()))
