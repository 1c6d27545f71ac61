"""The plan of a job that only writes into `job.output`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from diffusion_lab.plan.downloads import rows, wanted
from diffusion_lab.plan.plan import Plan, check_downloads, check_place

if TYPE_CHECKING:
    from diffusion_lab.config.schema import Config


def check_output(config: Config) -> Plan:
    """UserError where the folder cannot be written or the files that the job needs have no room."""
    output = Path(config.job.output).expanduser()
    check_place(output, 0, "job.output")
    files = check_downloads(wanted(config))
    return Plan(rows=(("job", config.job.name), ("into", str(output)), *rows(files)), downloads=files)
