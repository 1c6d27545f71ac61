"""job=pretrain: trains the miniature's parts from nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusion_lab.config import Config


def run(config: Config, run_folder: Path) -> None:
    """Writes into `job.output`; started again there, it goes on where it was. `run_folder` stays unused."""
    from diffusion_lab.miniature.pretrain import recipe

    recipe.run(
        Path(config.job.output).expanduser(),
        stages=config.job.stages or None,
        device=config.model.device,
        seed=config.seed,
        scale=config.job.scale,
        prediction_type="v_prediction" if config.model.path == "miniature_v" else "epsilon",
        start=Path(config.job.start).expanduser() if config.job.start else None,
        progress=config.tracker.progress != "off",
    )
