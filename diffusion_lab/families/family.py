"""The interface of a model family: everything that differs between families.

A family is a stateless object that works on a diffusers pipeline. It defines what its networks are, how texts
become conditioning, how images become latents, how noise is added and what the network should predict, how
images are sampled, and the names of its weights in other tools. Methods, loop, sampler, caches, artefacts,
plan and report use it and do not access the parts of a pipeline themselves.

Importing a family imports neither torch nor diffusers: the plan uses it before anything slow is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    # Opaque outside of the family. The first dimension of every tensor indexes the texts (or images), so that
    # rows can be cached, selected and concatenated without knowing their contents.
    Tokens = Mapping[str, Tensor]  # int64 [b, tokens] for each tokenizer, by the name of the tokenizer's part
    # Inputs of the denoiser other than latents and timesteps. Integers (sizes in pixels) are never cast.
    Conditioning = Mapping[str, Tensor]

Trainable = Literal["network", "adapter", "word", "hypernetwork"]
Config = Mapping[str, Any]  # a part's config.json


@dataclass(frozen=True, slots=True)
class Framing:
    """How a square training image was cropped from its photo. Pixels; (height, width) and (top, left)."""

    original: tuple[int, int]  # size of the photo
    crop: tuple[int, int]  # corner of the square in the resized photo
    target: tuple[int, int]  # size of the square


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A vocabulary in which a new word is learned."""

    tokenizer: str  # the pipeline's part: "tokenizer_2"
    text_encoder: str  # "text_encoder_2"
    key: str  # its vectors' key in the standard file format: "clip_g"; "" if there is only one vocabulary


@dataclass(frozen=True, slots=True)
class Work:
    """The denoiser's work for one image, from its config: for the plan's memory and time estimates."""

    # sum over all residual (convolution) blocks: positions * (channels in + out); 0 without any
    residual: float
    transformer: float  # sum over all transformer blocks: positions * channels
    positions: float  # sum over all transformer blocks: positions
    tflop: float  # one forward pass of one image; a multiply-add counts as 2
    adapted: float  # parameters trained by a LoRA of rank 1 at the default targets
    sampled: float  # elements of the largest activations while one image is generated
    # sum over all second attentions (SD 3.5 medium's attn2): positions * channels
    second_attention: float = 0.0


@dataclass(frozen=True, slots=True)
class Saved:
    """Bytes that autograd saves for the backward pass, per unit of the sums in `Work`.

    For GPU kernels, which do not store attention matrices; measured by `benchmarks/activations.py`.
    """

    residual: float
    transformer: float
    second_attention: float = 0.0


@dataclass(frozen=True, slots=True)
class Sizes:
    """The properties of a model from which a method computes its number of trained parameters."""

    parameters: Mapping[str, float]  # of each part
    trained_text: float  # of the text encoders, if the method trains them
    text_widths: tuple[int, ...]  # of the vocabularies' embeddings
    context_width: int  # of the text embeddings that the denoiser reads
    denoiser: str  # name of its part
    work: Work


class NoiseProcess(Protocol):
    """How training adds noise, and what the denoiser predicts. Timesteps are in the denoiser's own unit."""

    def draw(self, generator: torch.Generator) -> Tensor:
        """[1] on the CPU: the timestep of one image, drawn from `generator` only."""

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noisy latents [b, c, h, w]."""

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The training target of the denoiser, [b, c, h, w]."""

    def weights(self, timesteps: Tensor, snr_gamma: float | None) -> Tensor | None:
        """[b]; None if all errors have the same weight.

        UserError naming steps.snr_gamma if the process does not support such weights.
        """


