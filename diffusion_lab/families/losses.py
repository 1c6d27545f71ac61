"""The denoising loss of every family: the mean squared error of the denoiser's prediction.

The noise and the target are defined by the family's noise process. Variants: Min-SNR weights (Hang et al.
2023, arXiv:2303.09556), offset noise (Guttenberg 2023, "Diffusion with offset noise"), prior preservation
(Ruiz et al. 2022, arXiv:2208.12242, eq. 2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_lab.families import of

if TYPE_CHECKING:
    from diffusion_lab.families.batch import Batch
    from diffusion_lab.families.family import NoiseProcess


@dataclass(frozen=True, slots=True)
class Draw:
    """The random part of one loss."""

    noise: Tensor  # float32 [b, c, h, w], standard normal
    timesteps: Tensor  # [b], in the noise process's unit


def draw_noise(
    latents: Tensor,
    process: NoiseProcess,
    generator: torch.Generator,
    offset: float = 0.0,
    rows: Sequence[int] = (),
    n_all: int = 0,
) -> Draw:
    """Noise and timesteps for `latents` [b, c, h, w] on their device.

    `offset` adds a normal random number with this standard deviation to each channel's noise. Sampled on the
    CPU, image by image, so that the values depend neither on the device nor on the split into micro-batches
    or processes: each process samples for all `n_all` images and keeps its own `rows`.
    """
    noise, timesteps = [], []
    for _ in range(n_all or latents.shape[0]):
        here = torch.randn(latents.shape[1:], generator=generator)
        if offset:
            here = here + offset * torch.randn((latents.shape[1], 1, 1), generator=generator)
        noise.append(here)
        timesteps.append(process.draw(generator))
    if rows:
        noise, timesteps = [noise[row] for row in rows], [timesteps[row] for row in rows]
    device = latents.device
    return Draw(
        torch.stack(noise).to(device, non_blocking=True), torch.cat(timesteps).to(device, non_blocking=True)
    )


def denoising_loss(
    predict: Callable[[Tensor, Tensor], Tensor],
    process: NoiseProcess,
    latents: Tensor,
    draw: Draw,
    *,
    snr_gamma: float | None = None,
    n_class: int = 0,
    prior_weight: float = 1.0,
) -> Tensor:
    """Mean squared error of `predict(noisy latents, timesteps)`, float32 scalar.

    The mean is over images, channels and positions. `snr_gamma` weights each image's error by its timestep,
    if the process supports it. The last `n_class` images are class images: their mean is added with the
    factor `prior_weight` to the mean of the others.
    """
    noisy = process.add_noise(latents, draw.noise, draw.timesteps)
    target = process.target(latents, draw.noise, draw.timesteps)
    prediction = predict(noisy, draw.timesteps).float()
    weights = process.weights(draw.timesteps, snr_gamma)
    if weights is None and not n_class:
        return F.mse_loss(prediction, target.float())
    error = (prediction - target.float()).pow(2).mean(dim=(1, 2, 3))
    if weights is not None:
        error = error * weights
    own = len(error) - n_class
    return error[:own].mean() + prior_weight * error[own:].mean() if n_class else error.mean()


def batch_loss(pipe: Any, batch: Batch, generator: torch.Generator, prior_weight: float = 1.0) -> Tensor:
    """The loss of one micro-batch through the pipe's denoiser and, if they are trained, its text encoders."""
    family = of(pipe)
    texts = family.encode(pipe, batch.tokens) if batch.conditioning is None else batch.conditioning
    conditioning = {**texts, **batch.extras}
    draw = draw_noise(batch.latents, batch.process, generator, batch.noise_offset, batch.rows, batch.n_all)
    return denoising_loss(
        lambda noisy, timesteps: family.predict(pipe, noisy, timesteps, conditioning),
        batch.process, batch.latents, draw,
        snr_gamma=batch.snr_gamma, n_class=batch.n_class, prior_weight=prior_weight,
    )  # fmt: skip
