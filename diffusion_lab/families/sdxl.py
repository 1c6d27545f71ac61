"""Stable Diffusion XL (Podell et al. 2023, arXiv:2307.01952): a U-Net with two CLIP text encoders.

The base model. Refiner, inpainting, guidance-distilled and EDM variants are rejected: their predictions or
inputs are different.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from diffusion_lab.families import clip, ddpm, kohya, unet, vae
from diffusion_lab.families.family import Config, Framing, Saved, Trainable, Vocabulary, Work

if TYPE_CHECKING:
    from torch import Tensor, nn

    from diffusion_lab.families.family import Conditioning, Tokens

TIME_IDS = 6  # original height, width; crop top, left; target height, width


class StableDiffusionXL:
    """Conditioning of b texts or images:

    `hidden`: both text encoders' penultimate hidden states, concatenated, [b, tokens, d1 + d2];
    `pooled`: the second one's projected vector [b, p];
    `time_ids`: int64 [b, 6], in pixels; half precision would round them, so they must not be cast.
    """

    name = "sdxl"
    title = "Stable Diffusion XL"
    pipeline = "StableDiffusionXLPipeline"
    denoiser = "unet"
    text_encoders: tuple[str, ...] = ("text_encoder", "text_encoder_2")
    tokenizers: tuple[str, ...] = ("tokenizer", "tokenizer_2")
    t5: str | None = None
    optional: frozenset[str] = frozenset()
    trainable: frozenset[Trainable] = frozenset({"network", "adapter", "word"})
    why_not: Mapping[Trainable, str] = {
        "hypernetwork": "web UIs read hypernetworks for Stable Diffusion 1.x and 2.x only",
    }
    lora_targets: tuple[str, ...] = unet.ATTENTION
    small_lora_targets: tuple[str, ...] = (*unet.ATTENTION, *unet.FEED_FORWARD, *unet.CONVOLUTIONS)
    layer_hint = unet.LAYER_HINT
    lora_text_encoders: tuple[str, ...] = ("text_encoder", "text_encoder_2")
    # Key prefixes of the single-file format of ComfyUI and A1111's web UI.
    vocabularies: tuple[Vocabulary, ...] = (
        Vocabulary("tokenizer", "text_encoder", "clip_l"),
        Vocabulary("tokenizer_2", "text_encoder_2", "clip_g"),
    )
    guidance: Literal["classifier_free", "embedded"] = "classifier_free"
    sampling_steps = 50
    guidance_scale = 5.0
    sampler = "DPM++ 2M"
    single_file_config = "stabilityai/stable-diffusion-xl-base-1.0"
    single_file_parts: Mapping[str, tuple[str, ...]] = {
        "unet": ("model.diffusion_model.",), "vae": ("first_stage_model.",),
        "text_encoder": ("conditioner.embedders.0.",), "text_encoder_2": ("conditioner.embedders.1.",),
    }  # fmt: skip
    single_file_separate: frozenset[str] = frozenset()
    parameters: Mapping[str, float] = {
        "unet": 2_567_463_684, "vae": 83_653_863, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840,
    }  # fmt: skip

    configs: Mapping[str, Config] = {
        "unet": {
            "block_out_channels": [320, 640, 1280], "layers_per_block": 2, "cross_attention_dim": 2048,
            "transformer_layers_per_block": [1, 2, 10], "addition_embed_type": "text_time",
            "projection_class_embeddings_input_dim": 2816,
            "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2,
            "up_block_types": ["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"], "sample_size": 128,
        },
        "vae": {"block_out_channels": [128, 256, 512, 512]},
        "text_encoder": {"hidden_size": 768}, "text_encoder_2": {"hidden_size": 1280},
    }  # fmt: skip
    loads_half = False
    min_snr = True
    saved: Mapping[tuple[bool, bool], Saved] = {
        (False, True): Saved(13.3, 115.0), (True, True): Saved(11.8, 68.0),
        (False, False): Saved(13.3, 90.0), (True, False): Saved(11.8, 59.0),
    }  # fmt: skip
    checkpointed = 0.11
    t5_tokenizers: frozenset[str] = frozenset()

    def check_configs(self, configs: Mapping[str, Config]) -> str | None:
        """`configs` may include `model_index`."""
        network, coder = configs.get("unet", {}), configs.get("vae", {})
        first, second = (configs.get(part, {}) for part in self.text_encoders)
        channels, latents = network.get("in_channels", 4), coder.get("latent_channels", 4)
        if channels != latents:
            return (
                f"not a text-to-image Stable Diffusion XL ({channels} input channels for {latents} latent ones: "
                "an inpainting or editing model)"
            )
        if network.get("addition_embed_type") != "text_time":
            return "not a Stable Diffusion XL: its U-Net is not given sizes and a pooled text (text_time)"
        width, pooled = network.get("addition_time_embed_dim"), second.get("projection_dim")
        given = network.get("projection_class_embeddings_input_dim")
        if configs.get("model_index", {}).get("requires_aesthetics_score") or (
            width and pooled and given and given != TIME_IDS * width + pooled
        ):
            return "not the base model of Stable Diffusion XL: its U-Net is not given six sizes (a refiner's has five)"
        widths = [text["hidden_size"] for text in (first, second) if "hidden_size" in text]
        reads = network.get("cross_attention_dim")
        if len(widths) == 2 and reads is not None and sum(widths) != reads:
            return f"its U-Net reads texts of width {reads}, and its text encoders give {widths[0]} + {widths[1]}"
        if network.get("time_cond_proj_dim") is not None:
            return "a distilled model, which is given the guidance scale (time_cond_proj_dim): use its base model"
        if coder.get("latents_mean") is not None or coder.get("latents_std") is not None:
            return "its VAE shifts each channel of its latents (latents_mean, latents_std), which is not supported"
        return ddpm.unsupported(configs.get("scheduler", {}))

    def resolution(self, configs: Mapping[str, Config]) -> int:
        return unet.resolution(configs)

    def multiple(self, configs: Mapping[str, Config]) -> int:
        return unet.multiple(configs)

    def work(self, configs: Mapping[str, Config], side: int) -> Work:
        return unet.work(configs["unet"], side)

    # --- loading ---
    def part_classes(self) -> dict[str, type[Any]]:
        from diffusers import AutoencoderKL, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTextModelWithProjection

        return {
            "unet": UNet2DConditionModel,
            "vae": AutoencoderKL,
            "text_encoder": CLIPTextModel,
            "text_encoder_2": CLIPTextModelWithProjection,
        }

    def pipeline_class(self) -> type[Any]:
        from diffusers import StableDiffusionXLPipeline

        return StableDiffusionXLPipeline  # type: ignore[no-any-return]

    # --- networks ---
    def networks(self, pipe: Any) -> dict[str, nn.Module]:
        return {part: getattr(pipe, part) for part in ("unet", "vae", *self.text_encoders)}

    # --- texts ---
    def tokenize(self, pipe: Any, text: str) -> Tokens:
        return {part: clip.tokenize(getattr(pipe, part), text) for part in self.tokenizers}

    def encode(self, pipe: Any, tokens: Tokens) -> Conditioning:
        """Gradients reach both text encoders, except the last layer of the first (penultimate states)."""
        import torch

        first, _ = clip.penultimate(pipe.text_encoder, tokens["tokenizer"])
        second, pooled = clip.penultimate(pipe.text_encoder_2, tokens["tokenizer_2"])
        return {"hidden": torch.cat([first, second], dim=-1), "pooled": pooled}

    def encode_prompts(self, pipe: Any, texts: Sequence[str]) -> Conditioning:
        hidden, _, pooled, _ = pipe.encode_prompt(
            list(texts),
            device=pipe.text_encoder_2.device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )
        return {"hidden": hidden, "pooled": pooled}

    def unconditional(self, pipe: Any, text: str, encoded: Conditioning) -> Conditioning:
        """ "" gives zeros if the pipeline's `force_zeros_for_empty_prompt` is set, as for the base model."""
        import torch

        if text == "" and pipe.config.force_zeros_for_empty_prompt:
            return {name: torch.zeros_like(value) for name, value in encoded.items()}
        return encoded

    # --- additional conditioning ---
    def training_extras(self, pipe: Any, framings: Sequence[Framing]) -> Conditioning:
        """As in diffusers' training scripts: original height, width; crop top, left; target height, width."""
        import torch

        rows = [[*framing.original, *framing.crop, *framing.target] for framing in framings]
        return {"time_ids": torch.tensor(rows, dtype=torch.int64, device=pipe.unet.device)}

    def sampling_extras(
        self, pipe: Any, n: int, size: tuple[int, int], guidance_scale: float
    ) -> Conditioning:
        """The pipeline's defaults: not cropped; original and target size are the generated size."""
        return self.training_extras(pipe, [Framing(size, (0, 0), size)] * n)

    # --- images and latents ---
    def posterior(self, pipe: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        return vae.posterior(pipe.vae, pixels)

    def factors(self, pipe: Any) -> tuple[float, float]:
        return vae.factors(pipe.vae)

    def decode(self, pipe: Any, latents: Tensor) -> Tensor:
        """The published VAE overflows in float16 (`force_upcast`): it runs in float32, as in the pipeline."""
        import torch

        if pipe.vae.dtype == torch.float16 and pipe.vae.config.force_upcast:
            with vae.in_float32(pipe.vae):
                return vae.decode(pipe.vae, latents.float())
        return vae.decode(pipe.vae, latents)

    def latent_shape(self, pipe: Any, size: tuple[int, int] | None) -> tuple[int, int, int]:
        return unet.latent_shape(pipe, size)

    # --- denoising ---
    def process(self, pipe: Any, size: tuple[int, int]) -> ddpm.Ddpm:
        return ddpm.process(pipe)

    def predict(self, pipe: Any, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        added = {"text_embeds": conditioning["pooled"], "time_ids": conditioning["time_ids"]}
        found: Tensor = pipe.unet(
            noisy, timesteps, conditioning["hidden"], added_cond_kwargs=added, return_dict=False
        )[0]
        return found

    def solver(self, pipe: Any, steps: int, size: tuple[int, int]) -> Any:
        return ddpm.solver(pipe, steps)

    # --- files ---
    def kohya(self, weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Tensor] | None:
        """`lora_unet_` with the original code's layer names, `lora_te1_`, `lora_te2_`, as kohya's."""
        found = kohya.renamed(weights, settings)
        return found and kohya.with_original_names(found)

    def layer_names(self, name: str) -> tuple[str, ...]:
        """Also accepts the original code's names, which kohya's scripts write."""
        return (kohya.diffusers_name(name),)
