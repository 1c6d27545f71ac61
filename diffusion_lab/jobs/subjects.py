"""job=subjects: writes the miniature's people as ordinary folders of pictures."""

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
    """The plan: what it reads is there, and where it writes can be written. `run_folder` stays unused."""
    return check_output(config, as_job(config.job, Subjects))


def run(config: Config, run_folder: Path) -> None:
    """Writes <job.output>/<name>/00.png and so on. `run_folder` stays unused."""
    from diffusion_lab.miniature.subjects import write_subjects

    log.info("subjects: %s", write_subjects(Path(as_job(config.job, Subjects).output).expanduser()))
