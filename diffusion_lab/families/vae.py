"""Encodes images to latents and decodes them with diffusers' AutoencoderKL, which all families use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from diffusion_lab.records import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from diffusion_lab.families.family import Config


def posterior(vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-variance (natural logarithm), float32 [b, c, h, w], for float32 [b, 3, h, w] in -1..1.

    Computed in float32 regardless of the VAE's dtype and of autocast: some VAEs overflow in float16.
    """
    import torch

    with torch.no_grad(), torch.autocast(vae.device.type, enabled=False), in_float32(vae):
        found = vae.encode(pixels.to(vae.device, torch.float32)).latent_dist
        return found.mean, found.logvar


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Decodes scaled latents to float32 [b, 3, h, w], about -1..1; computed in the VAE's own dtype."""
    scale, shift = factors(vae)
    unscaled = latents / scale
    if shift:
        unscaled = unscaled + shift
    decoded: Tensor = vae.decode(unscaled.to(vae.dtype), return_dict=False)[0].float()
    return decoded


def factors(vae: Any) -> tuple[float, float]:
    """scale and shift of the VAE's config: latents = (sample - shift) * scale."""
    return float(vae.config["scaling_factor"]), float(vae.config.get("shift_factor") or 0.0)


def pixels_per_latent(vae: Config) -> int:
    """Pixels per latent position, along each axis, from the VAE's config.

    KeyError if it does not contain this.
    """
    factor: int = 2 ** (len(vae["block_out_channels"]) - 1)
    return factor


def latent_side(pixels: int, factor: int) -> int:
    """Side length of the latents. UserError if the VAE does not support this number of pixels."""
    if pixels <= 0 or pixels % factor:
        raise UserError(
            f"model.resolution is {pixels}: this model needs a positive multiple of {factor} pixels"
        )
    return pixels // factor


@contextmanager
def in_float32(vae: Any) -> Iterator[None]:
    """Context in which the VAE is in float32; its original tensors are restored afterwards."""
    import torch

    kept = [(p, p.data) for p in vae.parameters() if p.dtype != torch.float32]
    with torch.inference_mode(False):  # a parameter must not become an inference tensor
        for parameter, data in kept:
            parameter.data = data.float()
    try:
        yield
    finally:
        for parameter, data in kept:
            parameter.data = data
