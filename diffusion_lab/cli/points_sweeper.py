"""A Hydra sweeper that launches a given list of jobs, through whichever launcher is configured.

Hydra's basic sweeper launches the product of its values. Here finished runs are left out, and a study may be a
union of products.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper

from diffusion_lab.cli import plugins


class PointsSweeper(Sweeper):
    """Takes the settings of Hydra's basic sweeper; `params` are part of the jobs already."""

    jobs: Sequence[Sequence[str]] = ()  # overrides of each job; set by `register`

    def __init__(self, max_batch_size: int | None = None, params: Any = None) -> None:
        self.max_batch_size = max_batch_size

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Launches the jobs, `max_batch_size` at a time. `arguments` are those of the command line, unused."""
        assert self.launcher is not None
        jobs, found = list(self.jobs), []
        size = self.max_batch_size or len(jobs) or 1
        for start in range(0, len(jobs), size):
            batch = self.launcher.launch(jobs[start : start + size], initial_job_idx=start)
            for job in batch:
                job.return_value  # noqa: B018 - raises the error of a job that could not be composed
            found.append(batch)
        return found


def register(jobs: Sequence[Sequence[str]]) -> str:
    """Registers the sweeper for these jobs; returns the word that selects it."""
    PointsSweeper.jobs = jobs
    return f"hydra.sweeper._target_={plugins.register(PointsSweeper)}"
