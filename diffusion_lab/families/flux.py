"""FLUX.1 [dev] by Black Forest Labs: a rectified flow transformer with guidance distilled into an input.

Text enters the transformer in two ways: T5's hidden states as 512 tokens next to the image's, and CLIP's
pooled vector with the timestep. The transformer processes 2x2 patches of the latents as tokens; outside
`predict`, latents are [b, 16, h, w]. Guidance is a separate input: 1.0 in training, since the targets are
unguided data; the given scale in sampling. There is therefore neither an unconditional branch nor a negative
prompt.

Black Forest Labs trained with the same shift of the noise levels as its sampler (`calculate_shift` of the
number of tokens), on a logit-normal distribution; so does `process`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from diffusion_lab.families import flow, flux_names, vae
from diffusion_lab.families.family import (
    Config,
    Framing,
    NoiseProcess,
    Saved,
    Trainable,
    Vocabulary,
    Work,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from diffusion_lab.families.family import Conditioning, Tokens

TEXT_TOKENS = 512  # of T5, padded: they are not masked
PATCH = 2  # latent positions per token, along each axis
TIME_CHANNELS = 256  # of diffusers' sinusoidal embeddings of timestep and guidance
DEFAULTS: Config = {  # of FluxTransformer2DModel, for values missing in a config
    "patch_size": 1, "in_channels": 64, "out_channels": None, "joint_attention_dim": 4096,
    "pooled_projection_dim": 768, "guidance_embeds": False,
}  # fmt: skip


class Flux:
    """The `Family` of FLUX.1 [dev] and models of the same architecture, such as FLUX.1 Krea [dev]."""

    name = "flux"
    title = "FLUX.1"
    pipeline = "FluxPipeline"
    denoiser = "transformer"
    text_encoders: tuple[str, ...] = ("text_encoder", "text_encoder_2")
    tokenizers: tuple[str, ...] = ("tokenizer", "tokenizer_2")
    t5: str | None = "text_encoder_2"
    optional: frozenset[str] = frozenset()
    trainable: frozenset[Trainable] = frozenset({"adapter", "network"})
    why_not: Mapping[Trainable, str] = {
        "word": "FLUX.1 reads texts through T5, which is not trained here, and a new word of CLIP alone reaches the "
        "picture through one pooled vector: reported to change hardly anything",
        "hypernetwork": "a hypernetwork sits before the keys and values of cross-attention, and FLUX.1 has none: text "
        "and picture are tokens of one attention",
    }
    # The default of diffusers' train_dreambooth_lora_flux.py: only the attention of the single-stream blocks.
    lora_targets: tuple[str, ...] = (
        "attn.to_k", "attn.to_q", "attn.to_v", "attn.to_out.0",
        "attn.add_k_proj", "attn.add_q_proj", "attn.add_v_proj", "attn.to_add_out",
        "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2",
    )  # fmt: skip
    small_lora_targets: tuple[str, ...] = (*lora_targets, "proj_mlp", "proj_out")
    layer_hint = "the attention has attn.to_q, attn.to_k, attn.to_v, attn.to_out.0"
    lora_text_encoders: tuple[str, ...] = ("text_encoder",)
    vocabularies: tuple[Vocabulary, ...] = ()
    guidance: Literal["classifier_free", "embedded"] = "embedded"
    sampling_steps = 28
    guidance_scale = 3.5
    sampler = "Euler"
    single_file_config = "black-forest-labs/FLUX.1-dev"
    single_file_parts: Mapping[str, tuple[str, ...]] = {
        "transformer": ("model.diffusion_model.double_blocks.", "double_blocks."), "vae": ("vae.", "first_stage_model."),
        "text_encoder": ("text_encoders.clip_l.",), "text_encoder_2": ("text_encoders.t5xxl.",),
    }  # fmt: skip
    # As published: only the transformer.
    single_file_separate: frozenset[str] = frozenset({"vae", *text_encoders})
    parameters: Mapping[str, float] = {
        "transformer": 11_901_408_320,
        "vae": 83_819_683,
        "text_encoder": 123_060_480,
        "text_encoder_2": 4_762_310_656,
    }

    configs: Mapping[str, Config] = {
        "transformer": {
            "num_layers": 19, "num_single_layers": 38, "num_attention_heads": 24, "attention_head_dim": 128,
            "in_channels": 64, "joint_attention_dim": 4096, "pooled_projection_dim": 768, "guidance_embeds": True,
        },
        "vae": {"block_out_channels": [128, 256, 512, 512], "sample_size": 1024},
        "text_encoder": {"hidden_size": 768},
    }  # fmt: skip
    loads_half = True
    min_snr = False
    saved: Mapping[tuple[bool, bool], Saved] = {
        (False, True): Saved(0.0, 80.0), (True, True): Saved(0.0, 56.0),
        (False, False): Saved(0.0, 56.0), (True, False): Saved(0.0, 40.0),
    }  # fmt: skip
    checkpointed = 0.07
    t5_tokenizers: frozenset[str] = frozenset({"tokenizer_2"})

    # --- facts of a model ---

    def check_configs(self, configs: Mapping[str, Config]) -> str | None:
        found = {**DEFAULTS, **configs.get("transformer", {})}
        if (kind := found.get("_class_name", "FluxTransformer2DModel")) != "FluxTransformer2DModel":
            return f"its transformer is a {kind}, and FLUX.1's is a FluxTransformer2DModel"
        channels = configs.get("vae", {}).get("latent_channels", 16)
        given, own = found["in_channels"], channels * PATCH**2
        if given != own or found["out_channels"] not in (None, own):
            return (
                f"its transformer reads {given} channels, where a text-to-image FLUX.1 reads {own}: FLUX.1 Fill, "
                "Canny and Depth are given a picture too and are not supported"
            )
        if found["patch_size"] != 1:
            return f"its transformer has patch_size={found['patch_size']}, and FLUX.1 has 1"
        if not found["guidance_embeds"]:
            return (
                "its transformer has no guidance input (guidance_embeds is false): FLUX.1 [schnell] is distilled to "
                "four steps, which training would undo; use FLUX.1 [dev]"
            )
        for part, key, width in (
            ("text_encoder", "hidden_size", "pooled_projection_dim"),
            ("text_encoder_2", "d_model", "joint_attention_dim"),
        ):
            theirs = configs.get(part, {}).get(key)
            if theirs is not None and theirs != found[width]:
                return (
                    f"its {part} is {theirs} wide ({key}), and its transformer reads {found[width]} ({width})"
                )
        scheduler = configs.get("scheduler", {}).get("_class_name", "FlowMatchEulerDiscreteScheduler")
        if scheduler != "FlowMatchEulerDiscreteScheduler":
            return (
                f"its scheduler is {scheduler}, and the noise levels of training and of sampling are read from "
                "FLUX.1's own, a FlowMatchEulerDiscreteScheduler"
            )
        return None

    def resolution(self, configs: Mapping[str, Config]) -> int:
        return int(configs["vae"]["sample_size"])

    def multiple(self, configs: Mapping[str, Config]) -> int:
        return PATCH * vae.pixels_per_latent(configs["vae"])

    def work(self, configs: Mapping[str, Config], side: int) -> Work:
        found = configs["transformer"]
        double, single = found["num_layers"], found["num_single_layers"]
        width = found["num_attention_heads"] * found["attention_head_dim"]
        picture = (side / PATCH) ** 2
        tokens = picture + TEXT_TOKENS
        positions = (double + single) * tokens
        # Both kinds of block: 12 width**2 weights per token (four layers of attention, an MLP of twice four),
        # and attention's two products.
        products = positions * (12 * width**2 + 2 * tokens * width)
        products += (12 * double + 3 * single + 2) * width**2  # modulation: once per image
        products += 2 * picture * found["in_channels"] * width  # input and output projections
        products += TEXT_TOKENS * found["joint_attention_dim"] * width
        embedded = 2 if found["guidance_embeds"] else 1  # timestep, guidance
        products += (embedded * (TIME_CHANNELS + width) + found["pooled_projection_dim"] + width) * width
        adapted = (36 * double + 6 * single) * width
        sampled = 12.0 * tokens * width  # per block: queries, keys, values, and the MLP's 4 widths, twice
        return Work(0.0, positions * width, positions, 2 * products / 1e12, adapted, sampled)

    # --- loading ---

    def part_classes(self) -> dict[str, type[Any]]:
        from diffusers import AutoencoderKL, FluxTransformer2DModel
        from transformers import CLIPTextModel, T5EncoderModel

        return {
            "transformer": FluxTransformer2DModel,
            "vae": AutoencoderKL,
            "text_encoder": CLIPTextModel,
            "text_encoder_2": T5EncoderModel,
        }

    def pipeline_class(self) -> type[Any]:
        from diffusers import FluxPipeline

        return FluxPipeline  # type: ignore[no-any-return]

    def networks(self, pipe: Any) -> dict[str, nn.Module]:
        return {part: getattr(pipe, part) for part in ("transformer", "vae", *self.text_encoders)}

    # --- texts ---

    def tokenize(self, pipe: Any, text: str) -> Tokens:
        """The text is truncated to CLIP's 77 tokens, as in the pipeline; T5 reads the whole text."""
        given = len(pipe.tokenizer_2(text, truncation=False, verbose=False).input_ids)
        if given > TEXT_TOKENS:
            raise ValueError(f"{text!r} has {given} tokens, the model reads {TEXT_TOKENS}")
        limits = {"tokenizer": pipe.tokenizer_max_length, "tokenizer_2": TEXT_TOKENS}
        return {
            part: getattr(pipe, part)(
                text, padding="max_length", max_length=most, truncation=True, return_tensors="pt"
            ).input_ids
            for part, most in limits.items()
        }

    def encode(self, pipe: Any, tokens: Tokens) -> Conditioning:
        clip, t5 = pipe.text_encoder, pipe.text_encoder_2
        pooled = clip(tokens["tokenizer"].to(clip.device)).pooler_output
        hidden = t5(tokens["tokenizer_2"].to(t5.device))[0]
        return {"hidden": hidden.to(clip.device, t5.dtype), "pooled": pooled.to(clip.dtype)}

    def encode_prompts(self, pipe: Any, texts: Sequence[str]) -> Conditioning:
        hidden, pooled, _ = pipe.encode_prompt(
            list(texts), device=pipe.text_encoder.device, max_sequence_length=TEXT_TOKENS
        )
        return {"hidden": hidden, "pooled": pooled}

    def unconditional(self, pipe: Any, text: str, encoded: Conditioning) -> Conditioning:
        """Never called: guidance is embedded, so there is no unconditional branch."""
        return encoded

    # --- additional conditioning ---

    def training_extras(self, pipe: Any, framings: Sequence[Framing]) -> Conditioning:
        return _guidance(pipe, len(framings), 1.0)

    def sampling_extras(
        self, pipe: Any, n: int, size: tuple[int, int], guidance_scale: float
    ) -> Conditioning:
        return _guidance(pipe, n, guidance_scale)

    # --- images and latents ---

    def posterior(self, pipe: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        return vae.posterior(pipe.vae, pixels)

    def factors(self, pipe: Any) -> tuple[float, float]:
        return vae.factors(pipe.vae)

    def decode(self, pipe: Any, latents: Tensor) -> Tensor:
        return vae.decode(pipe.vae, latents)

    def latent_shape(self, pipe: Any, size: tuple[int, int] | None) -> tuple[int, int, int]:
        factor = int(pipe.vae_scale_factor)
        own = int(pipe.vae.config.sample_size)
        height, width = (PATCH * vae.latent_side(pixels, factor * PATCH) for pixels in size or (own, own))
        return int(pipe.transformer.config.in_channels) // PATCH**2, height, width

    # --- denoising ---

    def process(self, pipe: Any, size: tuple[int, int]) -> NoiseProcess:
        return flow.flow(pipe.scheduler.config, self._tokens(pipe, size))

    def predict(self, pipe: Any, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        import torch.nn.functional as F

        height, width = (side // PATCH for side in noisy.shape[-2:])
        hidden = conditioning["hidden"].to(noisy.dtype)
        found = pipe.transformer(
            hidden_states=F.pixel_unshuffle(noisy, PATCH).flatten(2).transpose(1, 2).contiguous(),
            timestep=timesteps.to(noisy.device).expand(len(noisy)).to(noisy.dtype) / 1000,
            guidance=conditioning["guidance"],
            pooled_projections=conditioning["pooled"].to(noisy.dtype),
            encoder_hidden_states=hidden,
            txt_ids=hidden.new_zeros(hidden.shape[1], 3),
            img_ids=_positions(height, width, noisy.device),
            return_dict=False,
        )[0]
        return F.pixel_shuffle(found.transpose(1, 2).unflatten(2, (height, width)), PATCH)

    def solver(self, pipe: Any, steps: int, size: tuple[int, int]) -> Any:
        sigmas = [1 - step / steps for step in range(steps)]
        tokens = self._tokens(pipe, size)
        return flow.euler(pipe.scheduler.config, steps, tokens, pipe.transformer.device, sigmas)

    def _tokens(self, pipe: Any, size: tuple[int, int]) -> int:
        """Number of tokens of an image of `size` (height, width) pixels."""
        _, height, width = self.latent_shape(pipe, size)
        return height * width // PATCH**2

    # --- files ---

    def kohya(self, weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Tensor] | None:
        """None for DoRA, whose magnitudes tools store in different shapes or drop, and for unknown layers."""
        if any(settings.get(f"{part}.use_dora") for part in ("transformer", "text_encoder")):
            return None
        return flux_names.fused(weights, settings)

    def layer_names(self, name: str) -> tuple[str, ...]:
        """Also accepts Black Forest Labs' names, which kohya's scripts write."""
        return flux_names.held_by(name)


def _guidance(pipe: Any, n: int, scale: float) -> Conditioning:
    import torch

    return {"guidance": torch.full((n,), scale, dtype=torch.float32, device=pipe.transformer.device)}


def _positions(height: int, width: int, device: torch.device) -> Tensor:
    """float32 [height * width, 3]: 0, row and column of each token, row by row."""
    import torch

    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    grid = torch.cartesian_prod(rows, columns).float()
    return torch.nn.functional.pad(grid, (1, 0))
