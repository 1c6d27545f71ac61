"""The origin of a result: code, libraries and machine.

Names of users, hosts and folders are not recorded; environment variables only if they may change the numbers.
"""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from diffusion_lab.system import environment

LIBRARIES = (
    "diffusion-lab", "torch", "torchvision", "diffusers", "transformers", "peft", "accelerate", "safetensors",
    "numpy", "pillow", "pyarrow", "open_clip_torch", "facenet-pytorch", "hydra-core", "wandb",
)  # fmt: skip


def collect(device: str = "cpu") -> dict[str, Any]:
    """commit, dirty, versions, device, os, python, cores (usable ones), memory_bytes, environment.

    `device` is torch's device name ("cpu", "cuda:0"); the hardware's name is looked up. `commit` and `dirty`
    are None if the package does not run from a git checkout or git is not installed.
    """
    import psutil

    commit, dirty = checkout(Path(__file__).resolve().parent.parent)
    return {
        "commit": commit,
        "dirty": dirty,
        "versions": versions(),
        "device": device_name(device),
        "os": platform.platform(),
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": int(psutil.virtual_memory().total),
        "environment": environment.recorded_variables(),
    }


def versions() -> dict[str, str]:
    """Installed versions of the libraries that affect results; missing libraries are omitted."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def checkout(package: Path) -> tuple[str | None, bool | None]:
    """The commit of the checkout that tracks `package`, and whether the checkout has uncommitted changes.

    Returns (None, None) if the package is only located inside a repository without being tracked there (as in
    a virtual environment), if git is not installed, or if git refuses to read the repository.
    """
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None, None
    commit = _git(package, "rev-parse", "--verify", "HEAD")
    if commit is None:  # a repository before its first commit
        return None, None
    status = _git(package, "status", "--porcelain")
    return commit, None if status is None else bool(status)


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def device_name(device: str) -> str:
    """For example "cuda: NVIDIA H100 80GB HBM3" or "cpu: AMD EPYC 7763"; only the type if unknown."""
    kind = device.partition(":")[0]
    if kind == "cuda":
        import torch

        if torch.cuda.is_available():
            return f"{kind}: {torch.cuda.get_device_name(device)}"
    name = _cpu_name() if kind == "cpu" else platform.processor()
    return f"{kind}: {name}" if name else kind


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
