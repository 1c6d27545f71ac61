"""job=pretrain: trains the miniature's parts from scratch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from diffusion_lab.config.jobs import Pretrain, as_job
from diffusion_lab.plan.into import check_output
from diffusion_lab.plan.plan import Plan
from diffusion_lab.records import UserError

if TYPE_CHECKING:
    from diffusion_lab.config.schema import Config


def check(config: Config, run_folder: Path) -> Plan:
    """The plan: checks that inputs exist and that the output is writable. `run_folder` is not used."""
    job = as_job(config.job, Pretrain)
    start = job.start
    if start and not Path(start).expanduser().is_dir():
        raise UserError(f"job.start={start}: there is no such folder (of a U-Net)")
    return check_output(config, job)


def run(config: Config, run_folder: Path) -> None:
    """Writes to `job.output`; if started again, it continues from there. `run_folder` is not used."""
    from diffusion_lab.recipes.miniature import recipe

    job = as_job(config.job, Pretrain)
    recipe.run(
        Path(job.output).expanduser(),
        stages=job.stages or None,
        device=config.model.device,
        seed=config.seed,
        scale=job.scale,
        prediction_type="v_prediction" if config.model.path == "miniature_v" else "epsilon",
        start=Path(job.start).expanduser() if job.start else None,
        progress=config.tracker.progress != "off",
    )
