"""Stable Diffusion 3 and 3.5, medium and large: a transformer with joint attention of image and text.

Esser et al. 2024 (arXiv:2403.03206). The text tokens are those of two CLIPs, concatenated along the channels,
followed by T5's; SD 3.5 medium has a second attention over the patches alone (attn2) in its first blocks.
Noise and targets are those of a rectified flow (`flow.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from diffusion_lab.families import clip, sd3_names, sd3_work, vae
from diffusion_lab.families.flow import Flow, euler, flow
from diffusion_lab.records import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from diffusion_lab.families.family import (
        Conditioning,
        Config,
        Framing,
        Tokens,
        Trainable,
        Vocabulary,
        Work,
    )

# The pipeline's default. diffusers' training script uses 77: the model would be trained with another text
# length than it is sampled with.
T5_TOKENS = sd3_work.T5_TOKENS
ATTENTION = tuple(f"attn.{layer}" for layer in ("to_q", "to_k", "to_v", "to_out.0"))
TEXT_ATTENTION = tuple(f"attn.{layer}" for layer in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"))
SECOND_ATTENTION = tuple(f"attn2.{layer}" for layer in ("to_q", "to_k", "to_v", "to_out.0"))
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")


class StableDiffusion3:
    """The `Family` of Stable Diffusion 3 and 3.5.

    The figures of the published model are those of SD 3.5 medium.

    Conditioning of b texts:

    `hidden`: both CLIPs' penultimate hidden states concatenated and zero-padded, then T5's,
    [b, 77 + 256, 4096];

    `pooled`: both CLIPs' projected vectors [b, 768 + 1280].
    """

    name = "sd3"
    title = "Stable Diffusion 3"
    pipeline = "StableDiffusion3Pipeline"
    denoiser = "transformer"
    text_encoders: tuple[str, ...] = ("text_encoder", "text_encoder_2", "text_encoder_3")
    tokenizers: tuple[str, ...] = ("tokenizer", "tokenizer_2", "tokenizer_3")
    t5: str | None = "text_encoder_3"
    # T5 may be omitted; the pipeline replaces its tokens by zeros.
    optional: frozenset[str] = frozenset({"text_encoder_3", "tokenizer_3"})
    trainable: frozenset[Trainable] = frozenset({"network", "adapter"})
    why_not: Mapping[Trainable, str] = {
        "word": "diffusers has no loader for learned words of Stable Diffusion 3",
        "hypernetwork": "hypernetworks stand before the keys and values of cross-attention, and Stable Diffusion 3 "
        "has joint attention only",
    }
    lora_targets: tuple[str, ...] = (*ATTENTION, *TEXT_ATTENTION, *SECOND_ATTENTION)
    small_lora_targets: tuple[str, ...] = (*lora_targets, *FEED_FORWARD)
    layer_hint = (
        "the attention has attn.to_q, attn.to_k, attn.to_v, attn.to_out.0 of the picture, attn.add_q_proj, "
        "attn.add_k_proj, attn.add_v_proj, attn.to_add_out of the text, and in SD 3.5 medium attn2.to_q and so on"
    )
    lora_text_encoders: tuple[str, ...] = ("text_encoder", "text_encoder_2")
    vocabularies: tuple[Vocabulary, ...] = ()
    guidance: Literal["classifier_free", "embedded"] = "classifier_free"
    # SD 3.5 medium's model card. SD 3.5 large's: 28 steps at 3.5; the pipeline's own: 28 at 7.
    sampling_steps = 40
    guidance_scale = 4.5
    sampler = "Euler"
    single_file_config = "stabilityai/stable-diffusion-3.5-medium"
    single_file_parts: Mapping[str, tuple[str, ...]] = {
        "transformer": ("model.diffusion_model.joint_blocks.", "joint_blocks."), "vae": ("first_stage_model.",),
        "text_encoder": ("text_encoders.clip_l.",), "text_encoder_2": ("text_encoders.clip_g.",),
        "text_encoder_3": ("text_encoders.t5xxl.",),
    }  # fmt: skip
    # As published: text encoders in separate files.
    single_file_separate: frozenset[str] = frozenset({"vae", *text_encoders})
    # As in the files: the transformer's contain 2,243,171,520 parameters and a buffer of 384^2 * 1536
    # positions.
    parameters: Mapping[str, float] = {
        "transformer": 2_469_663_936,
        "vae": 83_819_683,
        "text_encoder": 123_650_304,
        "text_encoder_2": 694_659_840,
        "text_encoder_3": 4_762_310_656,
    }

    configs: Mapping[str, Config] = {
        "transformer": {
            "patch_size": 2, "num_layers": 24, "num_attention_heads": 24, "attention_head_dim": 64,
            "dual_attention_layers": list(range(13)), "joint_attention_dim": 4096, "caption_projection_dim": 1536,
            "pooled_projection_dim": 2048, "in_channels": 16, "out_channels": 16, "sample_size": 128,
        },
        "vae": {"block_out_channels": [128, 256, 512, 512]}, "text_encoder": {"hidden_size": 768},
        "text_encoder_2": {"hidden_size": 1280},
    }  # fmt: skip
    loads_half = True
    min_snr = False
    saved = sd3_work.SAVED
    checkpointed = 0.09
    t5_tokenizers: frozenset[str] = frozenset({"tokenizer_3"})

    def check_configs(self, configs: Mapping[str, Config]) -> str | None:
        """Sizes missing in a config are not compared."""
        transformer, coder = configs.get("transformer", {}), configs.get("vae", {})
        kind = transformer.get("_class_name")
        if kind != "SD3Transformer2DModel":
            return f"its transformer is {kind or 'missing'}, not an SD3Transformer2DModel"
        scheduler = str(configs.get("scheduler", {}).get("_class_name"))
        if not scheduler.startswith("FlowMatch"):
            return f"its scheduler is {scheduler}, not a FlowMatchEulerDiscreteScheduler"
        channels = transformer.get("in_channels", 16)
        if (latents := coder.get("latent_channels", channels)) != channels:
            return (
                f"its transformer has {channels} input channels for {latents} latent ones: not text-to-image"
            )
        first, second, third = (configs.get(part, {}) for part in self.text_encoders)
        width, pooled = transformer.get("joint_attention_dim"), transformer.get("pooled_projection_dim")
        if (t5 := third.get("d_model", width)) != width:
            return f"its T5 has {t5} channels and its transformer reads {width}"
        if "projection_dim" in first and "projection_dim" in second:
            both = first["projection_dim"] + second["projection_dim"]
            if both != pooled:
                return f"its CLIPs pool to {both} channels and its transformer reads {pooled}"
        return None

    def resolution(self, configs: Mapping[str, Config]) -> int:
        return int(configs["transformer"]["sample_size"]) * vae.pixels_per_latent(configs["vae"])

    def multiple(self, configs: Mapping[str, Config]) -> int:
        return vae.pixels_per_latent(configs["vae"]) * int(configs["transformer"]["patch_size"])

    def work(self, configs: Mapping[str, Config], side: int) -> Work:
        return sd3_work.work(configs["transformer"], side)

    # --- loading ---

    def part_classes(self) -> dict[str, type[Any]]:
        from diffusers import AutoencoderKL, SD3Transformer2DModel
        from transformers import CLIPTextModelWithProjection, T5EncoderModel

        return {
            "transformer": SD3Transformer2DModel,
            "vae": AutoencoderKL,
            "text_encoder": CLIPTextModelWithProjection,
            "text_encoder_2": CLIPTextModelWithProjection,
            "text_encoder_3": T5EncoderModel,
        }

    def pipeline_class(self) -> type[Any]:
        from diffusers import StableDiffusion3Pipeline

        return StableDiffusion3Pipeline  # type: ignore[no-any-return]

    def networks(self, pipe: Any) -> dict[str, nn.Module]:
        parts = ("transformer", "vae", *self.text_encoders)
        return {part: found for part in parts if (found := getattr(pipe, part, None)) is not None}

    # --- texts ---

    def tokenize(self, pipe: Any, text: str) -> Tokens:
        """With T5, the text is cut to CLIP's 77 tokens, as in the pipeline; without, 77 is the limit."""
        most = int(pipe.tokenizer_max_length)
        limits = {"tokenizer": most, "tokenizer_2": most}
        if pipe.text_encoder_3 is not None:
            limits["tokenizer_3"] = most = T5_TOKENS
        for part in (part for part, limit in limits.items() if limit == most):
            given = len(getattr(pipe, part)(text, truncation=False, verbose=False).input_ids)
            if given > most:
                raise ValueError(f"{text!r} has {given} tokens, the model reads {most}")
        return {
            part: getattr(pipe, part)(
                text, padding="max_length", max_length=limit, truncation=True, return_tensors="pt"
            ).input_ids
            for part, limit in limits.items()
        }

    def encode(self, pipe: Any, tokens: Tokens) -> Conditioning:
        import torch
        import torch.nn.functional as F

        device, dtype = pipe.text_encoder.device, pipe.text_encoder.dtype
        parts = (("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2"))
        found = [clip.penultimate(getattr(pipe, encoder), tokens[ids]) for encoder, ids in parts]
        hidden = torch.cat([states.to(device, dtype) for states, _ in found], dim=-1)
        if pipe.text_encoder_3 is None:
            width = int(pipe.transformer.config.joint_attention_dim)
            t5 = torch.zeros(len(hidden), T5_TOKENS, width, device=device, dtype=dtype)
        else:
            t5 = pipe.text_encoder_3(tokens["tokenizer_3"].to(pipe.text_encoder_3.device))[0].to(device)
        hidden = F.pad(hidden, (0, t5.shape[-1] - hidden.shape[-1]))
        return {
            "hidden": torch.cat([hidden, t5], dim=-2),
            "pooled": torch.cat([vector.to(device) for _, vector in found], dim=-1),
        }

    def encode_prompts(self, pipe: Any, texts: Sequence[str]) -> Conditioning:
        hidden, _, pooled, _ = pipe.encode_prompt(
            prompt=list(texts),
            prompt_2=None,
            prompt_3=None,
            device=pipe.text_encoder.device,
            do_classifier_free_guidance=False,
            max_sequence_length=T5_TOKENS,
        )
        return {"hidden": hidden, "pooled": pooled}

    def unconditional(self, pipe: Any, text: str, encoded: Conditioning) -> Conditioning:
        """Without a negative prompt, the pipeline encodes the empty text."""
        return encoded

    # --- additional conditioning ---

    def training_extras(self, pipe: Any, framings: Sequence[Framing]) -> Conditioning:
        return {}

    def sampling_extras(
        self, pipe: Any, n: int, size: tuple[int, int], guidance_scale: float
    ) -> Conditioning:
        return {}

    # --- images and latents ---

    def posterior(self, pipe: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        return vae.posterior(pipe.vae, pixels)

    def factors(self, pipe: Any) -> tuple[float, float]:
        return vae.factors(pipe.vae)

    def decode(self, pipe: Any, latents: Tensor) -> Tensor:
        """In the VAE's own dtype, like the pipeline, which ignores `force_upcast`."""
        return vae.decode(pipe.vae, latents)

    def latent_shape(self, pipe: Any, size: tuple[int, int] | None) -> tuple[int, int, int]:
        """UserError for sizes that the transformer does not support."""
        config = pipe.transformer.config
        if size is None:
            return int(config.in_channels), int(config.sample_size), int(config.sample_size)
        factor, patch = int(pipe.vae_scale_factor), int(config.patch_size)
        most = int(config.pos_embed_max_size or 0) * patch * factor  # 0: positions are computed for any size
        for pixels in size:
            if pixels <= 0 or pixels % (factor * patch) or (most and pixels > most):
                limit = f", at most {most}" if most else ""
                raise UserError(
                    f"model.resolution is {pixels}: this model needs a positive multiple of {factor * patch} "
                    f"pixels{limit}"
                )
        return int(config.in_channels), size[0] // factor, size[1] // factor

    # --- denoising ---

    def _patches(self, pipe: Any, size: tuple[int, int]) -> int:
        edge = int(pipe.vae_scale_factor) * int(pipe.transformer.config.patch_size)
        return (size[0] // edge) * (size[1] // edge)

    def process(self, pipe: Any, size: tuple[int, int]) -> Flow:
        return flow(pipe.scheduler.config, self._patches(pipe, size))

    def predict(self, pipe: Any, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The velocity; timesteps in 0..1000 as floats, not rounded to the table of a scheduler."""
        answer: Tensor = pipe.transformer(
            hidden_states=noisy,
            timestep=timesteps.to(noisy.device).expand(len(noisy)),
            encoder_hidden_states=conditioning["hidden"].to(noisy.device, noisy.dtype),
            pooled_projections=conditioning["pooled"].to(noisy.device, noisy.dtype),
            return_dict=False,
        )[0]
        return answer

    def solver(self, pipe: Any, steps: int, size: tuple[int, int]) -> Any:
        return euler(pipe.scheduler.config, steps, self._patches(pipe, size), pipe.transformer.device)

    # --- files ---

    def kohya(self, weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Tensor] | None:
        """OneTrainer's names, which ComfyUI also reads: `lora_transformer_...`, `lora_te1_...`.

        ComfyUI also reads diffusers' own file of Stable Diffusion 3, but ignores alpha in its header and uses
        alpha = rank. kohya's names (`lora_unet_joint_blocks_...`) have queries, keys and values in one layer,
        and diffusers silently ignores them. None for DoRA: tools expect its magnitudes in different shapes.
        """
        return sd3_names.renamed(weights, settings)

    def layer_names(self, name: str) -> tuple[str, ...]:
        """Also accepts Stability AI's names, which kohya's scripts write."""
        return sd3_names.held_by(name)
