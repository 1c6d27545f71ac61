"""The work of Stable Diffusion 3's transformer for one image, from its config alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusion_lab.families.family import Saved, Work

CLIP_TOKENS, T5_TOKENS = 77, 256  # of the text, in this order
TIME_CHANNELS = 256  # of the sinusoidal embedding of the timestep

SAVED: Mapping[tuple[bool, bool], Saved] = {  # see `Family.saved`
    (False, True): Saved(0.0, 96.0, 41.0), (True, True): Saved(0.0, 74.0, 38.0),
    (False, False): Saved(0.0, 52.0, 28.0), (True, False): Saved(0.0, 44.0, 28.0),
}  # fmt: skip


def work(config: Mapping[str, Any], side: int) -> Work:
    """`config`: the transformer's; `side`: of the latents. KeyError if the config lacks a required value.

    All matrix products count, softmax and norms do not: the same as torch's FlopCounterMode.
    """
    patch, blocks = int(config["patch_size"]), int(config["num_layers"])
    width = int(config["num_attention_heads"]) * int(config["attention_head_dim"])
    second = len([block for block in config.get("dual_attention_layers") or () if block < blocks])
    patches = (side // patch) ** 2
    text = CLIP_TOKENS + T5_TOKENS
    both = patches + text
    # Multiply-adds in units of width^2: queries, keys, values 3, output 1, the feed-forward of 4 widths 8.
    # The last block updates only the image tokens: for the text it has queries, keys and values.
    layers = 12.0 * blocks * patches + 4.0 * second * patches + text * (12.0 * (blocks - 1) + 3)
    modulation = blocks * 6 + second * 3 + (blocks - 1) * 6 + 2 + 2  # for each norm, and the final one
    # Attention scores and their weighted sum.
    attention = 2.0 * width * (blocks * both**2 + second * patches**2)
    pooled, embedded = int(config["pooled_projection_dim"]), TIME_CHANNELS + width + width
    ends = (
        text * int(config["joint_attention_dim"]) * int(config["caption_projection_dim"])
        + patches * patch**2 * width * (int(config["in_channels"]) + int(config["out_channels"]))
        + width * (embedded + pooled)
    )
    multiply_adds = width**2 * (layers + modulation) + attention + ends
    adapted = 2.0 * width * (4 * blocks + 3 * blocks + (blocks - 1) + 4 * second)
    return Work(
        residual=0.0,
        transformer=float(blocks * both * width),
        positions=float(blocks * both),
        tflop=2 * multiply_adds / 1e12,
        adapted=adapted,
        sampled=12.0
        * both
        * width,  # per block: queries, keys, values, and the feed-forward's 4 widths, twice
        second_attention=float(second * patches * width),
    )
