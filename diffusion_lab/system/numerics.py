"""What the last bits of a result depend on besides its inputs: device, libraries, threads, switches, code."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusion_lab.system.environment import recorded_variables
from diffusion_lab.system.provenance import device_name, versions

PACKAGE = Path(__file__).resolve().parent.parent
_NO_NUMBERS = ("diffusion-lab", "accelerate", "pyarrow", "hydra-core", "wandb")  # libraries
# Variables that choose a device, a place or a message: the device enters by its name.
_NO_EFFECT = re.compile(
    r"\w*VISIBLE_DEVICES|WORLD_SIZE|(NCCL|GLOO|HF|WANDB|ACCELERATE|PYTHON|DIFFUSION_LAB)_?\w*|XDG_CACHE_HOME"
    r"|TOKENIZERS_PARALLELISM|\w*(HOME|CACHE|DIR|VERBOSITY|OFFLINE)\w*"
)


def numerics(device: str) -> dict[str, Any]:
    """JSON-like facts about the machine and this process. ``device``: torch's name ("cpu", "cuda:0").

    Two processes for which they are equal compute the same bits from the same inputs, as far as the device's
    kernels are deterministic.
    """
    import torch

    libraries = {name: one for name, one in versions().items() if name not in _NO_NUMBERS}
    facts: dict[str, Any] = {
        "device": device_name(device),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "libraries": libraries,
        "matmul": torch.get_float32_matmul_precision(),
        "mkldnn": torch.backends.mkldnn.enabled,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "environment": {
            name: value for name, value in recorded_variables().items() if not _NO_EFFECT.fullmatch(name)
        },
    }
    if device.startswith("cuda"):
        cudnn = torch.backends.cudnn
        version = cudnn.version()  # type: ignore[no-untyped-call]
        facts["cudnn"] = [version, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32]
    return facts


@functools.cache
def code_digest(rooms: Sequence[str]) -> str:
    """SHA-256 of the Python files of these folders of the package: 16 hex digits. Computed once per process."""
    digest = hashlib.sha256()
    for room in rooms:
        for path in sorted((PACKAGE / room).rglob("*.py")):
            digest.update(path.relative_to(PACKAGE).as_posix().encode() + b"\n")
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
