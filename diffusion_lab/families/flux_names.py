"""Key names of a FLUX.1 LoRA as in Black Forest Labs' own code, which kohya's scripts write.

In that code, queries, keys and values (and the MLP's first layer) are rows of one matrix.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from diffusion_lab.families import kohya

if TYPE_CHECKING:
    from torch import Tensor

MLP_RATIO = 4
# Their layer names, and the diffusers layers that each of them contains.
DOUBLE = {
    "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn_proj": ("attn.to_out.0",), "txt_attn_proj": ("attn.to_add_out",),
    "img_mlp_0": ("ff.net.0.proj",), "img_mlp_2": ("ff.net.2",),
    "txt_mlp_0": ("ff_context.net.0.proj",), "txt_mlp_2": ("ff_context.net.2",),
    "img_mod_lin": ("norm1.linear",), "txt_mod_lin": ("norm1_context.linear",),
}  # fmt: skip
SINGLE = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",), "modulation_lin": ("norm.linear",),
}  # fmt: skip
OUTSIDE = {
    "x_embedder": "img_in", "context_embedder": "txt_in",
    "time_text_embed.timestep_embedder.linear_1": "time_in_in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in_out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in_in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in_out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in_in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in_out_layer",
    "norm_out.linear": "final_layer_adaLN_modulation_1", "proj_out": "final_layer_linear",
}  # fmt: skip


def held_by(name: str) -> tuple[str, ...]:
    """diffusers' names of the layers that `name` contains, in order of its rows; (name,) if unknown."""
    flat = name.replace(".", "_")
    for ours, theirs in OUTSIDE.items():
        if flat == theirs:
            return (ours,)
    found = re.fullmatch(r"(double|single)_blocks_(\d+)_(.+)", flat)
    if found is None:
        return (name,)
    table, blocks = (
        (DOUBLE, "transformer_blocks") if found[1] == "double" else (SINGLE, "single_transformer_blocks")
    )
    return tuple(f"{blocks}.{found[2]}.{end}" for end in table.get(found[3], ())) or (name,)


def fused(weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """`weights` (diffusers' keys, peft's `settings`) with these names; None if some layers have none."""
    pairs = _pairs(weights, settings)
    if pairs is None:
        return None
    import torch

    found: dict[str, Tensor] = {}
    for name, members in _groups(pairs):
        down, up, scale = _fused([pairs.pop(member, None) for member in members], members)
        if "_final_layer_" in name:  # diffusers' loader ignores alpha here
            up, scale = up * scale, 1.0
        if name.endswith("_adaLN_modulation_1"):  # shift and scale; diffusers has scale and shift
            up = up.roll(len(up) // 2, 0)
        found[f"{name}.lora_down.weight"] = down.contiguous()
        found[f"{name}.lora_up.weight"] = up.contiguous()
        found[f"{name}.alpha"] = torch.tensor(scale * len(down))
    return None if pairs else found


# A LoRA's down [rank, in] and up [out, rank], and the factor of their product.
_Pair = tuple["Tensor", "Tensor", float]


def _pairs(weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> dict[str, _Pair] | None:
    """Pairs by the layer's name, including its part; None if there is anything other than pairs."""
    found = {}
    for key, down in weights.items():
        if not key.endswith(".lora_A.weight"):
            continue
        layer = key.removesuffix(".lora_A.weight")
        part = layer.partition(".")[0]
        scale = kohya.scale({**settings, f"{part}.r": len(down)}, part)
        found[layer] = down, weights[f"{layer}.lora_B.weight"], scale
    return found if 2 * len(found) == len(weights) else None


def _groups(layers: Iterable[str]) -> list[tuple[str, tuple[str, ...]]]:
    """kohya's name of each matrix that `layers` change, and diffusers' names of the layers in it."""
    blocks = {"transformer_blocks": ("double", DOUBLE), "single_transformer_blocks": ("single", SINGLE)}
    found: dict[str, tuple[str, ...]] = {}
    for layer in layers:
        part, _, name = layer.partition(".")
        if part == "text_encoder":
            name = name.removeprefix("text_model.")
            found[f"lora_te1_text_model_{name.replace('.', '_')}"] = (layer,)
        elif name in OUTSIDE:
            found[f"lora_unet_{OUTSIDE[name]}"] = (layer,)
        elif (split := name.split(".", 2))[0] in blocks:
            kind, number, end = split
            short, table = blocks[kind]
            for theirs, ends in table.items():
                if end in ends:
                    members = tuple(f"{part}.{kind}.{number}.{one}" for one in ends)
                    found[f"lora_unet_{short}_blocks_{number}_{theirs}"] = members
    return list(found.items())


def _fused(pairs: Sequence[_Pair | None], layers: Sequence[str]) -> _Pair:
    """Combines LoRAs of vertically stacked matrices exactly: downs are stacked, ups are block-diagonal.

    A layer without a LoRA gets zeros of the others' rank, so that all have the same share of the rank:
    diffusers' loader then splits the matrix into the original ones.
    """
    import torch

    there = [pair for pair in pairs if pair is not None]
    rank, (first, _, scale) = max(len(down) for down, _, _ in there), there[0]
    width = first.shape[1]
    downs, ups = [], []
    for pair, layer in zip(pairs, layers, strict=True):
        rows = width * (MLP_RATIO if layer.endswith("proj_mlp") else 1)
        down, up, own = pair or (first.new_zeros(0, width), first.new_zeros(rows, 0), scale)
        missing = rank - len(down)
        downs.append(torch.nn.functional.pad(down, (0, 0, 0, missing)))
        ups.append(torch.nn.functional.pad(up if own == scale else up * (own / scale), (0, missing)))
    return torch.cat(downs), torch.block_diag(*ups), scale  # type: ignore[no-untyped-call]
