"""Runs that are killed with SIGKILL and started again, in processes of their own: `killed_runs.py FILE`.

FILE is JSON: by name the words of a command line. All processes are forks of this one, which has imported everything:
imports take longer than the runs.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from pathlib import Path

import diffusers
import torch
from diffusers.loaders import lora_pipeline, textual_inversion  # noqa: F401 - imported once for all forks

from diffusion_lab.__main__ import main
from diffusion_lab.training import loop

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


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in (
        "StableDiffusionPipeline",
        "StableDiffusionXLPipeline",
        "StableDiffusion3Pipeline",
        "FluxPipeline",
    ):
        getattr(diffusers, name)  # lazy until asked for
    ended = {
        name: [outcome(argv, killed=True), outcome(argv, killed=False)]
        for name, argv in json.loads(Path(sys.argv[1]).read_text("utf-8")).items()
    }
    print(json.dumps(ended))
