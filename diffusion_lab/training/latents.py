"""Pictures and prompts as the U-Net sees them, computed once.

The VAE's answer to a picture is a normal distribution. Its mean and log-variance are kept and a fresh sample
is drawn at each step, so that a cached run equals one that encodes anew. Keeping one sample instead would
train on less variety, and keeping them by step would pair them with the wrong pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffusion_lab.data.pictures import fit, to_tensor
from diffusion_lab.interfaces import Picture, UserError

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, StableDiffusionPipeline


@dataclass(frozen=True, slots=True)
class LatentCache:
    """Posterior moments of every picture; v is 1, or 2 where each picture is also kept mirrored."""

    mean: Tensor  # float32 [n, v, c, h, w]
    logvar: Tensor  # float32 [n, v, c, h, w], natural logarithm
    scaling_factor: float  # the VAE's: latents have about unit variance after it
    shift_factor: float  # the VAE's: subtracted before; 0 for Stable Diffusion

    def sample(self, numbers: Sequence[int], generator: torch.Generator) -> Tensor:
        """Scaled latents of the named pictures, float32 [b, c, h, w] on the cache's device.

        Drawn on the CPU and picture by picture: first whether it is mirrored (where it can be), then
        standard normal noise.
        """
        versions, noise = [], []
        for _ in numbers:
            many = self.mean.shape[1]
            versions.append(int(torch.randint(0, many, (1,), generator=generator)) if many > 1 else 0)
            noise.append(torch.randn(self.mean.shape[2:], generator=generator))
        rows = torch.tensor(list(numbers)), torch.tensor(versions)
        device = self.mean.device
        mean, logvar = self.mean[rows], self.logvar[rows]
        latents = mean + torch.exp(0.5 * logvar) * torch.stack(noise).to(device, non_blocking=True)
        return (latents - self.shift_factor) * self.scaling_factor


@torch.no_grad()
def encode_pictures(
    vae: AutoencoderKL, pictures: Sequence[Picture], resolution: int, *, flip: bool = False
) -> LatentCache:
    """Every picture's centred square at `resolution` pixels through the VAE, in float32 and one by one.

    One by one so that the memory needed does not depend on how many there are.
    """
    if not pictures:
        raise ValueError("no pictures to encode")
    if vae.dtype != torch.float32:
        raise ValueError(f"the VAE is {vae.dtype}: pictures are encoded before the frozen parts are cast")
    means, logvars = [], []
    for picture in pictures:
        pixels = to_tensor(fit(picture.pixels, resolution)).to(vae.device)
        for version in [pixels, pixels.flip(-1)] if flip else [pixels]:
            posterior = vae.encode(version[None]).latent_dist
            means.append(posterior.mean[0])
            logvars.append(posterior.logvar[0])
    shape = (len(pictures), 2 if flip else 1, *means[0].shape)
    return LatentCache(
        mean=torch.stack(means).reshape(shape),
        logvar=torch.stack(logvars).reshape(shape),
        scaling_factor=float(vae.config["scaling_factor"]),
        shift_factor=float(vae.config.get("shift_factor") or 0.0),
    )


def tokenize(pipe: StableDiffusionPipeline, text: str) -> Tensor:
    """int64 [1, tokens], padded as the pipeline pads its prompts. UserError where the text does not fit."""
    tokenizer = pipe.tokenizer
    text = pipe.maybe_convert_prompt(text, tokenizer)  # a learned word of several vectors is written out
    most = int(tokenizer.model_max_length)
    given = len(tokenizer(text).input_ids)
    if given > most:
        raise UserError(
            f"the prompt {text!r} has {given} tokens, the model reads {most}; "
            "shorten data.identifier or data.class_noun"
        )
    ids: Tensor = tokenizer(text, padding="max_length", max_length=most, return_tensors="pt").input_ids
    return ids


@torch.no_grad()
def encode_text(pipe: StableDiffusionPipeline, input_ids: Tensor) -> Tensor:
    """The text encoder's last hidden states, float32 [b, tokens, d], as the pipeline gives them."""
    hidden: Tensor = pipe.text_encoder(input_ids)[0]
    return hidden.float()
