"""Launchers and sweepers of other packages: which extra installs them, and what a run of a sweep needs under them.

Hydra's plugins are used unchanged; `conf/hydra/launcher/` has options with settings that fit this program. In the
process that a launcher starts, Hydra's singletons bring the configuration's schemas and resolvers.
"""

from __future__ import annotations

import re
from typing import Any

from diffusion_lab.system import gpus

EXTRAS = {
    "hydra/launcher/submitit_local": "submitit",
    "hydra/launcher/submitit_slurm": "submitit",
    "hydra/launcher/ray": "ray",
    "hydra/launcher/ray_aws": "ray",
}
"""Options of Hydra's groups that are in an optional dependency -> its name in pyproject.toml."""
WAITING = {"joblib": False, "LocalLauncher": True}
"""Launchers that start several processes on one machine without assigning GPUs -> whether a process waits for one.

joblib has as many processes as `n_jobs` says; submitit_local starts one for each run, all at once.
"""


def install(extra: str) -> str:
    """The command that installs an optional dependency."""
    return f"pip install 'diffusion-lab[{extra}]'"


def missing_extra(message: str) -> str | None:
    """The message for an option that is not found because its package is not installed; else None.

    `message`: Hydra's, such as "Could not find 'hydra/launcher/ray'" or "In 'hydra/launcher/slurm': Could not
    find 'hydra/launcher/submitit_slurm'".
    """
    for found in re.findall(r"'([\w/]+)'", message):
        extra = EXTRAS.get(found)
        if extra is not None:
            group, _, option = found.rpartition("/")
            return f"{group}={option}: its package is not installed; install it with {install(extra)}"
    return None


def gpu_count() -> int:
    """The number of GPUs that this process may use, at least 1: the number of runs at a time."""
    return max(1, len(gpus.visible()))


def prepare(hydra: Any) -> None:
    """Called in a run's process before torch uses a GPU. `hydra`: Hydra's part of the configuration."""
    target = str(hydra.launcher.get("_target_", ""))
    for launcher, wait in WAITING.items():
        if launcher in target:
            gpus.take_one(wait=wait)
