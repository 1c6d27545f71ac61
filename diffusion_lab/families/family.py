"""What differs between model families, and nothing else does.

A family is a stateless object over a diffusers pipeline: it is asked what its networks are, how texts become
conditioning, how images become latents, how noise is added and what the network should predict, how it is sampled,
and under which names its weights are known elsewhere. Methods, loop, sampler, caches, artefacts, plan and report
ask it and never look into a pipeline themselves.

Importing a family imports neither torch nor diffusers: the plan asks it before anything slow is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    # Opaque outside of the family. Every tensor's first dimension is the text (or the picture), so that rows can be
    # cached, chosen and put together without knowing what they are.
    Tokens = Mapping[str, Tensor]  # int64 [b, tokens] of each tokenizer, by the name of the tokenizer's part
    # What the denoiser is given beside latents and timesteps. Whole numbers (sizes in pixels) are never cast.
    Conditioning = Mapping[str, Tensor]

Trainable = Literal["network", "adapter", "word", "hypernetwork"]
Config = Mapping[str, Any]  # a part's config.json


@dataclass(frozen=True, slots=True)
class Framing:
    """How a square training picture was cut from its photograph. Pixels; (height, width) and (top, left)."""

    original: tuple[int, int]  # of the photograph
    crop: tuple[int, int]  # corner of the square in the resized photograph
    target: tuple[int, int]  # of the square


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """One of the places where a new word is learned."""

    tokenizer: str  # the pipeline's part: "tokenizer_2"
    text_encoder: str  # "text_encoder_2"
    key: str  # its vectors' name in the ecosystem's file: "clip_g"; "" where there is one vocabulary only


@dataclass(frozen=True, slots=True)
class Work:
    """One image through the denoiser, from its config: for the plan's estimates of memory and time."""

    residual: float  # over all residual (convolution) blocks: positions * (channels in + out); 0 without any
    transformer: float  # over all transformer blocks: positions * channels
    positions: float  # over all transformer blocks: positions
    tflop: float  # multiply-adds count 2; one forward pass of one image
    adapted: float  # numbers that a LoRA of rank 1 at the default targets trains
    sampled: float  # numbers of the largest activations while one image is generated
    second_attention: float = 0.0  # over all second attentions (SD 3.5 medium's attn2): positions * channels


@dataclass(frozen=True, slots=True)
class Saved:
    """Bytes that autograd keeps for the backward pass, for each unit of the sums in `Work`.

    Of a card's kernels, whose attention keeps no matrices; `benchmarks/activations.py` measures.
    """

    residual: float
    transformer: float
    second_attention: float = 0.0


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a method has to know of a model to say how much it trains."""

    parameters: Mapping[str, float]  # of every part
    trained_text: float  # of the text encoders that train where a method trains them
    text_widths: tuple[int, ...]  # of the vocabularies' embeddings
    context_width: int  # of the text that the denoiser reads
    denoiser: str  # its part
    work: Work


class NoiseProcess(Protocol):
    """How training adds noise, and what the denoiser is to predict. Timesteps are in the denoiser's own unit."""

    def draw(self, generator: torch.Generator) -> Tensor:
        """[1] on the CPU: the timestep of one picture, drawn from `generator` only."""

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noisy latents [b, c, h, w]."""

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the denoiser should answer, [b, c, h, w]."""

    def weights(self, timesteps: Tensor, snr_gamma: float | None) -> Tensor | None:
        """[b]; None where every picture's error counts the same.

        UserError naming steps.snr_gamma where the process has no such weighting.
        """


