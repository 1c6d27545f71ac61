"""A real Stable Diffusion 3 of toy size with random weights: 64 pixels, latents 16x16x16, about 500,000 parameters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

# Width of the transformer, of the text it reads and of its pooled text: all different, so that none passes for another.
WIDTH, TEXT_WIDTH, FIRST_POOLED, SECOND_POOLED = 48, 64, 16, 24
TRANSFORMER: dict[str, Any] = {
    "sample_size": 16,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "num_layers": 3,
    "attention_head_dim": 12,
    "num_attention_heads": 4,
    "joint_attention_dim": TEXT_WIDTH,
    "caption_projection_dim": WIDTH,
    "pooled_projection_dim": FIRST_POOLED + SECOND_POOLED,
    "pos_embed_max_size": 24,
    "dual_attention_layers": (0, 1),  # as SD 3.5 medium: in the first blocks
    "qk_norm": "rms_norm",
}


def clip_tokenizer() -> Any:
    """The miniature's."""
    from transformers import CLIPTokenizer

    from diffusion_lab import miniature

    return CLIPTokenizer.from_pretrained(Path(miniature.__file__).parent / "weights" / "sd" / "tokenizer")


def t5_tokenizer() -> Any:
    """A Unigram over letters and a few words, with T5's special tokens."""
    from transformers import T5TokenizerFast

    words = ["▁a", "▁photo", "▁of", "▁dog", "▁man", "▁in", "▁the", "▁snow"]
    vocabulary = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("▁", -4.0),
        *((word, -3.0) for word in words),
    ]
    vocabulary += [(chr(letter), -6.0) for letter in range(33, 127)]
    return T5TokenizerFast(vocab=vocabulary, extra_ids=0, model_max_length=256)


def build(*, t5: bool = True, dual: bool = True, shift: float = 3.0, seed: int = 0) -> Any:
    """A `StableDiffusion3Pipeline`, float32, on the CPU, in eval mode. `t5` false: without the third text encoder."""
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

    tokenizer, third = clip_tokenizer(), t5_tokenizer()

    def clip(width: int, pooled: int) -> Any:
        config = CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=3,
            num_attention_heads=2,
            max_position_embeddings=77,
            projection_dim=pooled,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        return CLIPTextModelWithProjection(config).eval()

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer = SD3Transformer2DModel(
            **{**TRANSFORMER, "dual_attention_layers": TRANSFORMER["dual_attention_layers"] if dual else ()}
        )
        vae = AutoencoderKL(
            sample_size=64,
            block_out_channels=(8, 8, 16),
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            latent_channels=16,
            norm_num_groups=4,
            use_quant_conv=False,
            use_post_quant_conv=False,
            scaling_factor=0.75,  # not the usual 1.5305 and 0.0609: code that hard-codes them fails here
            shift_factor=0.25,
        )
        first, second = clip(16, FIRST_POOLED), clip(20, SECOND_POOLED)
        text = T5EncoderModel(
            T5Config(
                vocab_size=len(third),
                d_model=TEXT_WIDTH,
                d_kv=8,
                d_ff=64,
                num_layers=2,
                num_heads=4,
                feed_forward_proj="gated-gelu",
                pad_token_id=0,
                eos_token_id=1,
            )
        )
    pipe = StableDiffusion3Pipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
        vae=vae.eval(),
        text_encoder=first,
        tokenizer=tokenizer,
        text_encoder_2=second,
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=text.eval() if t5 else None,
        tokenizer_3=third if t5 else None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load(folder: Path) -> Any:
    """The folder as anybody would load it: plain diffusers."""
    from diffusers import StableDiffusion3Pipeline

    # from_pretrained wants to be told of a part that model_index.json names as null: it is not optional there.
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    missing = {part: None for part in ("text_encoder_3", "tokenizer_3") if index[part][0] is None}
    pipe = StableDiffusion3Pipeline.from_pretrained(folder, local_files_only=True, **missing)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sd3(folder: Path, **options: Any) -> Any:
    """`build(**options)`, written to `folder` with safetensors and loaded again by plain diffusers."""
    build(**options).save_pretrained(folder, safe_serialization=True)
    return load(folder)


# --- one image of the plain pipeline ---------------------------------------------------------------------

STEPS, GUIDANCE = 4, 5.0
DOG, MAN = "a photo of a dog in the snow", "the man"


def noise(n: int = 1, seed: int = 0) -> torch.Tensor:
    """float32 [n, 16, 16, 16]."""
    return torch.randn(n, 16, 16, 16, generator=torch.Generator().manual_seed(seed))


def plain(pipe: Any, text: str = DOG, **more: Any) -> torch.Tensor:
    """Its latents, from `noise()`."""
    settings = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "latent", **more}
    found: torch.Tensor = pipe(text, latents=noise(), **settings).images
    return found