class Family(Protocol):
    """One model family. All methods are pure except where stated."""

    # --- facts ---
    name: str  # "sdxl"
    title: str  # "Stable Diffusion XL"
    pipeline: str  # diffusers' class: `_class_name` of model_index.json
    denoiser: str  # the denoiser's part: "unet" or "transformer"
    text_encoders: tuple[str, ...]  # parts, in diffusers' order
    tokenizers: tuple[str, ...]  # parts, one for each text encoder
    t5: str | None  # which of the text encoders is T5
    optional: frozenset[str]  # parts that a model may lack
    trainable: frozenset[Trainable]  # supported kinds of fine-tuning
    why_not: Mapping[Trainable, str]  # for each unsupported kind: the reason, for an error message
    lora_targets: tuple[str, ...]  # suffixes of layer names: the default at full size
    small_lora_targets: tuple[str, ...]  # the default of a miniature
    layer_hint: str  # "the attention has to_q, to_k, to_v, to_out.0"
    lora_text_encoders: tuple[str, ...]  # text encoders to which method.text_encoder=true adds an adapter
    vocabularies: tuple[Vocabulary, ...]  # in which a new word is learned; () if none can be
    guidance: Literal["classifier_free", "embedded"]  # embedded: the scale is an input of the denoiser
    sampling_steps: int  # the family's published defaults
    guidance_scale: float
    sampler: str  # name of the sampler in web UIs
    single_file_config: str  # hub id with the configs of a single file
    single_file_parts: Mapping[str, tuple[str, ...]]  # key prefixes of each part in a single file
    single_file_separate: frozenset[str]  # parts that such a file may lack: they are loaded with the configs
    # For each part of the published model: used if it has not been downloaded.
    parameters: Mapping[str, float]
    configs: Mapping[str, Config]  # what `work` and `resolution` need from its configs, likewise
    # By (half precision, whether the denoiser itself is trained); otherwise a LoRA is trained at the default
    # targets.
    saved: Mapping[tuple[bool, bool], Saved]
    # Share of them kept at once with gradient checkpointing: the blocks' inputs, and one block's activations.
    checkpointed: float
    # Tokenizers with T5's files (spiece.model) instead of CLIP's (vocab.json, merges.txt).
    t5_tokenizers: frozenset[str]
    loads_half: bool  # denoiser and text encoders are loaded in model.precision: too large for float32
    min_snr: bool  # steps.snr_gamma: Min-SNR weights apply to models that predict noise or v

    def check_configs(self, configs: Mapping[str, Config]) -> str | None:
        """Why a model with these configs does not belong to the family; None if it does.

        `configs`: by part, with "scheduler", and "model_index" if there is one.
        """

    def resolution(self, configs: Mapping[str, Config]) -> int:
        """Native resolution in pixels. KeyError if the configs do not contain it."""

    def multiple(self, configs: Mapping[str, Config]) -> int:
        """Sides of images must be a multiple of this number of pixels."""

    def work(self, configs: Mapping[str, Config], side: int) -> Work:
        """`side`: side length of the latents. KeyError if the configs lack a required value."""

    # --- loading ---
    def part_classes(self) -> dict[str, type[Any]]:
        """Class of every network, the denoiser first, then "vae", then the text encoders."""

    def pipeline_class(self) -> type[Any]: ...

    # --- networks ---
    def networks(self, pipe: Any) -> dict[str, nn.Module]:
        """The pipeline's networks by part: denoiser, VAE, text encoders."""

    # --- texts ---
    def tokenize(self, pipe: Any, text: str) -> Tokens:
        """Token ids of one text, padded as in the pipeline, on the CPU.

        ValueError, with both lengths, if it is too long.
        """

    def encode(self, pipe: Any, tokens: Tokens) -> Conditioning:
        """Runs the text encoders, with gradients, as the pipeline's own `encode_prompt` does."""

    def encode_prompts(self, pipe: Any, texts: Sequence[str]) -> Conditioning:
        """Encodes texts for sampling with the pipeline's own `encode_prompt`; long texts are truncated."""

    def unconditional(self, pipe: Any, text: str, encoded: Conditioning) -> Conditioning:
        """The unconditional branch of guidance, from the negative prompt and its `encode_prompts`.

        "" gives the same as diffusers without a negative prompt.
        """

    # --- additional conditioning ---
    def training_extras(self, pipe: Any, framings: Sequence[Framing]) -> Conditioning:
        """One row per image, on the pipeline's device: time ids, the guidance embedded at 1.0; may be {}."""

    def sampling_extras(
        self, pipe: Any, n: int, size: tuple[int, int], guidance_scale: float
    ) -> Conditioning:
        """The same for `n` generated images of `size` (height, width) in pixels, as in the pipeline."""

    # --- images and latents ---
    def posterior(self, pipe: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the VAE's posterior, unscaled, for float32 [b, 3, h, w] in -1..1."""

    def factors(self, pipe: Any) -> tuple[float, float]:
        """scale and shift: latents = (sample - shift) * scale."""

    def decode(self, pipe: Any, latents: Tensor) -> Tensor:
        """Decodes scaled latents to float32 [b, 3, h, w], about -1..1."""

    def latent_shape(self, pipe: Any, size: tuple[int, int] | None) -> tuple[int, int, int]:
        """[c, h, w] for one image of `size` (height, width) pixels; None: the model's native size."""

    # --- denoising ---
    def process(self, pipe: Any, size: tuple[int, int]) -> NoiseProcess:
        """The noise process for training at `size` (height, width) in pixels."""

    def predict(self, pipe: Any, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The denoiser's prediction [b, c, h, w] for latents of that shape, with gradients.

        `timesteps`: [b] or [].
        """

    def solver(self, pipe: Any, steps: int, size: tuple[int, int]) -> Any:
        """A new scheduler for sampling, timesteps set, on the denoiser's device; keeps `pipe.scheduler`."""

    # --- files ---
    def kohya(self, weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Tensor] | None:
        """A LoRA (diffusers' keys, peft's settings) with other tools' key names; None if unsupported."""

    def layer_names(self, name: str) -> tuple[str, ...]:
        """diffusers' names of the denoiser's layers in another tool's layer `name`, in order of its rows.

        Several if queries, keys and values are one matrix there. (name,) if the names agree or `name` is
        unknown. `name` has dots, or underscores in their place.
        """
