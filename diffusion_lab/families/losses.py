"""The denoising loss of DDPM (Ho et al. 2020, arXiv:2006.11239, eq. 14), for both prediction types.

Variants: Min-SNR weights (Hang et al. 2023, arXiv:2303.09556), offset noise (Guttenberg 2023, "Diffusion with
offset noise"), prior preservation (Ruiz et al. 2022, arXiv:2208.12242, eq. 2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import DDPMScheduler, StableDiffusionPipeline

    from diffusion_lab.records import Batch


@dataclass(frozen=True, slots=True)
class Draw:
    """The random part of one loss."""

    noise: Tensor  # float32 [b, c, h, w], standard normal
    timesteps: Tensor  # int64 [b], uniform on 0..T-1


def draw_noise(
    latents: Tensor,
    steps: int,
    generator: torch.Generator,
    offset: float = 0.0,
    rows: Sequence[int] = (),
    n_all: int = 0,
) -> Draw:
    """Noise and timesteps for `latents` [b, c, h, w] on their device; `steps` is T, usually 1000.

    `offset` shifts each channel's noise by that much of a standard normal number. Drawn on the CPU and
    picture by picture, so that neither the device nor the split into micro-batches changes the numbers.
    Nor does the split over processes: each draws for the `n_all` pictures of all and keeps its own `rows`.
    """
    noise, timesteps = [], []
    for _ in range(n_all or latents.shape[0]):
        here = torch.randn(latents.shape[1:], generator=generator)
        if offset:
            here = here + offset * torch.randn((latents.shape[1], 1, 1), generator=generator)
        noise.append(here)
        timesteps.append(torch.randint(0, steps, (1,), generator=generator))
    if rows:
        noise, timesteps = [noise[row] for row in rows], [timesteps[row] for row in rows]
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


def snr_weights(scheduler: DDPMScheduler, timesteps: Tensor, gamma: float) -> Tensor:
    """Min-SNR weight of each time step [b]: min(SNR, gamma) / SNR, for v-prediction over SNR + 1.

    Hang et al. 2023, eq. 5 and appendix A: the same weight on the picture's error for both targets.
    """
    from diffusers.training_utils import compute_snr

    snr: Tensor = compute_snr(scheduler, timesteps)
    is_v = scheduler.config["prediction_type"] == "v_prediction"
    return snr.clamp(max=gamma) / (snr + 1 if is_v else snr)


def denoising_loss(
    predict: Callable[[Tensor, Tensor], Tensor],
    scheduler: DDPMScheduler,
    latents: Tensor,
    draw: Draw,
    *,
    snr_gamma: float | None = None,
    n_class: int = 0,
    prior_weight: float = 1.0,
) -> Tensor:
    """Mean squared error of `predict(noisy latents, timesteps)`, float32 scalar.

    x_t = sqrt(abar_t) x + sqrt(1 - abar_t) noise; the mean is over pictures, channels and positions.
    `snr_gamma` weighs each picture's error by its time step. The last `n_class` pictures are of the class:
    their own mean counts `prior_weight` times beside the mean of the others.
    """
    noisy = scheduler.add_noise(latents, draw.noise, draw.timesteps)
    target = prediction_target(scheduler, latents, draw)
    prediction = predict(noisy, draw.timesteps).float()
    if snr_gamma is None and not n_class:
        return F.mse_loss(prediction, target.float())
    error = (prediction - target.float()).pow(2).mean(dim=(1, 2, 3))
    if snr_gamma is not None:
        error = error * snr_weights(scheduler, draw.timesteps, snr_gamma)
    own = len(error) - n_class
    return error[:own].mean() + prior_weight * error[own:].mean() if n_class else error.mean()


def batch_loss(
    pipe: StableDiffusionPipeline, batch: Batch, generator: torch.Generator, prior_weight: float = 1.0
) -> Tensor:
    """The loss of one micro-batch through the pipe's own U-Net and, where it trains, its text encoder."""
    hidden = batch.encoder_hidden_states
    if hidden is None:
        hidden = pipe.text_encoder(batch.input_ids)[0]
    steps = batch.noise_scheduler.config["num_train_timesteps"]
    draw = draw_noise(batch.latents, steps, generator, batch.noise_offset, batch.rows, batch.n_all)

    def predict(noisy: Tensor, timesteps: Tensor) -> Tensor:
        prediction: Tensor = pipe.unet(noisy, timesteps, hidden, return_dict=False)[0]
        return prediction

    return denoising_loss(
        predict, batch.noise_scheduler, batch.latents, draw,
        snr_gamma=batch.snr_gamma, n_class=batch.n_class, prior_weight=prior_weight,
    )  # fmt: skip
