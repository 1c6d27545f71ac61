"""Measures the speed of a device in a few seconds, for GPUs that are not in the plan's table."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from diffusion_lab.config.schema import Config
    from diffusion_lab.plan.numbers import PlannedEvaluations

log = logging.getLogger(__name__)
CHANNELS, SIDE = 640, 32  # a convolution of a size typical for U-Nets
SECONDS = 1.0  # measuring time, after the warm-up calls


def achieved(device: torch.device, precision: str, seconds: float = SECONDS) -> float:
    """TFLOP/s of a 3x3 convolution in `precision`. The process's random streams are left unchanged."""
    import torch

    from diffusion_lab.models.load import frozen_dtype

    dtype = frozen_dtype(precision)
    weight = torch.full((CHANNELS, CHANNELS, 3, 3), 0.01, device=device, dtype=dtype)
    images = torch.full((2, CHANNELS, SIDE, SIDE), 0.01, device=device, dtype=dtype)
    calls = 0
    with torch.no_grad():
        for _ in range(3):  # warm-up: kernels are selected
            torch.nn.functional.conv2d(images, weight, padding=1)
        _settle(device)
        started = time.perf_counter()
        while time.perf_counter() - started < seconds:
            for _ in range(5):
                torch.nn.functional.conv2d(images, weight, padding=1)
            _settle(device)
            calls += 5
        spent = time.perf_counter() - started
    return 2.0 * calls * images.shape[0] * CHANNELS * CHANNELS * 9 * SIDE * SIDE / spent / 1e12


def _settle(device: torch.device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def tell(config: Config, numbers: PlannedEvaluations, device: torch.device, seconds: float = SECONDS) -> None:
    """For a GPU that is in no table: measures its speed and logs the corrected time estimate."""
    from diffusion_lab.plan.costs import phases, speeds
    from diffusion_lab.plan.shown import duration

    assumed = speeds(config)
    if not assumed.assumed or device.type == "cpu":
        return
    found = achieved(device, config.model.precision, seconds)
    share = 0.6  # of the speed of one convolution, reached by a whole U-Net
    ratio = assumed.chosen / (share * found)
    plan = phases(config, numbers)
    log.info(
        "%s does %.0f TFLOP/s in %s: training about %s, evaluation about %s",
        assumed.device, found, config.model.precision,
        duration(plan["training"]["seconds"] * ratio), duration(plan["evaluation"]["seconds"] * ratio),
    )  # fmt: skip
