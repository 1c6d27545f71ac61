"""The diffusion model: diffusers' UNet2DConditionModel as in Stable Diffusion, on 16x16x4 latents.

Noise schedule of Rombach et al. 2022 (scaled linear, 0.00085..0.012, 1000 steps); loss weights of Hang et al.
2023 ("Efficient Diffusion Training via Min-SNR Weighting Strategy", gamma 5), more at high noise and inside
the head; a tenth of the captions empty, for classifier-free guidance.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from diffusion_lab.recipes.miniature.cut import cut
from diffusion_lab.recipes.miniature.data import Portraits
from diffusion_lab.recipes.miniature.loop import Schedule, Step, train
from diffusion_lab.recipes.miniature.tokenizer import encode
from diffusion_lab.recipes.miniature.vae import to_images

CHANNELS = {  # narrower for v-prediction: both ship, and all weights together stay under 60 MB
    "epsilon": (64, 128, 256),
    "v_prediction": (64, 128, 192),
}
BATCH = 32
GAMMA = 5.0
HEAD_WEIGHT = 3.0  # of the noise inside the head: eyes, mouth and hair are a few of the 256 latent pixels
HEAD = (
    0.35,
    0.5,
    0.35,
    0.25,
)  # how far it reaches beyond the face's box, in its sides: left, up, right, down
UNCONDITIONAL = 0.1
BETAS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
}


def new_unet(text_width: int, channels: tuple[int, ...] = CHANNELS["epsilon"]) -> Any:
    """An untrained U-Net with cross-attention at 16x16, 8x8 and in the middle."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=channels,
        layers_per_block=1,
        cross_attention_dim=text_width,
        attention_head_dim=(2, 4, 8),  # numbers of heads, in spite of the name, as in Stable Diffusion
    )


def loss_weights(alphas_cumprod: Tensor, prediction_type: str) -> Tensor:
    """Weight of every timestep [1000]: min(SNR, 5) / SNR for epsilon, / (SNR + 1) for v.

    For SNR < 1 it is also divided by sqrt(SNR).

    The root is Yu et al.'s 2023 ("Debias the Training of Diffusion Models"): colour and cut of hair, a few
    dozen latent pixels that average the noise away, are decided where the SNR is below 0.05; there alone the
    words can teach them, and there the unweighted loss has next to no gradient.
    """
    snr = alphas_cumprod / (1 - alphas_cumprod)
    weights = snr.clamp(max=GAMMA) / (snr if prediction_type == "epsilon" else snr + 1)
    return weights / snr.clamp(max=1).sqrt()


def heads(faces: NDArray[np.float32]) -> NDArray[np.float32]:
    """Boxes [n, 4] of faces, made larger so that most of the hair is inside."""
    width, height = faces[:, 2] - faces[:, 0], faces[:, 3] - faces[:, 1]
    left, up, right, down = HEAD
    grown = np.stack([-left * width, -up * height, right * width, down * height], axis=1)
    return (faces + grown).astype(np.float32)


def head_weights(boxes: NDArray[np.float32], side: int, pixels: int = 64) -> Tensor:
    """Weights [n, 1, side, side] of mean 1: `HEAD_WEIGHT` times as much inside `boxes` [n, 4] as outside.

    Boxes are left, top, right, bottom in pixels of a picture `pixels` wide; a latent pixel belongs to the
    head by the share of it that the box covers.
    """
    low = torch.arange(side) * pixels / side
    high = low + pixels / side
    left, top, right, bottom = (torch.from_numpy(boxes[:, k, None].copy()).float() for k in range(4))
    across = (torch.minimum(high, right) - torch.maximum(low, left)).clamp(min=0) * side / pixels
    down = (torch.minimum(high, bottom) - torch.maximum(low, top)).clamp(min=0) * side / pixels
    weights = 1 + (HEAD_WEIGHT - 1) * down[:, None, :, None] * across[:, None, None, :]
    return weights / weights.mean(dim=(2, 3), keepdim=True)


