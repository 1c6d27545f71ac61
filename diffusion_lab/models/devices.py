"""The device a run will use, detected without torch: its kind, a GPU's name and generation, a CPU's features.

GPUs are queried through `nvidia-smi`, CPUs through /proc/cpuinfo. Speeds are the peaks that manufacturers
publish; the fraction that a run achieves is estimated in `costs.py`.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from diffusion_lab.records import UserError

if TYPE_CHECKING:
    from diffusion_lab.config.schema import Model

Kind = Literal["cuda", "mps", "cpu"]

# Dense TFLOP/s from NVIDIA's data sheets and architecture white papers ("Peak FP16/BF16 Tensor TFLOPS with
# FP32 accumulate", without sparsity, and "Peak FP32 TFLOPS (non-tensor)"): half precision, single precision.
# The first matching pattern is used, so longer names come first.
CARDS: tuple[tuple[str, float, float], ...] = (
    # Blackwell
    ("B200|GB200", 2250, 75), ("RTX PRO 6000 Blackwell", 504, 126), ("RTX 5090", 209, 105), ("RTX 5080", 113, 56),
    ("RTX 5070 Ti", 88, 44), ("RTX 5070", 62, 31), ("RTX 5060 Ti", 47, 24), ("RTX 5060", 38, 19),
    # Hopper
    ("H100 NVL|H200 NVL", 835, 60), ("H100 PCIe", 756, 51), ("H100|H200|GH200|H800", 989, 67), ("H20", 148, 44),
    # Ada
    ("L40S", 362, 92), ("L40", 181, 91), ("L4", 121, 30), ("RTX 6000 Ada", 364, 91), ("RTX 5000 Ada", 261, 65),
    ("RTX 4500 Ada", 159, 40), ("RTX 4000 .*Ada", 107, 27), ("RTX 4090", 165, 83), ("RTX 4080 SUPER", 104, 52),
    ("RTX 4080", 98, 49), ("RTX 4070 Ti SUPER", 88, 44), ("RTX 4070 Ti", 80, 40), ("RTX 4070 SUPER", 71, 36),
    ("RTX 4070", 58, 29), ("RTX 4060 Ti", 44, 22), ("RTX 4060", 30, 15), ("RTX 4050", 18, 9),
    # Ampere
    ("A100|A800", 312, 19.5), ("A30", 165, 10.3), ("A40", 150, 37), ("A10G", 70, 31), ("A10", 125, 31), ("A2", 18, 4.5),
    ("RTX A6000", 155, 39), ("RTX A5500", 137, 34), ("RTX A5000", 111, 28), ("RTX A4500", 95, 24),
    ("RTX A4000", 77, 19), ("RTX A2000", 32, 8), ("RTX 3090 Ti", 80, 40), ("RTX 3090", 71, 36), ("RTX 3080 Ti", 68, 34),
    ("RTX 3080", 60, 30), ("RTX 3070 Ti", 44, 22), ("RTX 3070", 41, 20), ("RTX 3060 Ti", 32, 16),
    ("RTX 3060", 25, 13), ("RTX 3050", 18, 9),
    # Turing and Volta: float16 only
    ("TITAN RTX|RTX 8000|RTX 6000", 130, 16), ("RTX 2080 Ti", 54, 13), ("RTX 2080", 40, 10), ("RTX 2070", 30, 7.5),
    ("RTX 2060", 26, 6.5), ("T4", 65, 8.1), (r"GTX 16\d\d", 10, 5), ("V100|TITAN V", 112, 14),
    # Pascal: no tensor cores; float16 is not faster, except on P100
    ("P100", 19, 9.5), ("GTX 1080 Ti|TITAN Xp?", 11, 11), ("GTX 1080|GTX 1070", 8, 8), (r"GTX 10\d\d", 4, 4), ("P40", 12, 12),
)  # fmt: skip
LAPTOP = 0.6  # of the desktop GPU's speed; about half to three quarters according to the data sheets
# Assumed for GPUs not in the table, by major compute capability: an average GPU of the generation.
BY_GENERATION = {
    3: (3.0, 3.0),  # Kepler and Maxwell: float16 for storage only
    5: (4.0, 4.0),
    6: (8.0, 8.0),
    7: (50.0, 12.0),
    8: (80.0, 25.0),
    9: (756.0, 51.0),
    10: (1500.0, 70.0),
    12: (88.0, 44.0),
}
UNKNOWN = (60.0, 20.0)

BF16_CAPABILITY = 8.0  # minimum compute capability for bf16, as in torch's `is_bf16_supported`
# How much slower bf16 is than float32 on CPUs without bf16 instructions. Measured on two cores of an AMD EPYC
# with the instruction set limited by ONEDNN_MAX_CPU_ISA (docs/benchmarks.md): a factor of 2 with AVX-512;
# with AVX2 12 to 55 for one convolution, increasing with its size; a user reported 770.
EMULATED_AVX512, EMULATED = 2.0, 50.0


@dataclass(frozen=True, slots=True)
class Card:
    """An NVIDIA GPU. `capability` is 0 if nvidia-smi is too old to report it."""

    name: str
    capability: float
    memory_bytes: float

    @property
    def tflops(self) -> tuple[float, float]:
        """Dense peak TFLOP/s in half and in single precision."""
        found = published_tflops(self.name)
        if found is not None:
            return found
        return BY_GENERATION.get(int(self.capability), UNKNOWN)

    @property
    def known(self) -> bool:
        return published_tflops(self.name) is not None


def published_tflops(name: str) -> tuple[float, float] | None:
    """Half and single precision TFLOP/s of a GPU by name; None if it is not in the table."""
    plain = " ".join(re.sub(r"\(TM\)|\(R\)|[-_]", " ", name, flags=re.IGNORECASE).split())
    for pattern, half, single in CARDS:
        if re.search(rf"\b(?:{pattern})\b", plain, re.IGNORECASE):
            share = LAPTOP if re.search(r"laptop|max q|mobile", plain, re.IGNORECASE) else 1.0
            return half * share, single * share
    return None


def has_gpu() -> bool:
    """Whether an NVIDIA GPU is visible, without importing torch."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1")
    # This folder does not exist on Windows and WSL.
    there = Path("/proc/driver/nvidia/gpus").is_dir() or shutil.which("nvidia-smi") is not None
    return there and not hidden


