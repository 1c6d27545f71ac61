"""Prompts to images: batched DPM-Solver++ with classifier-free guidance.

An own loop over U-Net and scheduler instead of `pipe(...)`, because the pipeline has one scheduler, which
belongs to the user, and because images are made for measuring: no safety checker may turn one black. Per
image it computes what `pipe(prompt, negative_prompt=...)` with the same scheduler and noise computes.

Determinism. The noise does not depend on the batch size, to the bit. Images do by rounding alone, since
libraries choose other kernels for other shapes: a few pixels differ by one grey level. With the same batch
size, device and number of threads images are the same to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diffusion_lab.records import TrainingDiverged, UserError
from diffusion_lab.sampling.embeddings import PromptEmbeddings
from diffusion_lab.sampling.noise import image_seed, initial_noise
from diffusion_lab.system.modes import eval_mode
from diffusion_lab.system.rng import preserved_rng

if TYPE_CHECKING:
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    from diffusion_lab.config.schema import Prompts
    from diffusion_lab.records import Pixels, Prompt, PromptSet

_DECODE_PIXELS = 8 * 512 * 512  # decoded at once: the VAE needs about 1 GB per 512-pixel image in float32

# Lu et al. 2022, "DPM-Solver++" (arXiv:2211.01095), algorithm 2 (2M). Explicit, so that neither a model's own
# scheduler config nor a library's new default changes the ruler. The noise schedule and the prediction type
# are the model's and come from its scheduler's config.
SOLVER: dict[str, Any] = {
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
    "solver_type": "midpoint",
    "lower_order_final": True,
    "euler_at_final": False,
    "final_sigmas_type": "zero",
    "timestep_spacing": "linspace",
    "thresholding": False,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
    "use_flow_sigmas": False,
    "use_dynamic_shifting": False,
}


@dataclass(frozen=True, slots=True)
class Planned:
    """One image to be made."""

    prompt: Prompt
    index: int  # which of the prompt's images
    seed: int  # of its noise


def plan(prompts: PromptSet, settings: Prompts) -> list[Planned]:
    """The images of one evaluation in their order: prompt by prompt, as many of each as settings ask for."""
    from diffusion_lab.data.prompts import images_per_prompt

    return [
        Planned(prompt, index, image_seed(prompt.text, index, settings.noise_seed))
        for prompt in prompts
        for index in range(images_per_prompt(settings, prompts))
    ]


def sampling_scheduler(pipe: StableDiffusionPipeline) -> DPMSolverMultistepScheduler:
    """Our solver on the model's noise schedule and prediction type; `pipe.scheduler` stays as it is."""
    from diffusers import DPMSolverMultistepScheduler

    scheduler: DPMSolverMultistepScheduler = DPMSolverMultistepScheduler.from_config(
        pipe.scheduler.config, **SOLVER
    )
    return scheduler


def sample(
    pipe: StableDiffusionPipeline,
    prompts: PromptSet,
    settings: Prompts,
    *,
    prompt_embeds: PromptEmbeddings | None = None,
    progress: Callable[[int], None] | None = None,
    resolution: int | None = None,
) -> list[Pixels]:
    """The images of `plan(prompts, settings)`, in that order: uint8 [resolution, resolution, 3] each.

    ``prompt_embeds``: the run's cache; None computes the embeddings anew. ``progress`` is called after every
    batch with the number of images in it. ``resolution``: pixels, by default the model's own; UserError if
    the VAE cannot make it. Guidance is Ho & Salimans 2022 (arXiv:2207.12598): e = e_neg + w (e_text -
    e_neg), with the negative prompt in the unconditional branch; at w <= 1 the branch is not computed, as in
    diffusers.
    """
    planned = plan(prompts, settings)
    return draw(
        pipe, planned, prompts.negative, settings,
        prompt_embeds=prompt_embeds, progress=progress, resolution=resolution,
    )  # fmt: skip