class SingleAttention(TorchFunctionMode):
    """Attention in float32 on the CPU whatever autocast says, all else as it was.

    torch 2.15's flash attention takes two to six times as long backward in bfloat16 as in float32 there.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention and args[0].device.type == "cpu":
            with torch.autocast("cpu", enabled=False):
                return func(*(a.float() for a in args), **(kwargs or {})).to(args[0].dtype)
        return func(*args, **(kwargs or {}))


def train_unet(
    data: Portraits,
    moments: NDArray[np.generic],
    scaling: float,
    text_encoder: Any,
    tokenizer: Any,
    folder: Path,
    *,
    steps: int,
    device: torch.device,
    seed: int = 0,
    batch: int = BATCH,
    lr: float = 4e-4,
    prediction_type: str = "epsilon",
    start: Path | None = None,
    progress: bool = True,
    every: Any = None,
) -> Any:
    """Train on cached latent moments [n, 8, 16, 16]; return the EMA. ValueError for an unknown prediction type.

    ``start``: the folder of a U-Net, of either prediction type, to begin from; cut where it is wider.
    """
    if prediction_type not in CHANNELS:
        raise ValueError(f"prediction_type must be epsilon or v_prediction, got {prediction_type!r}")
    from diffusers import DDPMScheduler, UNet2DConditionModel

    torch.manual_seed(seed)
    text_encoder = text_encoder.to(device).eval().requires_grad_(False)
    unet = new_unet(text_encoder.config.hidden_size, CHANNELS[prediction_type])
    if start is not None:
        wide = UNet2DConditionModel.from_pretrained(start, dtype=torch.float32)
        unet.load_state_dict(cut(wide.state_dict(), unet.state_dict()))
    unet = unet.to(device)
    noise = DDPMScheduler(**BETAS, prediction_type=prediction_type)
    weights = loss_weights(noise.alphas_cumprod, prediction_type).to(device)

    def loss(step: Step) -> tuple[Tensor, dict[str, float]]:
        picked = np.sort(step.numpy.choice(len(data), batch))
        mean, logvar = torch.from_numpy(np.asarray(moments[picked], np.float32)).to(device).chunk(2, dim=1)
        latents = (mean + (logvar / 2).exp() * normal_noise(mean, step)) * scaling
        texts = [data.caption(step.numpy, i) for i in picked]
        texts = ["" if step.numpy.uniform() < UNCONDITIONAL else text for text in texts]
        target = normal_noise(latents, step)
        spread = (torch.rand(batch, generator=step.torch) + torch.arange(batch)) / batch  # stratified
        times = (spread * len(weights)).long().clamp(max=len(weights) - 1).to(device)
        noised = noise.add_noise(latents, target, times)
        if prediction_type == "v_prediction":
            target = noise.get_velocity(latents, target, times)
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
            words = text_encoder(encode(tokenizer, texts).to(device)).last_hidden_state
        with torch.autocast(device.type, torch.bfloat16), SingleAttention():
            out = unet(noised, times, words).sample
        inside = head_weights(heads(data.boxes[picked]), out.shape[-1]).to(device)
        error = (inside * (out.float() - target).pow(2)).mean(dim=(1, 2, 3))
        return (weights[times] * error).mean(), {"mse": round(error.mean().item(), 4)}

    schedule = Schedule(steps=steps, lr=lr, warmup=200, ema=0.998, weight_decay=0.01)
    states = train("unet", folder, {"unet": unet}, loss, schedule, seed=seed, progress=progress, every=every)
    unet.load_state_dict(states["unet"])
    return unet.eval()


def normal_noise(like: Tensor, step: Step) -> Tensor:
    """Standard normal noise of the step's own stream, drawn on the CPU."""
    return torch.randn(like.shape, generator=step.torch).to(like.device)


@torch.no_grad()
def sample(
    pipe: Any,
    prompts: Sequence[str],
    *,
    seed: int = 0,
    steps: int = 12,
    guidance: float = 3.0,  # as `prompts=miniature`
    batch: int = 25,
    negative: str = "",
) -> NDArray[np.uint8]:
    """Pictures of ``prompts`` by DPM-Solver++ with guidance: uint8 [n, 64, 64, 3]; noise i from seed + i."""
    from diffusers import DPMSolverMultistepScheduler

    device = pipe.unet.device
    embedded = torch.cat(
        [
            pipe.text_encoder(encode(pipe.tokenizer, list(prompts[i : i + 64])).to(device)).last_hidden_state
            for i in range(0, len(prompts), 64)
        ]
    )
    empty = pipe.text_encoder(encode(pipe.tokenizer, [negative]).to(device)).last_hidden_state
    images = []
    for start in range(0, len(prompts), batch):
        scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
        scheduler.set_timesteps(steps, device=device)
        here = embedded[start : start + batch]
        latents = torch.stack(
            [
                torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(seed + start + i))
                for i in range(len(here))
            ]
        ).to(device)
        both = torch.cat([empty.expand(len(here), -1, -1), here])
        for t in scheduler.timesteps:
            with torch.autocast(device.type, torch.bfloat16):
                out = pipe.unet(torch.cat([latents, latents]), t, both).sample.float()
            plain, guided = out.chunk(2)
            latents = scheduler.step(plain + guidance * (guided - plain), t, latents).prev_sample
        images.append(to_images(pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample))
    return np.concatenate(images)


def pipeline(vae: Any, text_encoder: Any, tokenizer: Any, unet: Any, prediction_type: str = "epsilon") -> Any:
    """A StableDiffusionPipeline of the trained parts, without safety checker, PNDM as its scheduler."""
    from diffusers import PNDMScheduler, StableDiffusionPipeline

    scheduler = PNDMScheduler(
        **BETAS,
        prediction_type=prediction_type,
        skip_prk_steps=True,
        steps_offset=1,
        set_alpha_to_one=False,
    )
    scheduler.register_to_config(clip_sample=False)
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