def kind(device: str) -> Kind:
    """The kind of `model.device`; `auto`, as in `resolve_device`: NVIDIA GPU, else Apple GPU, else CPU."""
    if device.startswith("cuda"):
        return "cuda"
    if device in ("mps", "cpu"):
        return device  # type: ignore[return-value]
    if has_gpu():
        return "cuda"
    return "mps" if sys.platform == "darwin" and platform.machine() == "arm64" else "cpu"


def card(device: str) -> Card | None:
    """The GPU that `model.device` names; None if there is none or nvidia-smi does not report it."""
    if kind(device) != "cuda":
        return None
    found = _cards()
    number = int(device.partition(":")[2] or 0)
    visible = [
        part for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip().isdigit()
    ]
    if number < len(visible):
        number = int(visible[number])
    return found[number] if number < len(found) else None


@cache
def _cards() -> tuple[Card, ...]:
    command = ["nvidia-smi", "--query-gpu=name,compute_cap,memory.total", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(parse(line) for line in told.splitlines() if line.count(",") >= 2)


def parse(line: str) -> Card:
    """Parses a line of nvidia-smi: "NVIDIA H100 80GB HBM3, 9.0, 81559" (MiB)."""
    name, capability, memory = (part.strip() for part in line.rsplit(",", 2))
    return Card(name, _number(capability), _number(memory) * 2**20)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:  # "[N/A]"
        return 0.0


def cores() -> int:
    """Number of CPU cores available to this process."""
    if hasattr(os, "process_cpu_count"):  # Python 3.13 and later
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # not available on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# --- precision ------------------------------------------------------------------------------------------


def bf16_slowdown() -> float:
    """How many times slower bf16 is than float32 on this CPU; 1 if it supports bf16 (then it is faster)."""
    flags = cpu_flags()
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()
    if limit and "BF16" not in limit and "AMX" not in limit and limit not in ("ALL", "DEFAULT"):
        flags -= {"avx512_bf16", "amx_bf16"}
        if "AVX512" not in limit:
            flags -= {"avx512f"}
    if flags & {"avx512_bf16", "amx_bf16"}:
        return 1.0
    return EMULATED_AVX512 if "avx512f" in flags and "avx512bw" in flags else EMULATED


@cache
def _cpu_flags() -> frozenset[str]:
    try:
        told = Path("/proc/cpuinfo").read_text("utf-8", errors="replace")
    except OSError:  # other systems: assumed to have none
        return frozenset()
    line = next((line for line in told.splitlines() if line.startswith("flags")), "")
    return frozenset(line.partition(":")[2].split())


def cpu_flags() -> frozenset[str]:
    """Instruction sets of the first core, as named by Linux."""
    return _cpu_flags()


def best_precision(device: str) -> str:
    """The meaning of `model.precision=auto` on `model.device`: the fastest natively supported format."""
    where = kind(device)
    if where == "cpu":
        return "bf16" if bf16_slowdown() == 1.0 else "fp32"
    if where == "mps":
        return "fp32"  # half precision has not been tested there
    found = card(device)
    if found is not None and found.capability:
        return "bf16" if found.capability >= BF16_CAPABILITY else "fp16"
    return "bf16" if _torch_has_bf16() else "fp16"


def _torch_has_bf16() -> bool:
    import torch

    if not torch.cuda.is_available():
        return True
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def precision_row(model: Model) -> str:
    """For the plan: the precision, and why it is a good or bad choice on this device."""
    where, precision = kind(model.device), model.precision
    if where == "cpu":
        slower = bf16_slowdown()
        if precision == "bf16":
            return f"bf16, which this CPU {'has' if slower == 1.0 else f'emulates, {slower:g} times slower or worse'}"
        return f"{precision}; this CPU {'has bf16 too' if slower == 1.0 else 'has no bf16'}"
    if where == "mps":
        return precision
    found = card(model.device)
    if found is None:
        return f"{precision}, on a card that nvidia-smi does not describe"
    return f"{precision}, on {found.name}"


def precision_warnings(model: Model) -> list[str]:
    """UserError if the device does not support the precision; a warning with the slowdown if it is slow."""
    where, precision = kind(model.device), model.precision
    if where == "cpu":
        if precision == "fp16":
            raise UserError(
                "model.precision=fp16: needs a GPU; use model.precision=auto, or fp32 on this CPU (a run that was "
                "begun in fp16 goes on where there is a GPU)"
            )
        slower = bf16_slowdown()
        if precision == "bf16" and slower > 1:
            worse = "" if slower < 10 else ", and hundreds of times for large pictures"
            return [
                f"model.precision=bf16: this CPU has no instructions for it and emulates it, about {slower:g} times "
                f"slower than fp32{worse}; model.precision=fp32 (or auto) is the fast one here"
            ]
        return []
    if where == "mps" and precision != "fp32":
        return [
            f"model.precision={precision}: was never tried on Apple's chips; fp32 is what auto takes there"
        ]
    found = card(model.device)
    if where != "cuda" or found is None:
        return []
    half, single = found.tflops
    if precision == "bf16" and 0 < found.capability < BF16_CAPABILITY:
        return [
            f"model.precision=bf16: {found.name} emulates it, as slow as fp32 or slower; model.precision=fp16 is up to "
            f"{half / single:.0f} times faster there"
        ]
    if precision == "fp32" and half >= 2 * single:
        better = best_precision(model.device)
        return [
            f"model.precision=fp32: {found.name} is up to {half / single:.0f} times faster in {better} "
            f"(model.precision={better} or auto)"
        ]
    return []
