"""Pictures to latents and back through diffusers' AutoencoderKL, which all families have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from diffusion_lab.records import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from diffusion_lab.families.family import Config


def posterior(vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-variance (natural logarithm), float32 [b, c, h, w], of float32 [b, 3, h, w] in -1..1.

    Computed in float32 whatever the VAE's own format and autocast: some VAEs overflow in float16.
    """
    import torch

    with torch.no_grad(), torch.autocast(vae.device.type, enabled=False), in_float32(vae):
        found = vae.encode(pixels.to(vae.device, torch.float32)).latent_dist
        return found.mean, found.logvar


def decode(vae: Any, latents: Tensor) -> Tensor:
    """float32 [b, 3, h, w], about -1..1, of scaled latents; computed in the VAE's own format."""
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
    """Pixels a latent, each way, from the VAE's config. KeyError where it does not tell."""
    factor: int = 2 ** (len(vae["block_out_channels"]) - 1)
    return factor


def latent_side(pixels: int, factor: int) -> int:
    """Latents a side. UserError where the VAE cannot make so many pixels."""
    if pixels <= 0 or pixels % factor:
        raise UserError(
            f"model.resolution is {pixels}: this model needs a positive multiple of {factor} pixels"
        )
    return pixels // factor


@contextmanager
def in_float32(vae: Any) -> Iterator[None]:
    """The VAE in float32 inside; afterwards it has its own tensors back."""
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
