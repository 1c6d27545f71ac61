"""The denoising loss of DDPM (Ho et al. 2020, arXiv:2006.11239, eq. 14), for both prediction types."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DDPMScheduler


@dataclass(frozen=True, slots=True)
class Draw:
    """The random part of one loss."""

    noise: Tensor  # float32 [b, c, h, w], standard normal
    timesteps: Tensor  # int64 [b], uniform on 0..T-1


def draw_noise(latents: Tensor, steps: int, generator: torch.Generator) -> Draw:
    """Noise and timesteps for `latents` [b, c, h, w] on their device; `steps` is T, usually 1000.

    Drawn on the CPU and picture by picture, so that neither the device nor the split into micro-batches
    changes the numbers.
    """
    noise, timesteps = [], []
    for _ in range(latents.shape[0]):
        noise.append(torch.randn(latents.shape[1:], generator=generator))
        timesteps.append(torch.randint(0, steps, (1,), generator=generator))
    device = latents.device
    return Draw(
        torch.stack(noise).to(device, non_blocking=True), torch.cat(timesteps).to(device, non_blocking=True)
    )


def prediction_target(scheduler: DDPMScheduler, latents: Tensor, draw: Draw) -> Tensor:
    """What the U-Net should answer: the noise, or v = sqrt(abar) noise - sqrt(1 - abar) x.

    v-prediction: Salimans and Ho 2022, arXiv:2202.00512, section 4. ValueError for other types.
    """
    prediction_type = scheduler.config["prediction_type"]
    if prediction_type == "epsilon":
        return draw.noise
    if prediction_type == "v_prediction":
        velocity: Tensor = scheduler.get_velocity(latents, draw.noise, draw.timesteps)
        return velocity
    raise ValueError(f"prediction_type {prediction_type} is not epsilon or v_prediction")


def denoising_loss(
    predict: Callable[[Tensor, Tensor], Tensor], scheduler: DDPMScheduler, latents: Tensor, draw: Draw
) -> Tensor:
    """Mean squared error of `predict(noisy latents, timesteps)`, float32 scalar.

    x_t = sqrt(abar_t) x + sqrt(1 - abar_t) noise; the mean is over pictures, channels and positions.
    """
    noisy = scheduler.add_noise(latents, draw.noise, draw.timesteps)
    target = prediction_target(scheduler, latents, draw)
    return F.mse_loss(predict(noisy, draw.timesteps).float(), target.float())
