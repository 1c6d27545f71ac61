"""Key names of a Stable Diffusion 3 LoRA in OneTrainer and in Stability AI's own code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diffusion_lab.families.kohya import scale

if TYPE_CHECKING:
    from torch import Tensor

PREFIXES = {"transformer": "lora_transformer", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}

# Stability AI's layer names, which kohya's scripts write, and the diffusers layers that each of them
# contains: queries, keys and values are rows of one matrix there.
BLOCKS = {
    "x_block_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"), "x_block_attn_proj": ("attn.to_out.0",),
    "x_block_attn2_qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"), "x_block_attn2_proj": ("attn2.to_out.0",),
    "x_block_mlp_fc1": ("ff.net.0.proj",), "x_block_mlp_fc2": ("ff.net.2",),
    "x_block_adaLN_modulation_1": ("norm1.linear",),
    "context_block_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "context_block_attn_proj": ("attn.to_add_out",),
    "context_block_mlp_fc1": ("ff_context.net.0.proj",), "context_block_mlp_fc2": ("ff_context.net.2",),
    "context_block_adaLN_modulation_1": ("norm1_context.linear",),
}  # fmt: skip
OUTSIDE = {
    "x_embedder_proj": "pos_embed.proj",
    "t_embedder_mlp_0": "time_text_embed.timestep_embedder.linear_1",
    "t_embedder_mlp_2": "time_text_embed.timestep_embedder.linear_2",
    "y_embedder_mlp_0": "time_text_embed.text_embedder.linear_1",
    "y_embedder_mlp_2": "time_text_embed.text_embedder.linear_2",
    "final_layer_adaLN_modulation_1": "norm_out.linear", "final_layer_linear": "proj_out",
}  # fmt: skip


def held_by(name: str) -> tuple[str, ...]:
    """diffusers' names of the layers that `name` contains, in order of its rows; (name,) if unknown."""
    flat = name.replace(".", "_")
    if flat in OUTSIDE:
        return (OUTSIDE[flat],)
    found = re.fullmatch(r"joint_blocks_(\d+)_(.+)", flat)
    ends = BLOCKS.get(found[2], ()) if found is not None else ()
    return tuple(f"transformer_blocks.{found[1]}.{end}" for end in ends) if found and ends else (name,)


def renamed(weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """Renames diffusers' keys, with peft's `settings`, to OneTrainer's; None if there are not only pairs."""
    import torch

    found: dict[str, Tensor] = {}
    for key, value in weights.items():
        part, _, rest = key.partition(".")
        layer, _, side = rest.removesuffix(".weight").rpartition(".")
        if part not in PREFIXES or side not in ("lora_A", "lora_B"):
            return None
        name = f"{PREFIXES[part]}_{layer.replace('.', '_')}"
        found[f"{name}.lora_{'down' if side == 'lora_A' else 'up'}.weight"] = value.contiguous()
        if side == "lora_A":
            found[f"{name}.alpha"] = torch.tensor(scale(settings, part) * len(value))
    return found
