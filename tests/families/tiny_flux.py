"""A FLUX.1 of diffusers' and transformers' own classes, a few hundred thousand random numbers in all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion_lab.families.flux import Flux

FLUX = Flux()
TEXT = "a photo of sks dog"
WORDS = ("▁a", "▁photo", "▁of", "▁dog", "▁sks", "▁in", "▁the", "▁snow", "▁red", "▁castle")


def t5_tokenizer() -> Any:
    """A Unigram of ten words and all letters."""
    from transformers import T5TokenizerFast

    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz"]
    entries = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    entries += [(word, -1.0) for word in WORDS] + [(letter, -4.0) for letter in letters]
    return T5TokenizerFast(vocab=entries, extra_ids=0, model_max_length=512)


def flux(folder: Path) -> Any:
    """Writes a model to `folder` and gives the plain pipeline, as `FluxPipeline.from_pretrained` reads it."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel

    from diffusion_lab.miniature import pretrain

    weights = Path(pretrain.__file__).parents[1] / "weights"
    tokenizer = CLIPTokenizer.from_pretrained(weights / "sd" / "tokenizer")
    t5 = t5_tokenizer()
    clip = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=77, projection_dim=32, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe = FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(
                shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256,
                max_image_seq_len=4096,
            ),
            vae=AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=(8, 8, 16, 16), layers_per_block=1, norm_num_groups=4, latent_channels=16,
                use_quant_conv=False, use_post_quant_conv=False, sample_size=64, scaling_factor=0.3611, shift_factor=0.1159,
            ),
            text_encoder=CLIPTextModel(clip),
            tokenizer=tokenizer,
            text_encoder_2=T5EncoderModel(
                T5Config(
                    vocab_size=len(t5), d_model=40, d_kv=8, d_ff=48, num_layers=2, num_heads=4,
                    feed_forward_proj="gated-gelu",
                )
            ),
            tokenizer_2=t5,
            transformer=FluxTransformer2DModel(
                in_channels=64, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=3,
                joint_attention_dim=40, pooled_projection_dim=32, guidance_embeds=True, axes_dims_rope=(4, 6, 6),
            ),
        )  # fmt: skip
    pipe.save_pretrained(folder)
    return load(folder)


def load(folder: Path) -> Any:
    """A fresh pipeline from the folder."""
    from diffusers import FluxPipeline

    pipe = FluxPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def noise(size: tuple[int, int], n: int = 1) -> Tensor:
    shape = (n, 16, size[0] // 8, size[1] // 8)
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def draw(pipe: Any, size: tuple[int, int], text: str = TEXT, steps: int = 4, scale: float = 3.5) -> Tensor:
    """Through the family: [1, 3, h, w] in 0..1."""
    latents = noise(size).to(pipe.transformer.dtype)
    conditioning = {
        **FLUX.encode_prompts(pipe, [text]), **FLUX.sampling_extras(pipe, 1, size, scale)
    }  # fmt: skip
    solver = FLUX.solver(pipe, steps, size)
    for t in solver.timesteps:
        answer = FLUX.predict(pipe, latents, t, conditioning)
        latents = solver.step(answer, t, latents, return_dict=False)[0]
    return (FLUX.decode(pipe, latents) / 2 + 0.5).clamp(0, 1)


def plain(pipe: Any, size: tuple[int, int], text: str = TEXT, steps: int = 4, scale: float = 3.5) -> Tensor:
    """Through the pipeline itself, from the same noise."""
    packed = pipe._pack_latents(noise(size), 1, 16, size[0] // 8, size[1] // 8)
    found: Tensor = pipe(
        text, height=size[0], width=size[1], num_inference_steps=steps, guidance_scale=scale, latents=packed,
        output_type="pt",
    ).images  # fmt: skip
    return found
