"""Estimates the peak memory of a run from the architecture and the settings, before anything is loaded.

Counts weights, gradients and the optimizer's state. Activations are coefficients (`Family.saved`) times sums
over the denoiser (`Family.work`): over its residual blocks, its transformer blocks, its second attentions.
The coefficients were fitted to what autograd saves in each family's published model, with torch's fake
tensors (`benchmarks/activations.py`); attention matrices are not counted, since GPU kernels do not store
them. `benchmarks/memory.py` measures on a GPU. The memory of the driver and its context is not counted.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_lab.families.family import Sizes
from diffusion_lab.families.published import PUBLISHED, Published
from diffusion_lab.models.folder import part_configs
from diffusion_lab.models.parts import weight_parts
from diffusion_lab.models.which_family import which_family

if TYPE_CHECKING:
    from diffusion_lab.config.schema import Config, Model
    from diffusion_lab.families.family import Family, Saved, Work

GIB = 2**30
FULL, HALF = 4, 2  # bytes per number
QUANTISED = 0.56  # bytes per number in 4 bits (nf4): half a byte, and a scale for every 64 numbers
WORKSPACE = 0.4e9  # scratch space of convolutions, fragmentation, other use of the GPU
# Decoding one 512-pixel image in float32: four layers of 128 to 256 channels at full size. Measured on a CPU:
# 1.08e9.
DECODED = 1.0e9
ADAPTED = 6  # layers per transformer block and position whose rank-wide outputs are saved for a LoRA
# The metrics' networks in float32, by what needs them; the miniature's are small.
ENCODERS = {"face": 0.11e9, "clip": 1.71e9, "dino": 0.09e9, "inception": 0.09e9}
MINIATURE_ENCODERS = 0.1e9
OPTIMIZER_BYTES = {"adamw": 8, "adamw8bit": 2, "prodigy": 16}  # bytes per trained parameter


@dataclass(frozen=True, slots=True)
class Architecture:
    """The properties of a model that the estimate needs."""

    family: Family
    parameters: Mapping[str, float]  # of each part
    configs: Mapping[str, Mapping[str, Any]]  # by part
    factor: int = 8  # pixels per latent position, along each axis
    decoder_channels: int = 128  # of the VAE at full size
    # False: figures of the published model, used for a model that has not been downloaded yet
    known: bool = True

    @property
    def side(self) -> int:
        """Side length of the latents at the model's native resolution."""
        return self.family.resolution(self.configs) // self.factor

    def work(self, side: int) -> Work:
        """The work for one image. `side`: side length of the latents."""
        return self.family.work(self.configs, side)

    @property
    def sizes(self) -> Sizes:
        """For `Method.trained_numbers`."""
        family = self.family
        return Sizes(
            parameters=self.parameters,
            trained_text=sum(self.parameters.get(part, 0.0) for part in family.lora_text_encoders),
            text_widths=tuple(
                int(self.configs.get(place.text_encoder, {}).get("hidden_size", CLIP_WIDTH))
                for place in family.vocabularies
            ),
            context_width=int(self.configs[family.denoiser].get("cross_attention_dim") or CLIP_WIDTH),
            denoiser=family.denoiser,
            work=self.work(8),
        )


CLIP_WIDTH = 768


def architecture(model: Model) -> Architecture:
    """Read from the model's configs and its files' headers, else the published model's figures."""
    from diffusion_lab.models.place import model_folder
    from diffusion_lab.models.single_file import config_folder

    family = which_family(model)
    figures = PUBLISHED.get(model.path, Published())
    published = Architecture(
        family,
        {**family.parameters, **figures.parameters},
        {**family.configs, **figures.configs},
        known=False,
    )
    place = model_folder(model)
    folder = config_folder(model) if place is not None and place.is_file() else place
    if place is None or folder is None:
        return published
    try:
        configs = part_configs(folder, family)
        if place.is_file():
            shapes = _shapes(place)
            parameters = {
                part: _count({k: v for k, v in shapes.items() if k.startswith(prefixes)})
                or (family.parameters[part] if part in family.single_file_separate else 0)
                for part, prefixes in family.single_file_parts.items()
            }
        else:
            parameters = {
                part: sum(map(_count, map(_shapes, _files(place / part))))
                for part in weight_parts(family)
                if part in configs
            }
        channels = configs["vae"]["block_out_channels"]
        found = Architecture(family, parameters, configs, 2 ** (len(channels) - 1), channels[0])
        _ = found.work(8), found.side  # KeyError if the configs lack a required value
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return published
    return found


def _files(folder: Path) -> list[Path]:
    """All shards of one variant of the weights."""
    files = sorted(folder.glob("*.safetensors"))
    plain = [file for file in files if file.name.count(".") == 1]
    return plain or files[:1]


