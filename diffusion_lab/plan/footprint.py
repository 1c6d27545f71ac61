"""How many bytes a run will need at its peak, from the architecture and the settings, before anything is loaded.

Weights, gradients and the optimizer's numbers are counted. Activations are two coefficients times two sums over
the U-Net: one over its residual blocks (positions times channels in and out), one over its transformer blocks
(positions times channels). The coefficients were fitted to what autograd saves in Stable Diffusion 1.5's U-Net
at 512 pixels, with torch's fake tensors, attention's own matrices left out (a card's kernels keep none);
`benchmarks/memory.py` measures. What a driver and its context take is not counted.
"""

from __future__ import annotations

import itertools
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusion_lab.config.schema import Config, Model

GIB = 2**30
FULL, HALF = 4, 2  # bytes a number
# Bytes saved for the way back a unit of the sums: residual blocks, transformer blocks.
SAVED = {
    # (half precision, the U-Net itself trains)
    (False, True): (13.3, 125.0),
    (True, True): (11.8, 83.0),
    (False, False): (13.3, 89.0),
    (True, False): (11.8, 61.0),
}
RECOMPUTED = (
    0.25  # share of it that stays with gradient checkpointing: blocks' inputs and one block at a time
)
WORKSPACE = 0.4e9  # convolutions' scratch space, fragments, what else is on a card
# Decoding one 512-pixel image in float32: four layers of 128 to 256 channels at full size. Measured on a CPU: 1.08e9.
DECODED = 1.0e9
ADAPTED = 6  # layers of a transformer block at every position whose rank-wide outputs a LoRA keeps
# The metrics' networks in float32, by what they are needed for; the miniature's are small.
ENCODERS = {"face": 0.11e9, "clip": 1.71e9, "dino": 0.09e9, "inception": 0.09e9}
MINIATURE_ENCODERS = 0.1e9
OPTIMIZER_BYTES = {"adamw": 8, "adamw8bit": 2, "prodigy": 16}  # a trained number


@dataclass(frozen=True, slots=True)
class Architecture:
    """What the estimate needs to know of a model."""

    parameters: Mapping[str, float]  # of "unet", "vae", "text_encoder"
    unet: Mapping[str, Any]  # its config
    factor: int = 8  # pixels a latent, each way
    decoder_channels: int = 128  # of the VAE at full size
    known: bool = True  # False: Stable Diffusion 1.5's figures stand for a model that is not here yet


SD15 = Architecture(
    parameters={"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    unet={
        "block_out_channels": [320, 640, 1280, 1280],
        "layers_per_block": 2,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        "cross_attention_dim": 768,
        "sample_size": 64,
    },
    known=False,
)


def architecture(model: Model) -> Architecture:
    """Read from the model's own configs and its files' headers; SD 1.5's where they are not on this machine."""
    from diffusion_lab.models.folder import WEIGHTS
    from diffusion_lab.models.place import model_folder
    from diffusion_lab.models.single_file import PREFIXES, config_folder

    place = model_folder(model)
    configs = config_folder(model) if place is not None and place.is_file() else place
    if place is None or configs is None:
        return SD15
    try:
        unet = json.loads((configs / "unet" / "config.json").read_text("utf-8"))
        if place.is_file():
            shapes = _shapes(place)
            parameters = {
                part: _count({k: v for k, v in shapes.items() if k.startswith(prefix)})
                for part, prefix in zip(("unet", "vae", "text_encoder"), PREFIXES.values(), strict=True)
            }
        else:
            parameters = {part: sum(map(_count, map(_shapes, _files(place / part)))) for part in WEIGHTS}
        vae = json.loads((configs / "vae" / "config.json").read_text("utf-8"))
        sums(unet, 8)  # KeyError where the config lacks what the estimate needs
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return SD15
    channels = vae["block_out_channels"]
    return Architecture(parameters, unet, 2 ** (len(channels) - 1), channels[0])


def _files(folder: Path) -> list[Path]:
    """One variant of the weights, all its shards."""
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


def sums(unet: Mapping[str, Any], side: int) -> tuple[float, float]:
    """Over all residual blocks positions * (channels in + out), over all transformer blocks positions * channels.

    `side`: of the latents. Skip connections are concatenated, as in the U-Net's way up.
    """
    channels, layers = list(unet["block_out_channels"]), unet["layers_per_block"]
    residual = transformer = 0.0
    positions, current = float(side * side), channels[0]
    skips = [current]
    for number, (kind, out) in enumerate(zip(unet["down_block_types"], channels, strict=True)):
        for _ in range(layers):
            residual += positions * (current + out)
            current = out
            transformer += positions * out if "Attn" in kind else 0
            skips.append(out)
        if number < len(channels) - 1:
            positions /= 4
            skips.append(out)
    residual += positions * 4 * current
    transformer += positions * current
    for number, (kind, out) in enumerate(zip(unet["up_block_types"], reversed(channels), strict=True)):
        for _ in range(layers + 1):
            residual += positions * (current + skips.pop() + out)
            current = out
            transformer += positions * out if "Attn" in kind else 0
        if number < len(channels) - 1:
            positions *= 4
    return residual, transformer


def attention_channels(unet: Mapping[str, Any]) -> tuple[int, int]:
    """Number of transformer blocks and the sum of their channels."""
    channels, layers = list(unet["block_out_channels"]), unet["layers_per_block"]
    found = [channels[-1]]
    for kind, out in zip(unet["down_block_types"], channels, strict=True):
        found += [out] * layers if "Attn" in kind else []
    for kind, out in zip(unet["up_block_types"], reversed(channels), strict=True):
        found += [out] * (layers + 1) if "Attn" in kind else []
    return len(found), sum(found)


