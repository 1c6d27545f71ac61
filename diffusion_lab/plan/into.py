"""The plan of a job that only writes into `job.output`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from diffusion_lab.plan.downloads import rows, wanted
from diffusion_lab.plan.plan import Plan, check_downloads, check_place

if TYPE_CHECKING:
    from diffusion_lab.config.jobs import Pretrain, Subjects, TrainAesthetics
    from diffusion_lab.config.schema import Config

    Writing = Pretrain | Subjects | TrainAesthetics


def check_output(config: Config, job: Writing) -> Plan:
    """UserError if the folder cannot be written or there is not enough space for the job's files."""
    output = Path(job.output).expanduser()
    check_place(output, 0, "job.output")
    files = check_downloads(wanted(config))
    return Plan(rows=(("job", job.name), ("into", str(output)), *rows(files)), downloads=files)