def _shapes(path: Path) -> dict[str, list[int]]:
    """Name -> shape, from the header of a safetensors file: its length in 8 bytes, then JSON."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    return {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}


def _count(shapes: Mapping[str, list[int]]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def trained_numbers(config: Config, model: Architecture) -> float:
    """Approximate number of trained parameters."""
    return config.method.trained_numbers(model.sizes)


def peaks(config: Config, model: Architecture) -> dict[str, float]:
    """Peak memory in bytes of "start", "training" and "evaluation"."""
    half = config.model.precision != "fp32"
    width = HALF if half else FULL
    traits, denoiser = config.method.traits, model.family.denoiser
    whole = traits.whole_networks
    trained = trained_numbers(config, model)
    frozen = {part: number for part, number in model.parameters.items() if not (whole and part == denoiser)}
    texts = sum(frozen.get(part, 0.0) for part in model.family.text_encoders)
    resting = frozen["vae"] + (0 if _text_runs(config) else texts)
    encoders = encoder_bytes(config)
    average = trained * FULL if traits.average else 0.0
    kept_as = {part: float(width) for part in frozen}  # bytes per number
    if config.model.quantise:
        kept_as[denoiser] = QUANTISED
    running = sum(number * kept_as[part] for part, number in frozen.items()) - resting * width
    weights = average + trained * FULL + running
    optimizer = trained * OPTIMIZER_BYTES[config.steps.optimizer]
    side = _side(config, model)
    work = model.work(side)
    pictures = config.steps.batch_size * (2 if traits.class_images else 1)
    saved = pictures * saved_bytes(model.family.saved[half, whole], work)
    saved += pictures * traits.rank * ADAPTED * work.positions * width
    if config.memory.gradient_checkpointing:
        saved *= model.family.checkpointed
    casts = trained * HALF if half and whole else 0.0  # autocast's copies of trained weights
    gradients = trained * FULL
    idle = 0.0 if config.memory.offload else resting * width + encoders
    kept = gradients if config.steps.gradient_accumulation > 1 else 0.0
    forward = casts + saved + kept
    backward = gradients + saved * (0.3 if config.memory.gradient_checkpointing else 0.5)
    area = (side / 64) ** 2
    images = min(config.prompts.batch_size, config.prompts.n * config.prompts.images_per_prompt)
    ways = 1 if model.family.guidance == "embedded" else 2  # with and without the prompt
    sampling = images * ways * (FULL if whole else width) * work.sampled
    at_once = max(area, min(images * area, 8.0))  # 512-pixel images: see sampling/sample.py
    decoding = at_once * DECODED * width / FULL * model.decoder_channels / 128
    on_card = weights + optimizer + resting * width + encoders
    # of one photo in float32, estimated like decoding
    encoding = DECODED * area * model.decoder_channels / 128
    return {
        "start": loaded_bytes(config, model) + encoders + encoding + WORKSPACE,
        "training": weights + optimizer + idle + max(forward, backward) + WORKSPACE,
        "evaluation": on_card + max(sampling, decoding) + WORKSPACE,
    }


def saved_bytes(saved: Saved, work: Work) -> float:
    """Bytes that autograd saves for one image, without checkpointing."""
    return (
        saved.residual * work.residual
        + saved.transformer * work.transformer
        + saved.second_attention * work.second_attention
    )


def encoder_bytes(config: Config) -> float:
    """Bytes of the networks that the named metrics need."""
    from diffusion_lab.evaluation.encoders.check import configured_fields

    needs = configured_fields(config.metrics)
    found = sum(ENCODERS[name] for name in ("dino", "inception") if name in needs)
    if config.metrics.encoders != "full":
        return found + MINIATURE_ENCODERS
    found += ENCODERS["face"] if "face" in needs else 0.0
    return found + (ENCODERS["clip"] if needs & {"clip_image", "clip_text", "aesthetics"} else 0.0)


def loaded_bytes(config: Config, model: Architecture) -> float:
    """Bytes of the weights as they are loaded: photos and prompts are encoded before the cast.

    All in float32, except for families whose denoiser and text encoders are too large for that.
    """
    half = model.family.loads_half and config.model.precision != "fp32"
    found = 0.0
    for part, number in model.parameters.items():
        if config.model.quantise and part == model.family.denoiser:
            found += number * QUANTISED
        else:
            found += number * (HALF if half and part != "vae" else FULL)
    return found


def _text_runs(config: Config) -> bool:
    """Whether the text encoders run at every step."""
    traits = config.method.traits
    return config.memory.cache == "off" or traits.learns_word or traits.text_encoder


def _side(config: Config, model: Architecture) -> int:
    """Side length of a photo's latents."""
    pixels = config.model.resolution
    return max(1, pixels // model.factor) if pixels else model.side
