"""Stable Diffusion 1.x and 2.x (Rombach et al. 2022, arXiv:2112.10752): a U-Net and one CLIP text encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from diffusion_lab.families import clip, ddpm, kohya, unet, vae
from diffusion_lab.families.family import Config, Framing, Saved, Trainable, Vocabulary, Work

if TYPE_CHECKING:
    from torch import Tensor, nn

    from diffusion_lab.families.family import Conditioning, Tokens


class StableDiffusion:
    """Conditioning: `hidden`, the text encoder's last hidden states [b, tokens, d]."""

    name = "sd"
    title = "Stable Diffusion 1.x and 2.x"
    pipeline = "StableDiffusionPipeline"
    denoiser = "unet"
    text_encoders: tuple[str, ...] = ("text_encoder",)
    tokenizers: tuple[str, ...] = ("tokenizer",)
    t5: str | None = None
    optional: frozenset[str] = frozenset()
    trainable: frozenset[Trainable] = frozenset({"network", "adapter", "word", "hypernetwork"})
    why_not: Mapping[Trainable, str] = {}
    lora_targets: tuple[str, ...] = unet.ATTENTION
    small_lora_targets: tuple[str, ...] = (*unet.ATTENTION, *unet.FEED_FORWARD, *unet.CONVOLUTIONS)
    layer_hint = unet.LAYER_HINT
    lora_text_encoders: tuple[str, ...] = ("text_encoder",)
    vocabularies: tuple[Vocabulary, ...] = (Vocabulary("tokenizer", "text_encoder", ""),)
    guidance: Literal["classifier_free", "embedded"] = "classifier_free"
    sampling_steps = 50
    guidance_scale = 7.5
    sampler = "DPM++ 2M"
    # The source of the 1.x configs: diffusers' own choice for such a file.
    single_file_config = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    single_file_parts: Mapping[str, tuple[str, ...]] = {
        "unet": ("model.diffusion_model.",), "vae": ("first_stage_model.",), "text_encoder": ("cond_stage_model.",),
    }  # fmt: skip
    single_file_separate: frozenset[str] = frozenset()
    parameters: Mapping[str, float] = {
        "unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480,
    }  # fmt: skip

    configs: Mapping[str, Config] = {
        "unet": {
            "block_out_channels": [320, 640, 1280, 1280], "layers_per_block": 2, "cross_attention_dim": 768,
            "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
            "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3, "sample_size": 64,
        },
        "vae": {"block_out_channels": [128, 256, 512, 512]}, "text_encoder": {"hidden_size": 768},
    }  # fmt: skip
    loads_half = False
    min_snr = True
    saved: Mapping[tuple[bool, bool], Saved] = {
        (False, True): Saved(13.3, 125.0), (True, True): Saved(11.8, 83.0),
        (False, False): Saved(13.3, 89.0), (True, False): Saved(11.8, 61.0),
    }  # fmt: skip
    checkpointed = 0.25
    t5_tokenizers: frozenset[str] = frozenset()

    def check_configs(self, configs: Mapping[str, Config]) -> str | None:
        parts = {part: configs.get(part, {}) for part in ("unet", "vae", "scheduler")}
        channels, latents = parts["unet"].get("in_channels", 4), parts["vae"].get("latent_channels", 4)
        added = parts["unet"].get("addition_embed_type") is not None
        if channels != latents or added:
            return (
                f"not a text-to-image Stable Diffusion 1.x or 2.x ({channels} input channels for {latents} latent "
                f"ones{', additional embeddings' if added else ''})"
            )
        return ddpm.unsupported(parts["scheduler"])

    def resolution(self, configs: Mapping[str, Config]) -> int:
        return unet.resolution(configs)

    def multiple(self, configs: Mapping[str, Config]) -> int:
        return unet.multiple(configs)

    def work(self, configs: Mapping[str, Config], side: int) -> Work:
        return unet.work(configs["unet"], side)

    # --- loading ---
    def part_classes(self) -> dict[str, type[Any]]:
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import CLIPTextModel

        return {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}

    def pipeline_class(self) -> type[Any]:
        from diffusers import StableDiffusionPipeline

        return StableDiffusionPipeline  # type: ignore[no-any-return]

    # --- networks ---
    def networks(self, pipe: Any) -> dict[str, nn.Module]:
        return {part: getattr(pipe, part) for part in ("unet", "vae", *self.text_encoders)}

    # --- texts ---
    def tokenize(self, pipe: Any, text: str) -> Tokens:
        return {"tokenizer": clip.tokenize(pipe.tokenizer, text)}

    def encode(self, pipe: Any, tokens: Tokens) -> Conditioning:
        encoder = pipe.text_encoder
        return {"hidden": encoder(tokens["tokenizer"].to(encoder.device))[0]}

    def encode_prompts(self, pipe: Any, texts: Sequence[str]) -> Conditioning:
        hidden, _ = pipe.encode_prompt(
            list(texts),
            device=pipe.text_encoder.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )
        return {"hidden": hidden}

    def unconditional(self, pipe: Any, text: str, encoded: Conditioning) -> Conditioning:
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
        return vae.decode(pipe.vae, latents)

    def latent_shape(self, pipe: Any, size: tuple[int, int] | None) -> tuple[int, int, int]:
        return unet.latent_shape(pipe, size)

    # --- denoising ---
    def process(self, pipe: Any, size: tuple[int, int]) -> ddpm.Ddpm:
        return ddpm.process(pipe)

    def predict(self, pipe: Any, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        found: Tensor = pipe.unet(noisy, timesteps, conditioning["hidden"], return_dict=False)[0]
        return found

    def solver(self, pipe: Any, steps: int, size: tuple[int, int]) -> Any:
        return ddpm.solver(pipe, steps)

    # --- files ---
    def kohya(self, weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Tensor] | None:
        """`lora_te_` for the text encoder, as read by tools for Stable Diffusion 1.x and 2.x."""
        found = kohya.renamed(weights, settings)
        return found and {key.replace(kohya.FIRST, "lora_te_", 1): value for key, value in found.items()}

    def layer_names(self, name: str) -> tuple[str, ...]:
        """Also accepts the original code's names, which LyCORIS writes for some models."""
        return (kohya.diffusers_name(name),)