def draw(
    pipe: StableDiffusionPipeline,
    planned: Sequence[Planned],
    negative: str,
    settings: Prompts,
    *,
    prompt_embeds: PromptEmbeddings | None = None,
    progress: Callable[[int], None] | None = None,
    resolution: int | None = None,
) -> list[Pixels]:
    """As `sample`, of the named images alone."""
    shape = latent_shape(pipe, resolution)
    cache = PromptEmbeddings() if prompt_embeds is None else prompt_embeds
    guided = settings.guidance_scale > 1
    images: list[Pixels] = []
    with eval_mode(pipe.unet, pipe.vae, pipe.text_encoder), preserved_rng(), torch.inference_mode():
        texts = [item.prompt.text for item in planned]
        known = cache.encode(pipe, [negative, *texts] if guided else texts)
        unconditional, conditional = (known[:1], known[1:]) if guided else (None, known)
        for start in range(0, len(planned), settings.batch_size):
            batch = planned[start : start + settings.batch_size]
            noise = torch.stack(
                [initial_noise(item.prompt.text, item.index, settings.noise_seed, shape) for item in batch]
            )
            latents = denoise(
                pipe, noise, conditional[start : start + len(batch)], unconditional, settings.sampling_steps,
                settings.guidance_scale,
            )  # fmt: skip
            if not bool(latents.isfinite().all()):
                raise TrainingDiverged(
                    "the model draws images that are not finite: its weights have diverged"
                )
            images.extend(decode(pipe, latents))
            if progress is not None:
                progress(len(batch))
    return images


def denoise(
    pipe: StableDiffusionPipeline,
    noise: Tensor,
    conditional: Tensor,
    unconditional: Tensor | None,
    steps: int,
    guidance_scale: float,
) -> Tensor:
    """float32 [b, c, h, w], from noise of that shape, embeddings [b, tokens, d] and, for guidance, [1,
    tokens, d].
    """
    unet = pipe.unet
    scheduler = sampling_scheduler(pipe)  # a new one a batch: a multistep solver remembers its last steps
    scheduler.set_timesteps(steps, device=unet.device)
    scheduler.set_begin_index(0)  # otherwise it looks its index up, which makes the device wait
    latents: Tensor = noise.to(unet.device) * scheduler.init_noise_sigma
    context = conditional.to(unet.device)
    if unconditional is not None:
        # Both branches in one forward pass of 2b.
        context = torch.cat([unconditional.to(unet.device).expand_as(context), context])
    precision, dtype = _precision(unet)
    context = context.to(dtype)
    with precision:
        for t in scheduler.timesteps:
            both = latents if unconditional is None else torch.cat([latents, latents])
            both = scheduler.scale_model_input(both, t)
            prediction = unet(both.to(dtype), t, encoder_hidden_states=context, return_dict=False)[0].float()
            if unconditional is not None:
                without, with_text = prediction.chunk(2)
                prediction = without + guidance_scale * (with_text - without)
            latents = scheduler.step(prediction, t, latents, return_dict=False)[0]
    return latents


def decode(pipe: StableDiffusionPipeline, latents: Tensor) -> Iterator[Pixels]:
    """Scaled latents [b, c, h, w] -> one uint8 [height, width, 3] each, rounded as diffusers does."""
    vae = pipe.vae
    side = latents.shape[-1] * pipe.vae_scale_factor
    at_once = max(1, _DECODE_PIXELS // (side * side))
    for chunk in torch.split(latents, at_once):
        scaled = (chunk / vae.config.scaling_factor).to(vae.dtype)
        decoded = vae.decode(scaled, return_dict=False)[0].float()
        if not bool(decoded.isfinite().all()):  # float16 is too small for some VAEs, and uint8 makes it black
            raise UserError(
                f"model.precision: the VAE's images are not finite in {vae.dtype}; set model.precision=bf16 or fp32"
            )
        pixels = (decoded / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
        yield from pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def latent_shape(pipe: StableDiffusionPipeline, resolution: int | None) -> tuple[int, int, int]:
    """[channels, height, width] of one image's latents."""
    channels = int(pipe.unet.config.in_channels)
    if resolution is None:
        size = int(pipe.unet.config.sample_size)
        return channels, size, size
    factor = int(pipe.vae_scale_factor)
    if resolution <= 0 or resolution % factor:
        raise UserError(
            f"model.resolution is {resolution}: this model needs a positive multiple of {factor} pixels"
        )
    return channels, resolution // factor, resolution // factor


def _precision(unet: nn.Module) -> tuple[AbstractContextManager[Any], torch.dtype]:
    """How to run a network whose weights may be of two kinds: frozen ones in half precision, trained in
    float32.
    """
    kinds = {parameter.dtype for parameter in unet.parameters() if parameter.is_floating_point()}
    if len(kinds) == 1:
        return nullcontext(), kinds.pop()
    half = next(kind for kind in (torch.bfloat16, torch.float16, torch.float32) if kind in kinds)
    return torch.autocast(next(unet.parameters()).device.type, dtype=half), half
