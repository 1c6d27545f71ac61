"""Rectified flow: straight paths from images to noise, as in Stable Diffusion 3 and FLUX.1.

x_t = (1 - sigma) x + sigma noise, and the network predicts the velocity noise - x (Esser et al. 2024,
arXiv:2403.03206, eq. 13). Timesteps are sigma * num_train_timesteps, floats in 0..1000.

A shift increases the noise levels at high resolutions (eq. 23): sigma = shift u / (1 + (shift - 1) u). It is
applied to uniform or logit-normal u exactly once: the table of a new diffusers scheduler contains levels that
are already shifted, from sigma 1 down, so training does not use it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diffusion_lab.records import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Flow:
    """The `NoiseProcess` of a rectified flow; `flow(config, tokens)` creates it from a scheduler's config."""

    shift: float = 1.0  # above 0; 1: none. With dynamic shifting, exp(mu) for the image's size
    num_train_timesteps: int = 1000  # the unit of timesteps
    mean: float = 0.0  # of logit(u)
    std: float = 1.0  # of logit(u)

    def draw(self, generator: torch.Generator) -> Tensor:
        """float32 [1] in 0..num_train_timesteps: shifted logit-normal (Esser et al. 2024, eq. 19)."""
        import torch

        u = torch.sigmoid(self.mean + self.std * torch.randn(1, generator=generator))
        return self.num_train_timesteps * (self.shift * u / (1 + (self.shift - 1) * u))

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t [b, c, h, w] = (1 - sigma) x + sigma noise, for timesteps [b]."""
        sigma = timesteps.to(latents.device) / self.num_train_timesteps
        sigma = sigma.to(latents.dtype).reshape(-1, *[1] * (latents.ndim - 1))
        return (1 - sigma) * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The velocity noise - x [b, c, h, w], the same at all timesteps."""
        return noise - latents

    def weights(self, timesteps: Tensor, snr_gamma: float | None) -> Tensor | None:
        """None: the density of the timesteps is the weighting. UserError if `snr_gamma` is set."""
        if snr_gamma is not None:
            raise no_min_snr(snr_gamma)
        return None


def no_min_snr(snr_gamma: float) -> UserError:
    """The error for a rectified flow with Min-SNR weights."""
    return UserError(
        f"steps.snr_gamma={snr_gamma:g}: Min-SNR weights are for models that predict noise or v, and this model is a "
        "rectified flow; set steps.snr_gamma=null"
    )


def flow(config: Mapping[str, Any], tokens: int) -> Flow:
    """The process for a FlowMatchEulerDiscreteScheduler's config; `tokens`: latent patches per image."""
    return Flow(shift_of(config, tokens), int(config.get("num_train_timesteps", 1000)))


def shift_of(config: Mapping[str, Any], tokens: int) -> float:
    """The scheduler's shift factor of noise levels; with dynamic shifting, it depends on `tokens`."""
    if not config.get("use_dynamic_shifting"):
        return float(config.get("shift", 1.0))
    mu = dynamic_mu(config, tokens)
    return mu if config.get("time_shift_type", "exponential") == "linear" else math.exp(mu)


def dynamic_mu(config: Mapping[str, Any], tokens: int) -> float:
    """Linear in the number of tokens, as in `calculate_shift` of diffusers' pipelines."""
    fewest, most = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    return float(low + (tokens - fewest) * (high - low) / (most - fewest))


def euler(
    config: Mapping[str, Any],
    steps: int,
    tokens: int,
    device: torch.device | str,
    sigmas: Sequence[float] | None = None,
) -> Any:
    """A new `FlowMatchEulerDiscreteScheduler` with `steps` timesteps set, on `device`.

    `tokens`: per image, for dynamic shifting. `sigmas`: noise levels before the shift, from 1 down, one per
    step; None: the scheduler's own. It has neither `init_noise_sigma` (1: sampling starts from unscaled
    noise) nor `scale_model_input` (nothing is scaled).
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
    mu = dynamic_mu(config, tokens) if config.get("use_dynamic_shifting") else None
    if sigmas is None:
        scheduler.set_timesteps(steps, device=device, mu=mu)
    else:
        scheduler.set_timesteps(sigmas=list(sigmas), device=device, mu=mu)
    scheduler.set_begin_index(0)  # otherwise it looks up the index, which synchronises the device
    return scheduler