def attention_positions(unet: Mapping[str, Any], side: int) -> float:
    """Positions of all transformer blocks together. `side`: of the latents."""
    layers, number = unet["layers_per_block"], len(unet["block_out_channels"])
    found = (side / 2 ** (number - 1)) ** 2  # the one in the middle
    for level, kind in enumerate(unet["down_block_types"]):
        found += layers * (side / 2**level) ** 2 if "Attn" in kind else 0
    for level, kind in enumerate(reversed(unet["up_block_types"])):
        found += (layers + 1) * (side / 2**level) ** 2 if "Attn" in kind else 0
    return float(found)


def trained_numbers(config: Config, model: Architecture) -> float:
    """About how many numbers the method trains."""
    method: Any = config.method
    text = model.parameters["text_encoder"] if getattr(method, "text_encoder", False) else 0.0
    if hasattr(method, "complete"):  # whole networks
        return model.parameters["unet"] + text
    blocks, channels = attention_channels(model.unet)
    width = int(model.unet["cross_attention_dim"])
    if hasattr(method, "rank"):
        # B A on queries, keys, values and the way out, of self- and of cross-attention
        return float(method.rank) * (14 * channels + 2 * blocks * width)
    if hasattr(method, "layers"):  # a network before the keys and one before the values, of the text's width
        widths = [float(share) * width for share in method.layers]
        return 2 * sum(first * second for first, second in itertools.pairwise(widths))
    return float(getattr(method, "vectors", 1) * width)


def peaks(config: Config, model: Architecture) -> dict[str, float]:
    """Bytes at the peak of "start", of "training" and of "evaluation"."""
    half = config.model.precision != "fp32"
    width = HALF if half else FULL
    whole = hasattr(config.method, "complete")
    trained = trained_numbers(config, model)
    frozen = {part: number for part, number in model.parameters.items() if not (whole and part == "unet")}
    resting = frozen["vae"] + (0 if _text_runs(config) else frozen["text_encoder"])
    encoders = encoder_bytes(config)
    average = trained * FULL if getattr(config.method, "ema", False) else 0.0
    weights = average + trained * FULL + (sum(frozen.values()) - resting) * width
    optimizer = trained * OPTIMIZER_BYTES[config.steps.optimizer]
    side = _side(config, model)
    residual, transformer = sums(model.unet, side)
    per_residual, per_transformer = SAVED[half, whole]
    pictures = config.steps.batch_size * (1 if getattr(config.method, "prior_weight", 0.0) == 0.0 else 2)
    saved = pictures * (per_residual * residual + per_transformer * transformer)
    rank = float(getattr(config.method, "rank", 0))
    saved += pictures * rank * ADAPTED * attention_positions(model.unet, side) * width
    if config.memory.gradient_checkpointing:
        saved *= RECOMPUTED
    casts = trained * HALF if half and whole else 0.0  # autocast's copies of trained weights
    gradients = trained * FULL
    idle = 0.0 if config.memory.offload else resting * width + encoders
    kept = gradients if config.steps.gradient_accumulation > 1 else 0.0
    forward = casts + saved + kept
    backward = gradients + saved * (0.3 if config.memory.gradient_checkpointing else 0.5)
    area = (side / 64) ** 2
    images = min(config.prompts.batch_size, config.prompts.n * config.prompts.images_per_prompt)
    sampling = (
        images
        * 2
        * (FULL if whole else width)
        * (residual / 20 + 24 * side * side * model.unet["block_out_channels"][0])
    )
    at_once = max(area, min(images * area, 8.0))  # 512-pixel images: see sampling/sample.py
    decoding = at_once * DECODED * width / FULL * model.decoder_channels / 128
    on_card = weights + optimizer + resting * width + encoders
    encoding = DECODED * area * model.decoder_channels / 128  # of one picture, in float32, as decoding
    return {
        # Everything in float32: pictures and prompts are encoded before the cast.
        "start": sum(model.parameters.values()) * FULL + encoders + encoding + WORKSPACE,
        "training": weights + optimizer + idle + max(forward, backward) + WORKSPACE,
        "evaluation": on_card + max(sampling, decoding) + WORKSPACE,
    }


def encoder_bytes(config: Config) -> float:
    """Of the networks that the named metrics need."""
    from diffusion_lab.evaluation.encoders.check import configured_fields

    needs = configured_fields(config.metrics)
    found = sum(ENCODERS[name] for name in ("dino", "inception") if name in needs)
    if config.metrics.encoders != "full":
        return found + MINIATURE_ENCODERS
    found += ENCODERS["face"] if "face" in needs else 0.0
    return found + (ENCODERS["clip"] if needs & {"clip_image", "clip_text", "aesthetics"} else 0.0)


def _text_runs(config: Config) -> bool:
    """Whether every step goes through the text encoder."""
    learns_word = hasattr(config.method, "vectors")
    return config.memory.cache == "off" or learns_word or bool(getattr(config.method, "text_encoder", False))


def _side(config: Config, model: Architecture) -> int:
    """Of the latents of one picture."""
    pixels = config.model.resolution
    return max(1, pixels // model.factor) if pixels else int(model.unet.get("sample_size") or 64)
