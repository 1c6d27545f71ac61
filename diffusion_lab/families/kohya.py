"""Key names of kohya's scripts for a LoRA of a U-Net and its text encoders, as read by web UIs.

diffusers' own converter renames the keys, but always writes alpha = rank; this is corrected here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

UNET, FIRST, SECOND = "lora_unet_", "lora_te1_", "lora_te2_"
PARTS = {UNET: "unet", FIRST: "text_encoder", SECOND: "text_encoder_2"}


def renamed(weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """`lora_unet_`, `lora_te1_` and `lora_te2_` keys with the alpha that gives peft's scale.

    `settings`: peft's, with keys such as `unet.r`. None for DoRA, since no shape of its magnitudes
    (`dora_scale`) works everywhere: diffusers' loader expects [out], ComfyUI [out, 1] or [1, in], with
    different meanings; and with a wrong shape, broadcasting silently gives wrong images if a layer is square.
    """
    import torch
    from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya

    if any(settings.get(f"{part}.use_dora") for part in PARTS.values()):
        return None
    # transformers has removed the level `text_model` of CLIPTextModel, which kohya's names contain.
    named = {
        key.replace("text_encoder.encoder.", "text_encoder.text_model.encoder.", 1): value
        for key, value in weights.items()
    }
    found: dict[str, Tensor] = {
        key: value.contiguous() for key, value in convert_state_dict_to_kohya(named).items()
    }
    for key in [key for key in found if key.endswith(".alpha")]:
        part = next(part for prefix, part in PARTS.items() if key.startswith(prefix))
        rank = len(found[key.replace(".alpha", ".lora_down.weight")])
        found[key] = torch.tensor(scale(settings, part) * rank)
    return found


def scale(settings: Mapping[str, Any], part: str) -> float:
    """The factor by which peft multiplies B A: alpha / rank, or alpha / sqrt(rank) if rank-stabilised."""
    rank, alpha = float(settings[f"{part}.r"]), float(settings[f"{part}.lora_alpha"])
    return alpha / (math.sqrt(rank) if settings.get(f"{part}.use_rslora") else rank)


# --- SDXL: layer names of its original code -------------------------------------------------------------

RESNET = {
    "conv1": "in_layers_2", "conv2": "out_layers_3", "time_emb_proj": "emb_layers_1",
    "conv_shortcut": "skip_connection",
}  # fmt: skip
TOP = {
    "conv_in": "input_blocks_0_0", "conv_out": "out_2", "time_embedding_linear_1": "time_embed_0",
    "time_embedding_linear_2": "time_embed_2", "add_embedding_linear_1": "label_emb_0_0",
    "add_embedding_linear_2": "label_emb_0_2",
}  # fmt: skip
LAYERS = 2  # residual blocks per down block; up blocks have one more. The same in SD 1.x and 2.x
BLOCKS = re.compile(
    r"(down|up)_blocks_(\d+)_(resnets|attentions|downsamplers|upsamplers)_(\d+)_(.+)|mid_block_(resnets|attentions)_(\d+)_(.+)"
)


def original_name(layer: str) -> str:
    """The original code's name of a layer of SDXL's U-Net, given diffusers' name with `_` for `.`.

    `down_blocks_1_attentions_0_proj_in` gives `input_blocks_4_1_proj_in`. ValueError for a layer that SDXL
    does not have. kohya's scripts train the original code's U-Net and write its names, which A1111's web UI
    supports for every layer.
    """
    if layer in TOP:
        return TOP[layer]
    found = BLOCKS.fullmatch(layer)
    if found is None:
        raise ValueError(f"{layer} is no layer of Stable Diffusion XL's U-Net")
    if found[6] is not None:
        kind, number, rest = found[6], int(found[7]), found[8]
        place = 1 if kind == "attentions" else 2 * number
        return f"middle_block_{place}_{_within(kind, rest)}"
    way, block, kind, number, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
    first = block * (LAYERS + 1)
    if kind == "downsamplers":
        return f"input_blocks_{1 + first + LAYERS}_0_op"
    if kind == "upsamplers":  # only the blocks with attention, which precedes it, have one
        return f"output_blocks_{first + LAYERS}_2_conv"
    place = 1 if kind == "attentions" else 0
    blocks = f"input_blocks_{1 + first + number}" if way == "down" else f"output_blocks_{first + number}"
    return f"{blocks}_{place}_{_within(kind, rest)}"


def _within(kind: str, rest: str) -> str:
    return RESNET[rest] if kind == "resnets" else rest


def with_original_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`renamed`'s result for SDXL, with the original code's layer names for the U-Net."""
    found: dict[str, Tensor] = {}
    for key, value in weights.items():
        layer, dot, kind = key.partition(".")
        if layer.startswith(UNET):
            layer = UNET + original_name(layer.removeprefix(UNET))
        found[f"{layer}{dot}{kind}"] = value
    return found


ORIGINAL = re.compile(r"(input|output)_blocks_(\d+)_(\d+)_(.+)|middle_block_(\d+)_(.+)")


def diffusers_name(layer: str) -> str:
    """The inverse of `original_name`, also for Stable Diffusion 1.x and 2.x; other names are unchanged.

    `layer` may have dots instead of underscores.
    """
    flat = layer.replace(".", "_")
    tops = {original: ours for ours, original in TOP.items()}
    if flat in tops:
        return tops[flat]
    found = ORIGINAL.fullmatch(flat)
    if found is None:
        return layer
    if found[5] is not None:
        place = int(found[5])
        kind, number = ("attentions", 0) if place == 1 else ("resnets", place // 2)
        return f"mid_block_{kind}_{number}_{_back(kind, found[6])}"
    way, number, place, rest = found[1], int(found[2]), int(found[3]), found[4]
    block, layer_number = divmod(number - (way == "input"), LAYERS + 1)
    if rest == "op":
        return f"down_blocks_{block}_downsamplers_0_conv"
    if rest == "conv":
        return f"up_blocks_{block}_upsamplers_0_conv"
    kind = "attentions" if place == 1 else "resnets"
    return f"{'down' if way == 'input' else 'up'}_blocks_{block}_{kind}_{layer_number}_{_back(kind, rest)}"


def _back(kind: str, rest: str) -> str:
    names = {original: ours for ours, original in RESNET.items()}
    return names.get(rest, rest) if kind == "resnets" else rest
