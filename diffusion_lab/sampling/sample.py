"""Prompts to images: batches through the family's solver, with guidance.

This is a custom loop over denoiser and solver instead of `pipe(...)`, because the pipeline has a single
scheduler, which belongs to the user, and because images are generated for evaluation: no safety checker may
blacken them. For each image the result is the same as that of `pipe(prompt, negative_prompt=...)` with the
same scheduler and noise.

Determinism: the noise is bit-identical for all batch sizes. Images depend on the batch size only by rounding,
because libraries use different kernels for different shapes: a few pixels differ by one grey level. With the
same batch size, device and number of threads, images are bit-identical.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diffusion_lab.config.schedule import sampler
from diffusion_lab.families import of
from diffusion_lab.families.guidance import is_guided
from diffusion_lab.records import TrainingDiverged, UserError
from diffusion_lab.sampling.embeddings import PromptEmbeddings
from diffusion_lab.sampling.noise import image_seed, initial_noise
from diffusion_lab.system.modes import eval_mode
from diffusion_lab.system.rng import preserved_rng

if TYPE_CHECKING:
    from diffusion_lab.config.schema import Prompts
    from diffusion_lab.families.family import Conditioning
    from diffusion_lab.records import Pixels, Prompt, PromptSet

_DECODE_PIXELS = 8 * 512 * 512  # decoded in one pass: the VAE needs about 1 GB per 512-pixel image in float32


@dataclass(frozen=True, slots=True)
class PlannedImage:
    """An image to be generated."""

    prompt: Prompt
    index: int  # index among the prompt's images
    seed: int  # seed of its noise


def plan(prompts: PromptSet, settings: Prompts) -> list[PlannedImage]:
    """The images of one evaluation in order: by prompt, with `images_per_prompt` images for each."""
    from diffusion_lab.data.prompts import images_per_prompt

    return [
        PlannedImage(prompt, index, image_seed(prompt.text, index, settings.noise_seed))
        for prompt in prompts
        for index in range(images_per_prompt(settings, prompts))
    ]


def sample(
    pipe: Any,
    prompts: PromptSet,
    settings: Prompts,
    *,
    prompt_embeds: PromptEmbeddings | None = None,
    progress: Callable[[int], None] | None = None,
    resolution: int | None = None,
) -> list[Pixels]:
    """The images of `plan(prompts, settings)`, in that order: uint8 [resolution, resolution, 3] each.

    ``prompt_embeds``: the run's cache; if None, the embeddings are computed again. ``progress`` is called
    after each batch with its number of images. ``resolution``: in pixels, by default the model's own;
    UserError if the VAE does not support it. Guidance is Ho & Salimans 2022 (arXiv:2207.12598): e = e_neg + w
    (e_text - e_neg), with the negative prompt in the unconditional branch; for w <= 1 this branch is not
    computed, as in diffusers.
    """
    planned = plan(prompts, settings)
    return draw(
        pipe, planned, prompts.negative, settings,
        prompt_embeds=prompt_embeds, progress=progress, resolution=resolution,
    )  # fmt: skip


def draw(
    pipe: Any,
    planned: Sequence[PlannedImage],
    negative: str,
    settings: Prompts,
    *,
    prompt_embeds: PromptEmbeddings | None = None,
    progress: Callable[[int], None] | None = None,
    resolution: int | None = None,
) -> list[Pixels]:
    """Like `sample`, for the given images only."""
    family = of(pipe)
    size = None if resolution is None else (resolution, resolution)
    shape = family.latent_shape(pipe, size)
    cache = PromptEmbeddings() if prompt_embeds is None else prompt_embeds
    steps, guidance_scale = sampler(settings)
    guided = is_guided(family, guidance_scale)
    images: list[Pixels] = []
    with eval_mode(*family.networks(pipe).values()), preserved_rng(), torch.inference_mode():
        known = encode_planned(pipe, planned, negative, settings, cache)
        unconditional = None
        if guided:
            encoded, known = _rows(known, 0, 1), _rows(known, 1, None)
            unconditional = family.unconditional(pipe, negative, encoded)
        for start in range(0, len(planned), settings.batch_size):
            batch = planned[start : start + settings.batch_size]
            noise = torch.stack(
                [initial_noise(item.prompt.text, item.index, settings.noise_seed, shape) for item in batch]
            )
            latents = denoise(
                pipe, noise, _rows(known, start, start + len(batch)), unconditional, steps, guidance_scale,
            )  # fmt: skip
            if not bool(latents.isfinite().all()):
                raise TrainingDiverged(
                    "the model generates images that are not finite: its weights have diverged"
                )
            images.extend(decode(pipe, latents))
            if progress is not None:
                progress(len(batch))
    return images


def encode_planned(
    pipe: Any, planned: Sequence[PlannedImage], negative: str, settings: Prompts, cache: PromptEmbeddings
) -> Conditioning:
    """The embeddings that `draw` uses: a row per image, with guidance after a row for the negative prompt."""
    texts = [item.prompt.text for item in planned]
    guided = is_guided(of(pipe), sampler(settings)[1])
    return cache.encode(pipe, [negative, *texts] if guided else texts)


def _rows(values: Conditioning, start: int, stop: int | None) -> Conditioning:
    return {name: value[start:stop] for name, value in values.items()}


def denoise(
    pipe: Any,
    noise: Tensor,
    conditional: Conditioning,
    unconditional: Conditioning | None,
    steps: int,
    guidance_scale: float,
) -> Tensor:
    """Latents, float32 [b, c, h, w], from noise of the same shape.

    ``conditional`` has b rows; ``unconditional``, for guidance, has one row.
    """
    family = of(pipe)
    denoiser = getattr(pipe, family.denoiser)
    device, n = denoiser.device, len(noise)
    size = (noise.shape[-2] * pipe.vae_scale_factor, noise.shape[-1] * pipe.vae_scale_factor)
    scheduler = family.solver(
        pipe, steps, size
    )  # a new one per batch: a multistep solver stores its previous steps
    latents: Tensor = noise.to(device) * getattr(scheduler, "init_noise_sigma", 1.0)
    context = {name: value.to(device) for name, value in conditional.items()}
    if unconditional is not None:
        # Both branches in one forward pass with batch size 2b.
        context = {
            name: torch.cat([unconditional[name].to(device).expand_as(value), value])
            for name, value in context.items()
        }
    both_n = n if unconditional is None else 2 * n
    precision, dtype = _precision(denoiser)
    context = {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in (
            context | dict(family.sampling_extras(pipe, both_n, size, guidance_scale))
        ).items()
    }
    with precision:
        for t in scheduler.timesteps:
            both = latents if unconditional is None else torch.cat([latents, latents])
            if hasattr(scheduler, "scale_model_input"):
                both = scheduler.scale_model_input(both, t)
            prediction = family.predict(pipe, both.to(dtype), t, context).float()
            if unconditional is not None:
                without, with_text = prediction.chunk(2)
                prediction = without + guidance_scale * (with_text - without)
            latents = scheduler.step(prediction, t, latents, return_dict=False)[0]
    return latents


def decode(pipe: Any, latents: Tensor) -> Iterator[Pixels]:
    """Scaled latents [b, c, h, w] -> uint8 [height, width, 3] per image, rounded as in diffusers."""
    family = of(pipe)
    side = latents.shape[-1] * pipe.vae_scale_factor
    at_once = max(1, _DECODE_PIXELS // (side * side))
    for chunk in torch.split(latents, at_once):
        decoded = family.decode(pipe, chunk)
        if not bool(decoded.isfinite().all()):  # some VAEs overflow in float16; uint8 would be black
            raise UserError(
                f"model.precision: the VAE's images are not finite in {pipe.vae.dtype}; set model.precision=bf16 or "
                "fp32"
            )
        pixels = (decoded / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
        yield from pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def _precision(denoiser: nn.Module) -> tuple[AbstractContextManager[Any], torch.dtype]:
    """The autocast context and dtype for a network whose frozen weights may be in half precision.

    Trained weights are in float32.
    """
    kinds = {parameter.dtype for parameter in denoiser.parameters() if parameter.is_floating_point()}
    if len(kinds) == 1:
        return nullcontext(), kinds.pop()
    half = next(kind for kind in (torch.bfloat16, torch.float16, torch.float32) if kind in kinds)
    return torch.autocast(next(denoiser.parameters()).device.type, dtype=half), half
