"""Properties of diffusers' UNet2DConditionModel from its config alone: size, and work per forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diffusion_lab.families.family import Work
from diffusion_lab.families.vae import latent_side, pixels_per_latent

if TYPE_CHECKING:
    from diffusion_lab.families.family import Config

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
CONVOLUTIONS = ("conv1", "conv2")
LAYER_HINT = "the attention has to_q, to_k, to_v, to_out.0"
TEXT_TOKENS = 77  # of CLIP


def resolution(configs: Mapping[str, Config]) -> int:
    """Native resolution in pixels. KeyError if the configs do not contain it."""
    return int(configs["unet"]["sample_size"]) * pixels_per_latent(configs["vae"])


def multiple(configs: Mapping[str, Config]) -> int:
    """Image sides must be a multiple of this number of pixels: VAE and U-Net downsample.

    KeyError like `resolution`.
    """
    factor: int = 2 ** (len(configs["unet"]["block_out_channels"]) - 1)
    return pixels_per_latent(configs["vae"]) * factor


def latent_shape(pipe: Any, size: tuple[int, int] | None) -> tuple[int, int, int]:
    """[c, h, w] for one image of `size` (height, width) pixels; None: the model's native size.

    UserError if the VAE does not support it.
    """
    channels = int(pipe.unet.config.in_channels)
    if size is None:
        side = int(pipe.unet.config.sample_size)
        return channels, side, side
    height, width = (latent_side(pixels, int(pipe.vae_scale_factor)) for pixels in size)
    return channels, height, width


# --- the work of one forward pass -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Residual:
    """ResnetBlock2D."""

    level: int  # number of downsamplings
    inputs: int  # channels, skip connection included
    outputs: int


@dataclass(frozen=True, slots=True)
class Transformer:
    """Transformer2DModel."""

    level: int
    channels: int
    depth: int  # transformer blocks
    width: int  # of the text embeddings


@dataclass(frozen=True, slots=True)
class Resize:
    """The convolution of a downsampler or upsampler; `level`: of its output."""

    level: int
    channels: int


Part = Residual | Transformer | Resize


def parts(unet: Config) -> Iterator[Part]:
    """All residual blocks, transformers and convolutions between levels, in the order of execution.

    KeyError if the config lacks a required value.
    """
    channels = list(unet["block_out_channels"])
    number = len(channels)
    layers, depths = (
        _each(value, number)
        for value in (unet["layers_per_block"], unet.get("transformer_layers_per_block", 1))
    )
    widths = _each(unet["cross_attention_dim"], number)
    current = channels[0]
    skips = [current]
    for level, (kind, out) in enumerate(zip(unet["down_block_types"], channels, strict=True)):
        for depth in _each(depths[level], layers[level]):
            yield Residual(level, current, out)
            current = out
            if "Attn" in kind:
                yield Transformer(level, out, depth, widths[level])
            skips.append(out)
        if level < number - 1:
            yield Resize(level + 1, out)
            skips.append(out)
    kind = unet.get("mid_block_type", "UNetMidBlock2DCrossAttn")
    if kind is not None:
        yield Residual(number - 1, current, current)
    if kind is not None and "Attn" in kind:
        yield Transformer(number - 1, current, _each(depths[-1], 1)[0], widths[-1])
        yield Residual(number - 1, current, current)
    upwards = unet.get("reverse_transformer_layers_per_block") or depths[::-1]
    for place, (kind, out) in enumerate(zip(unet["up_block_types"], reversed(channels), strict=True)):
        level = number - 1 - place
        for depth in _each(upwards[place], layers[level] + 1):
            yield Residual(level, current + skips.pop(), out)
            current = out
            if "Attn" in kind:
                yield Transformer(level, out, depth, widths[level])
        if level:
            yield Resize(level - 1, out)


def work(unet: Config, side: int, tokens: int = TEXT_TOKENS) -> Work:
    """`side`: of the latents; `tokens`: of the text. KeyError if the config lacks a required value.

    TFLOP counts convolutions, linear layers and attention's two products, like torch's FlopCounterMode; norms
    and activations are not counted.
    """
    residual = transformer = positions = adapted = 0.0
    first = unet["block_out_channels"][0]
    embedding = 4 * first
    area = float(side * side)
    macs = 9 * area * first * (unet.get("in_channels", 4) + unet.get("out_channels", 4))
    macs += first * embedding + embedding * embedding  # of the timestep
    if unet.get("addition_embed_type") == "text_time":
        macs += unet["projection_class_embeddings_input_dim"] * embedding + embedding * embedding
    for part in parts(unet):
        here = area / 4**part.level
        if isinstance(part, Residual):
            residual += here * (part.inputs + part.outputs)
            macs += 9 * here * part.outputs * (part.inputs + part.outputs) + embedding * part.outputs
            macs += here * part.inputs * part.outputs if part.inputs != part.outputs else 0  # shortcut
        elif isinstance(part, Resize):
            macs += 9 * here * part.channels**2
        else:
            c, width = part.channels, part.width
            transformer += part.depth * here * c
            positions += part.depth * here
            # B A for queries, keys, values and output, of self- and of cross-attention
            adapted += part.depth * (14 * c + 2 * width)
            # 6: those layers without the text's; 12: feed-forward, 4 c wide and gated
            block = here * c * c * (6 + 12) + 2 * tokens * width * c + 2 * here * c * (here + tokens)
            macs += part.depth * block + 2 * here * c * c  # input and output projections
    sampled = residual / 20 + 24 * area * first
    return Work(residual, transformer, positions, 2 * macs / 1e12, adapted, sampled)


def _each(value: Any, number: int) -> list[Any]:
    """One value per level: diffusers' configs contain a single number if all are the same."""
    return list(value) if isinstance(value, list | tuple) else [value] * number
