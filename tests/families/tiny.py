"""Every family at toy size: real classes of diffusers and transformers, random weights, float32, on the CPU.

`FAMILY[name](folder)` writes an ordinary diffusers folder and gives it back as plain diffusers loads it. `draw` samples
one image through the family's own methods, step by step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from tests.conftest import build_tiny_pipe, tiny_tokenizer
from tests.families.tiny_flux import flux
from tests.families.tiny_sd3 import sd3

SIDE = 64  # pixels


def sd(folder: Path, prediction_type: str = "epsilon") -> Any:
    from diffusers import StableDiffusionPipeline

    return _saved(build_tiny_pipe(prediction_type), StableDiffusionPipeline, folder)


def sdxl(folder: Path, prediction_type: str = "epsilon", **changes: Any) -> Any:
    """`changes`: of the pipeline's own config. The blocks are the published model's; widths and depths are not."""
    from diffusers import (
        AutoencoderKL,
        EulerDiscreteScheduler,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizers = [tiny_tokenizer(), tiny_tokenizer()]
    tokenizers[1].pad_token = "!"  # as the published model's second one

    def text(hidden: int) -> CLIPTextConfig:
        return CLIPTextConfig(
            vocab_size=len(tokenizers[0]), hidden_size=hidden, projection_dim=48, intermediate_size=64,
            num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=77,
            bos_token_id=0, eos_token_id=2,  # as published: the pooled position is that of the highest number
        )  # fmt: skip

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(32, 64, 96),
            layers_per_block=2,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 1, 2),
            attention_head_dim=(2, 4, 6),
            cross_attention_dim=24 + 40,
            use_linear_projection=True,
            norm_num_groups=8,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 48,
        )
        vae = AutoencoderKL(
            sample_size=SIDE,
            block_out_channels=(8, 16, 16),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            latent_channels=4,
            norm_num_groups=4,
            scaling_factor=0.4,
        )
        encoders = CLIPTextModel(text(24)), CLIPTextModelWithProjection(text(40))
    pipe = StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=encoders[0],
        text_encoder_2=encoders[1],
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        unet=unet,
        scheduler=EulerDiscreteScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            steps_offset=1,
            timestep_spacing="leading",
            prediction_type=prediction_type,
        ),
        **changes,
    )
    return _saved(pipe, StableDiffusionXLPipeline, folder)


FAMILY: dict[str, Callable[[Path], Any]] = {"sd": sd, "sdxl": sdxl, "sd3": sd3, "flux": flux}


def _saved(pipe: Any, kind: Any, folder: Path) -> Any:
    pipe.save_pretrained(folder, safe_serialization=True)
    return reload(kind, folder)


def reload(kind: Any, folder: Path) -> Any:
    pipe = kind.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def draw(
    family: Any,
    pipe: Any,
    prompt: str,
    *,
    negative: str = "",
    scale: float = 4.0,
    steps: int = 3,
    seed: int = 1,
) -> torch.Tensor:
    """float32 [1, 3, SIDE, SIDE] in about -1..1."""
    size = (SIDE, SIDE)
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn((1, *family.latent_shape(pipe, size)), generator=generator)
    solver = family.solver(pipe, steps, size)
    latents = latents * getattr(solver, "init_noise_sigma", 1.0)
    guided = scale > 1 and family.guidance == "classifier_free"
    conditioning = family.encode_prompts(pipe, [prompt])
    if guided:
        conditioning = _cat(
            family.unconditional(pipe, negative, family.encode_prompts(pipe, [negative])), conditioning
        )
    n = 2 if guided else 1
    conditioning = {**conditioning, **family.sampling_extras(pipe, n, size, scale)}
    for t in solver.timesteps:
        given = torch.cat([latents] * n)
        if hasattr(solver, "scale_model_input"):
            given = solver.scale_model_input(given, t)
        prediction = family.predict(pipe, given, t, conditioning)
        if guided:
            without, with_text = prediction.chunk(2)
            prediction = without + scale * (with_text - without)
        latents = solver.step(prediction, t, latents, return_dict=False)[0]
    decoded: torch.Tensor = family.decode(pipe, latents)
    return decoded


def _cat(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    assert first.keys() == second.keys()
    return {name: torch.cat([first[name], second[name]]) for name in first}


def plain(
    family: Any, pipe: Any, prompt: str, *, scale: float = 4.0, steps: int = 3, seed: int = 1, **more: Any
) -> torch.Tensor:
    """The same through `pipe(prompt)`; DDPM's families with our solver in the scheduler's place."""
    kept = pipe.scheduler
    if family.name in ("sd", "sdxl"):
        pipe.scheduler = family.solver(pipe, steps, (SIDE, SIDE))
    try:
        found: torch.Tensor = pipe(
            prompt, num_inference_steps=steps, guidance_scale=scale, height=SIDE, width=SIDE, output_type="pt",
            generator=torch.Generator().manual_seed(seed), **more,
        ).images  # fmt: skip
    finally:
        pipe.scheduler = kept
    return found * 2 - 1
