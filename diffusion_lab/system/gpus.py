"""One process a GPU, for launchers that start several processes on one machine and do not assign GPUs themselves.

A process that has a GPU holds a file lock; the lock is released when the process ends, even by a kill. Locks are
by GPU and user, so that two sweeps on one machine do not share a GPU while another one is free.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from pathlib import Path

log = logging.getLogger(__name__)

VARIABLE = "CUDA_VISIBLE_DEVICES"
POLL_SECONDS = 2.0
_held: dict[int, tuple[str, int]] = {}  # process id -> its GPU and the descriptor of its lock


def visible() -> list[str]:
    """The GPUs that this process may use, as written in CUDA_VISIBLE_DEVICES; all of the machine if it is unset.

    Does not initialise CUDA, so that the variable can still be set afterwards.
    """
    given = os.environ.get(VARIABLE)
    if given is not None:
        return [name for part in given.split(",") if (name := part.strip()) and name != "-1"]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def take_one(*, wait: bool, folder: Path | None = None) -> str | None:
    """Reserves a free GPU for the rest of this process and makes it the only visible one. Returns its name.

    Args:
        wait: if all are taken, wait for one; otherwise share one of them.
        folder: of the locks; default: a folder of this user in the temporary directory.

    Returns:
        None if there is nothing to choose: no more than one GPU is visible, or the system has no file locks.
        A process that has a GPU keeps it: CUDA cannot change to another one once it is initialised.
    """
    if os.getpid() in _held:
        return _held[os.getpid()][0]
    names = visible()
    if len(names) < 2 and not (wait and names):
        return None
    locks = folder or Path(tempfile.gettempdir()) / f"diffusion_lab-gpus-{_user()}"
    try:
        locks.mkdir(mode=0o700, parents=True, exist_ok=True)
        while True:
            for name in names:
                descriptor = _locked(locks / f"{name.replace('/', '-')}.lock")
                if descriptor is not None:
                    return _keep(name, descriptor)
            if not wait:
                return _keep(names[os.getpid() % len(names)], -1)
            time.sleep(POLL_SECONDS)
    except (ImportError, OSError) as error:  # no file locks here: the runs share the GPUs as they are
        log.warning("GPUs cannot be assigned to the processes of the sweep: %s", error)
        return None


def _keep(name: str, descriptor: int) -> str:
    _held[os.getpid()] = (name, descriptor)
    os.environ[VARIABLE] = name
    return name


def _locked(file: Path) -> int | None:
    """The descriptor of the locked file; None if another process holds it."""
    import fcntl

    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _user() -> str:
    return str(os.getuid()) if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
