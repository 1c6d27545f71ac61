"""The autoencoder: 64x64x3 pixels to 16x16x4 latents (diffusers' AutoencoderKL, as in Stable Diffusion)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from diffusion_lab.recipes.miniature.data import Portraits
from diffusion_lab.recipes.miniature.loop import Schedule, Step, train

CHANNELS = (32, 64, 64)
KL_WEIGHT = 1e-6
PERCEPTUAL_WEIGHT = 1.5
BATCH = 8


def new_vae(channels: tuple[int, ...] = CHANNELS) -> Any:
    """An untrained AutoencoderKL with 4 latent channels and a factor of 4 between pixels and latents."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
    )


def to_pixels(images: NDArray[np.uint8], device: torch.device) -> Tensor:
    """uint8 [n, h, w, 3] -> float [n, 3, h, w] in -1..1."""
    copied = torch.from_numpy(np.array(images))  # a memory map cannot be written to, torch warns of that
    return copied.to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_images(pixels: Tensor) -> NDArray[np.uint8]:
    """float [n, 3, h, w] in -1..1 -> uint8 [n, h, w, 3]."""
    array: NDArray[np.uint8] = (
        ((pixels.float() + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 1).to(torch.uint8).cpu().numpy()
    )
    return array


def edges(x: Tensor, y: Tensor) -> Tensor:
    """Mean absolute difference of the images' gradients: keeps outlines that L1 alone blurs."""
    return F.l1_loss(x.diff(dim=2), y.diff(dim=2)) + F.l1_loss(x.diff(dim=3), y.diff(dim=3))


def perceptual(tower: Any, x: Tensor, y: Tensor) -> Tensor:
    """Mean squared distance of CLIP's image tower's maps, each position of unit length: all but the coarsest.

    LPIPS (Zhang et al. 2018, eq. 1) with equal weights and our own network. Images [n, 3, 64, 64] in -1..1.
    """
    pairs = list(zip(tower.maps(x), tower.maps(y), strict=True))[:-1]
    distances = [(F.normalize(a, dim=1) - F.normalize(b, dim=1)).pow(2).sum(dim=1).mean() for a, b in pairs]
    return torch.stack(distances).mean()


def train_vae(
    data: Portraits,
    folder: Path,
    *,
    steps: int,
    device: torch.device,
    seed: int = 0,
    batch: int = BATCH,
    lr: float = 1e-3,
    progress: bool = True,
    every: Any = None,
) -> Any:
    """Train on L1, edges and KL, in the last third with MSE added; return the EMA, its scaling factor set."""
    torch.manual_seed(seed)
    vae = new_vae().to(device)

    def loss(step: Step) -> tuple[Tensor, dict[str, float]]:
        images = to_pixels(data.images[np.sort(step.numpy.choice(len(data), batch))], device)
        noise = torch.randn(batch, 4, 16, 16, generator=step.torch).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            posterior = vae.encode(images).latent_dist
            out = vae.decode(posterior.mean + posterior.std * noise).sample
        out = out.float()
        kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        mse = F.mse_loss(out, images)
        squared = 4.0 if step.fraction > 0.66 else 1.0
        value = F.l1_loss(out, images) + edges(out, images) + squared * mse + KL_WEIGHT * kl
        return value, {"psnr": round(psnr_of(mse.item()), 2), "kl": round(kl.item(), 2)}

    schedule = Schedule(steps=steps, lr=lr, warmup=100, ema=0.998, weight_decay=0.0)
    states = train("vae", folder, {"vae": vae}, loss, schedule, seed=seed, progress=progress, every=every)
    vae.load_state_dict(states["vae"])
    vae.eval()
    sample = data.images[:: max(1, len(data) // 512)][:512]
    moments = torch.from_numpy(encode_moments(vae, np.asarray(sample), device))
    mean, logvar = moments.float().chunk(2, dim=1)
    spread = (mean.var() + logvar.exp().mean()).sqrt().item()
    vae.register_to_config(scaling_factor=round(1 / spread, 5))
    return vae


def train_decoder(
    vae: Any,
    tower: Any,
    data: Portraits,
    moments: NDArray[np.generic],
    folder: Path,
    *,
    steps: int,
    device: torch.device,
    seed: int = 0,
    batch: int = BATCH,
    lr: float = 6e-4,
    progress: bool = True,
    every: Any = None,
) -> Any:
    """Go on with the decoder alone, from cached moments [n, 8, 16, 16]: latents stay what they are.

    The loss weighs squared errors as Stable Diffusion's "ft-MSE" decoder does, and adds what CLIP's image
    ``tower`` sees, without which eyes and mouths stay soft. Returns the EMA.
    """
    torch.manual_seed(seed)
    vae.to(device)
    tower = tower.to(device).eval().requires_grad_(False)
    parts = {"decoder": vae.decoder, "post": vae.post_quant_conv}

    def loss(step: Step) -> tuple[Tensor, dict[str, float]]:
        picked = np.sort(step.numpy.choice(len(data), batch))
        images = to_pixels(data.images[picked], device)
        mean, logvar = torch.from_numpy(np.asarray(moments[picked], np.float32)).to(device).chunk(2, dim=1)
        noise = torch.randn(mean.shape, generator=step.torch).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            out = vae.decode(mean + (logvar / 2).exp() * noise).sample.float()
            seen = perceptual(tower, out, images)
        mse = F.mse_loss(out, images)
        value = F.l1_loss(out, images) + 0.5 * edges(out, images) + 6 * mse + PERCEPTUAL_WEIGHT * seen.float()
        return value, {"psnr": round(psnr_of(mse.item()), 2), "perceptual": round(seen.item(), 4)}

    schedule = Schedule(steps=steps, lr=lr, warmup=100, ema=0.998, weight_decay=0.0)
    states = train("decoder", folder, parts, loss, schedule, seed=seed, progress=progress, every=every)
    for name, part in parts.items():
        part.load_state_dict(states[name])
    return vae.eval()


@torch.no_grad()
def encode_moments(
    vae: Any, images: NDArray[np.uint8], device: torch.device, batch: int = 64
) -> NDArray[np.float32]:
    """Mean and log-variance of the latents: float32 [n, 8, 16, 16] (not scaled)."""
    parts = []
    for start in range(0, len(images), batch):
        with torch.autocast(device.type, torch.bfloat16):
            found = vae.encode(to_pixels(images[start : start + batch], device)).latent_dist.parameters
        parts.append(found.float().cpu().numpy())
    return np.concatenate(parts)


@torch.no_grad()
def reconstruct(
    vae: Any, images: NDArray[np.uint8], device: torch.device, batch: int = 64
) -> NDArray[np.uint8]:
    """Images through the encoder's mean and the decoder: uint8 as given."""
    parts = []
    for start in range(0, len(images), batch):
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type != "cpu" or len(images) > 2000):
            found = vae.decode(vae.encode(to_pixels(images[start : start + batch], device)).latent_dist.mean)
        parts.append(to_images(found.sample))
    return np.concatenate(parts)


def psnr_of(mse: float, peak: float = 2.0) -> float:
    """Peak signal-to-noise ratio in dB for a mean squared error of values that span ``peak``."""
    return 10 * math.log10(peak**2 / max(mse, 1e-12))


def evaluate_vae(vae: Any, heldout: Portraits, device: torch.device) -> dict[str, float]:
    """Mean over images of the PSNR in dB: all held-out portraits, and those that are not spoilt."""
    images = np.asarray(heldout.images)
    out = reconstruct(vae, images, device).astype(np.float64)
    error = ((out - images) ** 2).reshape(len(images), -1).mean(axis=1)
    psnr = np.array([psnr_of(e, 255.0) for e in error])
    fine = np.array([v in ("none", "magic", None) for v in heldout.values("quality")])
    pooled = psnr_of(float(error.mean()), 255.0)
    return {
        "psnr": float(psnr.mean()),
        "psnr_flawless": float(psnr[fine].mean()) if fine.any() else math.nan,
        "psnr_pooled": pooled,
    }
