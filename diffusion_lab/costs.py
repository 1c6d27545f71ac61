"""How long a run will take and how much memory it will need: a model of a few constants, for the plan only.

Miniature: the seconds of a step and of a U-Net pass are those of a trial on two CPU cores with float32; the
other miniature figures (scoring, start, memory, a GPU's advantage) are assumed. Full size: arithmetic of
Stable Diffusion 1.5 at 512 pixels divided by assumed speeds, not measured: an order of magnitude.
"""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion_lab import footprint
from diffusion_lab.models.shipped import MINIATURES

if TYPE_CHECKING:
    from diffusion_lab.config import Config

# Miniature, two cores
STEP_SECONDS = 0.2  # training step at batch 4
FORWARD_SECONDS = 0.012  # one image through the U-Net
SCORE_SECONDS = 0.04  # one image through VAE decoder, detector and encoders
START_SECONDS = 15.0  # imports, model, encoders, reference pictures
MEMORY_BYTES = 1.6e9

# Stable Diffusion 1.5, 512 pixels
UNET_TFLOP, ENCODE_TFLOP, DECODE_TFLOP = 0.803, 1.12, 2.51  # one image
BACKWARD = 2.0  # cost of the backward pass, in forward passes
PROCESS_BYTES = 1.2e9  # on the CPU: Python and the libraries themselves
GPU_TFLOPS = {"fp32": 60.0, "bf16": 200.0, "fp16": 200.0}  # assumed: a quarter of a data-centre card's peak
CORE_TFLOPS = 0.05  # assumed: one CPU core, float32


@dataclass(frozen=True, slots=True)
class Cost:
    """Estimates. `seconds` includes the start."""

    device: str
    training_seconds: float
    evaluation_seconds: float
    start_seconds: float
    memory_bytes: float
    disk_bytes: int
    peaks: Mapping[str, float] = field(default_factory=dict)  # bytes, of training and of evaluation
    process_bytes: float = 0.0  # what the process takes beside them

    @property
    def seconds(self) -> float:
        return self.training_seconds + self.evaluation_seconds + self.start_seconds


def estimate(config: Config, *, forwards: int, sampled: int, evaluations: int) -> Cost:
    """Cost of a fine-tuning run, defaults filled. `forwards`: images through the U-Net in sampling."""
    cores = _cores()
    gpu = config.model.device != "cpu" and has_gpu()
    device = "a GPU" if gpu else f"{cores} CPU core{'s' if cores != 1 else ''}"
    steps = (config.steps.total or 0) * config.steps.gradient_accumulation
    whole = hasattr(config.method, "complete")  # saves whole networks, not adapters
    if config.model.path in MINIATURES:
        speed = 10.0 if gpu else min(cores, 8) / 2
        training = steps * STEP_SECONDS * config.steps.batch_size / 4 / speed
        evaluation = (forwards * FORWARD_SECONDS + sampled * SCORE_SECONDS) / speed
        return Cost(
            device, training, evaluation, START_SECONDS, MEMORY_BYTES,
            _disk(config, evaluations, sampled, 64, 50e6 if whole else 2e6, 150e6 if whole else 6e6),
        )  # fmt: skip
    area = ((config.model.resolution or 512) / 512) ** 2
    tflops = GPU_TFLOPS[config.model.precision] if gpu else CORE_TFLOPS * cores
    float32 = GPU_TFLOPS["fp32"] if gpu else tflops
    prior = getattr(config.method, "prior_weight", 0.0) != 0.0
    passes = steps * config.steps.batch_size * (2 if prior else 1) * (1 + BACKWARD) * UNET_TFLOP
    training = (passes + config.data.n_images * ENCODE_TFLOP) * area / tflops
    if prior:
        # Pictures of the class, drawn by the model as it is loaded, unless an earlier run has drawn them.
        guided = 2 if config.prompts.guidance_scale > 1 else 1
        picture = config.prompts.sampling_steps * guided * UNET_TFLOP + DECODE_TFLOP + ENCODE_TFLOP
        training += getattr(config.method, "prior_images", 0) * picture * area / float32
    # Whole networks that train are sampled as they are, in float32.
    evaluation = forwards * UNET_TFLOP * area / (float32 if whole else tflops)
    evaluation += sampled * DECODE_TFLOP * area / tflops
    model = footprint.architecture(config.model)
    peaks = footprint.peaks(config, model)
    process = 0.0 if gpu else PROCESS_BYTES
    memory = max(peaks.values()) + process
    trained = footprint.trained_numbers(config, model)
    average = trained * footprint.FULL if getattr(config.method, "ema", False) else 0.0
    checkpoint = trained * (footprint.FULL + footprint.OPTIMIZER_BYTES[config.steps.optimizer]) + average
    adapter = trained * footprint.FULL * (1 if whole else 2)  # a LoRA also in kohya's keys
    rest = footprint.FULL * sum(model.parameters.values()) - adapter if whole else 0.0
    disk = _disk(config, evaluations, sampled, config.model.resolution or 512, adapter, checkpoint, rest)
    return Cost(device, training, evaluation, 4 * START_SECONDS, memory, disk, peaks, process)


