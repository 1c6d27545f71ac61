"""Runs that are killed with SIGKILL and started again, in processes of their own: `killed_runs.py FILE`.

FILE is JSON: by name the words of a command line. All processes are forks of this one, which has imported everything:
imports take longer than the runs.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import signal
import sys
import traceback
from pathlib import Path

import torch

import diffusion_lab
from diffusion_lab.__main__ import main
from diffusion_lab.training import loop

# What the runs import on their way, with diffusion_lab itself.
USED = (
    "accelerate.optimizer", "diffusers.loaders.textual_inversion", "diffusers.optimization", "facenet_pytorch",
    "hydra._internal.hydra", "hydra.main", "logging.config", "narwhals.stable.v1", "peft.tuners.lora",
    "plotly.graph_objs._bar", "plotly.graph_objs._figure", "plotly.graph_objs._scatter", "plotly.io", "plotly.subplots",
    "pyarrow.parquet", "rich.progress", "scipy.stats",
)  # fmt: skip
LAST = 3  # the step after which a run is killed; its last checkpoint is of step 2

_step = loop.training_step


def until_killed(state, steps):  # type: ignore[no-untyped-def]
    if state.step == LAST:
        os.kill(os.getpid(), signal.SIGKILL)
    return _step(state, steps)


def outcome(argv: list[str], *, killed: bool) -> int:
    """Exit status of the run in a process of its own; minus the signal's number where a signal ended it."""
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            if killed:
                loop.training_step = until_killed
            status = main(argv)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def import_all() -> None:
    """Once, for all forks."""
    from diffusion_lab.families import FAMILIES

    for name in USED:
        importlib.import_module(name)
    for module in pkgutil.walk_packages(diffusion_lab.__path__, "diffusion_lab."):
        if "__main__" not in module.name:
            importlib.import_module(module.name)
    for family in FAMILIES.values():
        family.part_classes()
        family.pipeline_class()


if __name__ == "__main__":
    torch.set_num_threads(1)
    import_all()
    ended = {
        name: [outcome(argv, killed=True), outcome(argv, killed=False)]
        for name, argv in json.loads(Path(sys.argv[1]).read_text("utf-8")).items()
    }
    print(json.dumps(ended))
