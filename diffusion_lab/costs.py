"""How long a run will take and how much memory it will need: a model of a few constants, for the plan only.

Miniature: the seconds of a step and of a U-Net pass are those of a trial on two CPU cores with float32; the
other miniature figures (scoring, start, memory, a GPU's advantage) are assumed. Full size: arithmetic of
Stable Diffusion 1.5 at 512 pixels divided by assumed speeds, not measured: an order of magnitude.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

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
WEIGHTS = 1.07e9  # parameters of U-Net, text encoder and VAE
ACTIVATION_BYTES = {"fp32": 5.5e9, "bf16": 2.8e9, "fp16": 2.8e9}  # training, one image
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

    @property
    def seconds(self) -> float:
        return self.training_seconds + self.evaluation_seconds + self.start_seconds


def estimate(config: Config, *, forwards: int, sampled: int, evaluations: int) -> Cost:
    """Cost of a fine-tuning run, defaults filled. `forwards`: images through the U-Net in sampling."""
    cores = os.process_cpu_count() if hasattr(os, "process_cpu_count") else len(os.sched_getaffinity(0))
    gpu = config.model.device != "cpu" and has_gpu()
    device = "a GPU" if gpu else f"{cores} CPU core{'s' if cores != 1 else ''}"
    steps = (config.steps.total or 0) * config.steps.gradient_accumulation
    whole = hasattr(config.method, "complete")  # saves whole networks, not adapters
    if config.model.path == "miniature":
        speed = 10.0 if gpu else min(cores, 8) / 2
        training = steps * STEP_SECONDS * config.steps.batch_size / 4 / speed
        evaluation = (forwards * FORWARD_SECONDS + sampled * SCORE_SECONDS) / speed
        return Cost(
            device, training, evaluation, START_SECONDS, MEMORY_BYTES,
            _disk(evaluations, sampled, 64, 50e6 if whole else 2e6),
        )  # fmt: skip
    area = ((config.model.resolution or 512) / 512) ** 2
    tflops = GPU_TFLOPS[config.model.precision] if gpu else CORE_TFLOPS * cores
    passes = steps * config.steps.batch_size * (1 + BACKWARD) * UNET_TFLOP
    training = (passes + config.data.n_images * ENCODE_TFLOP) * area / tflops
    evaluation = (forwards * UNET_TFLOP + sampled * DECODE_TFLOP) * area / tflops
    memory = 4 * WEIGHTS + ACTIVATION_BYTES[config.model.precision] * config.steps.batch_size * area
    disk = _disk(evaluations, sampled, config.model.resolution or 512, 3.5e9 if whole else 15e6)
    return Cost(device, training, evaluation, 4 * START_SECONDS, memory, disk)


def _disk(evaluations: int, sampled: int, resolution: int, adapter_bytes: float) -> int:
    """Adapters, grids of at most 128 pixels a picture, tables, the report with the grids inside."""
    side = min(resolution, 128)
    return int(evaluations * adapter_bytes + sampled * (side * side * 3 + 2000) * 2 + 20e6)


def has_gpu() -> bool:
    """Whether an NVIDIA card is visible, without importing torch."""
    return Path("/proc/driver/nvidia/gpus").is_dir() and os.environ.get("CUDA_VISIBLE_DEVICES", "0") not in (
        "",
        "-1",
    )