def _cores() -> int:
    if hasattr(os, "process_cpu_count"):  # from Python 3.13 on
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # macOS and Windows have none
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def keeps_best_only(config: Config) -> bool:
    """Whether adapters that can no longer be recommended are removed: see `steps.keep_adapters`."""
    whole = hasattr(config.method, "complete")  # saves whole networks
    return config.steps.keep_adapters == "best" or (config.steps.keep_adapters == "auto" and whole)


def _disk(
    config: Config, evaluations: int, sampled: int, resolution: int, adapter: float, checkpoint: float,
    rest: float = 0.0,
) -> int:  # fmt: skip
    """Bytes of adapters, checkpoints, grids of at most 128 pixels a picture, tables, the report with the grids inside.

    `rest`: what artefact/ has beside the recommended adapter, which it shares with adapters/. One checkpoint more
    than is kept is the best one, one is being written; and of adapters one, or artefact/ as it is put together.
    Whole networks' adapters of the best and of the newest step are their checkpoints' own files.
    """
    side = min(resolution, 128)
    kept = min(evaluations, 2) if keeps_best_only(config) else evaluations
    checkpoints = config.steps.keep_checkpoints + 2 if config.steps.checkpoint_every != 0 else 0
    shared = 2 if hasattr(config.method, "files") and config.steps.checkpoint_every is None else 0
    large = (kept + 1 - min(kept, shared)) * adapter + rest + checkpoints * checkpoint
    return int(large + sampled * (side * side * 3 + 2000) * 2 + 20e6)


def device_bytes(config: Config) -> float | None:
    """Memory of the device that the run will use: a card's by nvidia-smi, the machine's; None if unknown."""
    if config.model.device == "cpu" or not has_gpu():
        import psutil

        return (
            None if config.model.device.startswith(("cuda", "mps")) else float(psutil.virtual_memory().total)
        )
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split()
        number = int(config.model.device.partition(":")[2] or 0)
        return float(told[number]) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


# What makes a run smaller, the least costly first.
SAVINGS = (
    "model.precision=bf16", "memory.offload=true", "memory.gradient_checkpointing=true",
    "steps.optimizer=adamw8bit", "steps.batch_size=1",
    "prompts.batch_size=1",
)  # fmt: skip


def remedies(config: Config) -> tuple[list[str], float]:
    """Settings not yet made that lower the peak, each added to those before, and the peak with all of them."""
    changed, found = copy.deepcopy(config), list[str]()
    model = footprint.architecture(config.model)
    best = max(footprint.peaks(changed, model).values())
    for saving in SAVINGS * 2:  # what does not help at first may when another phase is the peak
        key, _, value = saving.partition("=")
        group, _, name = key.partition(".")
        trial = copy.deepcopy(changed)
        setattr(getattr(trial, group), name, {"true": True, "1": 1}.get(value, value))
        if trial.memory.cache == "off":
            trial.memory.cache = "memory"
        peak = max(footprint.peaks(trial, model).values())
        if saving not in found and peak < 0.99 * best:
            changed, best, found = trial, peak, [*found, saving]
    return found, best


def memory_row(cost: Cost) -> str:
    parts = ", ".join(f"{name} {size / footprint.GIB:.1f}" for name, size in cost.peaks.items())
    return f"about {cost.memory_bytes / footprint.GIB:.1f} GiB" + (f" ({parts})" if parts else "")


def memory_warnings(config: Config, cost: Cost) -> list[str]:
    """Says so where the run will not fit the device, and what would help."""
    there = device_bytes(config)
    if there is None or cost.memory_bytes < 0.95 * there or not cost.peaks:
        return []
    found, best = remedies(config)
    told = f"about {cost.memory_bytes / footprint.GIB:.1f} GiB of memory are needed, and {cost.device} has {there / footprint.GIB:.1f}"
    if found:
        told += f"; {' '.join(found)} bring it to about {best / footprint.GIB:.1f}"
    if hasattr(config.method, "complete"):
        told += "; method=lora needs less"
    return [told]


def planned(config: Config) -> dict[str, dict[str, float]]:
    """The estimate beside which a record puts what was measured: seconds and bytes of each phase."""
    settings, steps = config.prompts, config.steps
    total, every = steps.total or 1, steps.every or 1
    evaluations = len({*range(0, total, every), total})
    sampled = evaluations * settings.n * settings.images_per_prompt
    forwards = sampled * settings.sampling_steps * (2 if settings.guidance_scale > 1 else 1)
    cost = estimate(config, forwards=forwards, sampled=sampled, evaluations=evaluations)
    return {
        phase: {
            "seconds": seconds,
            "peak_memory_bytes": cost.peaks[phase] + cost.process_bytes if cost.peaks else cost.memory_bytes,
        }
        for phase, seconds in (("training", cost.training_seconds), ("evaluation", cost.evaluation_seconds))
    }


def has_gpu() -> bool:
    """Whether an NVIDIA card is visible, without importing torch."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1")
    # Windows and WSL have no such folder.
    there = Path("/proc/driver/nvidia/gpus").is_dir() or shutil.which("nvidia-smi") is not None
    return there and not hidden