class Family(Protocol):
    """One model family. All methods are pure but for what they say they change."""

    # --- facts ---
    name: str  # "sdxl"
    title: str  # "Stable Diffusion XL"
    pipeline: str  # diffusers' class: `_class_name` of model_index.json
    denoiser: str  # part that denoises: "unet" or "transformer"
    text_encoders: tuple[str, ...]  # parts, in diffusers' order
    tokenizers: tuple[str, ...]  # parts, one for each text encoder
    t5: str | None  # which of the text encoders is T5
    optional: frozenset[str]  # parts that a model may lack
    trainable: frozenset[Trainable]  # which kinds of fine-tuning there are for it
    why_not: Mapping[Trainable, str]  # of each kind that is not: the reason, for an error message
    lora_targets: tuple[str, ...]  # ends of layers' names: the default at full size
    small_lora_targets: tuple[str, ...]  # the default of a miniature
    layer_hint: str  # "the attention has to_q, to_k, to_v, to_out.0"
    lora_text_encoders: tuple[str, ...]  # those beside which method.text_encoder=true puts an adapter
    vocabularies: tuple[Vocabulary, ...]  # where a new word is learned; () where none can be
    guidance: Literal["classifier_free", "embedded"]  # embedded: the scale is an input of the denoiser
    sampling_steps: int  # the family's published defaults
    guidance_scale: float
    sampler: str  # what web UIs call the sampler that images are generated with
    single_file_config: str  # hub id with the configs of a single file
    single_file_parts: Mapping[str, tuple[str, ...]]  # beginnings of the keys of each part in a single file
    single_file_separate: frozenset[str]  # parts that such a file may lack: they come with the configs
    # Of every part of the published model: used while none is on this machine.
    parameters: Mapping[str, float]
    configs: Mapping[str, Config]  # what `work` and `resolution` need of its configs, likewise
    # By (half precision, the denoiser itself trains); otherwise a LoRA trains at the default targets.
    saved: Mapping[tuple[bool, bool], Saved]
    # Share of them that is kept at once with gradient checkpointing: the blocks' inputs, and one block's activations.
    checkpointed: float
    # Tokenizers with T5's files (spiece.model) instead of CLIP's (vocab.json, merges.txt).
    t5_tokenizers: frozenset[str]
    loads_half: bool  # denoiser and text encoders are loaded in model.precision: too large for float32
    min_snr: bool  # steps.snr_gamma: Min-SNR weights are for models that predict noise or v

    def check_configs(self, configs: Mapping[str, Config]) -> str | None:
        """Why a model with these configs is none of the family's; None where it is.

        By part, with "scheduler", and "model_index" where there is one.
        """

    def resolution(self, configs: Mapping[str, Config]) -> int:
        """Pixels a side that the model was made for. KeyError where the configs do not tell."""

    def multiple(self, configs: Mapping[str, Config]) -> int:
        """Sides of pictures must be a multiple of so many pixels."""

    def work(self, configs: Mapping[str, Config], side: int) -> Work:
        """`side`: of the latents. KeyError where the configs lack what is needed."""

    # --- loading ---
    def part_classes(self) -> dict[str, type[Any]]:
        """Class of every network, the denoiser first, then "vae", then the text encoders."""

    def pipeline_class(self) -> type[Any]: ...

    # --- networks ---
    def networks(self, pipe: Any) -> dict[str, nn.Module]:
        """Those the pipeline has, by part: denoiser, VAE, text encoders."""

    # --- texts ---
    def tokenize(self, pipe: Any, text: str) -> Tokens:
        """Of one text, padded as the pipeline pads, on the CPU. ValueError: too long, with both lengths."""

    def encode(self, pipe: Any, tokens: Tokens) -> Conditioning:
        """Through the text encoders, gradients included, as the pipeline's own `encode_prompt` does."""

    def encode_prompts(self, pipe: Any, texts: Sequence[str]) -> Conditioning:
        """The same for texts at once, for sampling: the pipeline's own `encode_prompt`; what is too long is cut."""

    def unconditional(self, pipe: Any, text: str, encoded: Conditioning) -> Conditioning:
        """The other branch of classifier-free guidance, from the negative prompt and what `encode_prompts` made of it.

        "" as plain diffusers does without a negative prompt.
        """

    # --- what else the denoiser is given ---
    def training_extras(self, pipe: Any, framings: Sequence[Framing]) -> Conditioning:
        """One row a picture, on the pipeline's device: time ids, the guidance embedded at 1.0; {} where none."""

    def sampling_extras(
        self, pipe: Any, n: int, size: tuple[int, int], guidance_scale: float
    ) -> Conditioning:
        """The same for `n` generated images of `size` (height, width) in pixels, as the pipeline does."""

    # --- images and latents ---
    def posterior(self, pipe: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the VAE's answer, unscaled, to float32 [b, 3, h, w] in -1..1."""

    def factors(self, pipe: Any) -> tuple[float, float]:
        """scale and shift: latents = (sample - shift) * scale."""

    def decode(self, pipe: Any, latents: Tensor) -> Tensor:
        """float32 [b, 3, h, w], about -1..1, of scaled latents."""

    def latent_shape(self, pipe: Any, size: tuple[int, int] | None) -> tuple[int, int, int]:
        """[c, h, w] of one image of `size` (height, width) pixels; None: of the model's own."""

    # --- denoising ---
    def process(self, pipe: Any, size: tuple[int, int]) -> NoiseProcess:
        """Of training at `size` (height, width) in pixels."""

    def predict(self, pipe: Any, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The denoiser's answer [b, c, h, w] to latents of that shape; gradients included. `timesteps`: [b] or []."""

    def solver(self, pipe: Any, steps: int, size: tuple[int, int]) -> Any:
        """A fresh scheduler for sampling, its timesteps set, on the denoiser's device; `pipe.scheduler` stays."""

    # --- files ---
    def kohya(self, weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Tensor] | None:
        """A LoRA (diffusers' keys, peft's settings) under the names that other tools read; None where they read none."""

    def layer_names(self, name: str) -> tuple[str, ...]:
        """diffusers' names of the layers of the denoiser that another tool's layer `name` holds, in order of its rows.

        Several where queries, keys and values are one matrix there. (name,) where the names agree, or `name` is none
        that is known. `name` has points, or underscores in their place.
        """
