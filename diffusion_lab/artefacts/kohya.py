"""A LoRA under the names that kohya's scripts gave the world and A1111's web UI and its relatives read.

diffusers' own converter does the renaming. It writes alpha = rank whatever it was, and `lora_te1_`, where the
tools for Stable Diffusion 1.x and 2.x read `lora_te_`: both are put right here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

SOURCE_NAME = "pytorch_lora_weights.safetensors"  # diffusers' name, and ours
FILE_NAME = "lora_kohya.safetensors"


def export(source: Path, target: Path) -> list[Path]:
    """Writes `target` from diffusers' file of a LoRA (with peft's settings in its header); whole or not at all.

    Returns the file written. None for DoRA, whose lengths (`dora_scale`) no one shape serves: diffusers' loader wants
    [out], ComfyUI [out, 1] or [1, in], where they are lengths of other vectors; and broadcasting makes wrong pictures
    of a wrong shape, without a word, wherever a layer is square. Its own file is diffusers' and is read there.
    """
    from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
    from safetensors import safe_open
    from safetensors.torch import load_file

    from diffusion_lab.system import tensors

    with safe_open(source, framework="pt") as file:
        header = dict(file.metadata() or {})
    settings = json.loads(header.pop(LORA_ADAPTER_METADATA_KEY))
    if settings.get("unet.use_dora"):
        return []
    weights = rename(load_file(source), settings)
    ranks = {len(value) for key, value in weights.items() if key.endswith("lora_down.weight")}
    known = {
        "ss_network_module": "networks.lora",  # what the tools show and sort by
        "ss_network_dim": str(max(ranks)),
        "ss_network_alpha": str(next(float(v) for k, v in weights.items() if k.endswith(".alpha"))),
        "ss_base_model_version": header.get("base_model", ""),
        "ss_steps": header.get("step", ""),
    }
    tensors.write(target, weights, {**header, **known})
    return [target]


def rename(weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Tensor]:
    """kohya's names, with the alpha that gives peft's scale. `settings`: peft's, `unet.r` and so on."""
    import torch
    from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya

    # transformers has done without the level `text_model`, which kohya's names have.
    named = {
        key.replace("text_encoder.encoder.", "text_encoder.text_model.encoder.", 1): value
        for key, value in weights.items()
    }
    found: dict[str, Tensor] = {}
    for key, value in convert_state_dict_to_kohya(named).items():
        own = key.replace("lora_te1_", "lora_te_", 1)
        found[own] = value.contiguous()
    for key in [key for key in found if key.endswith(".alpha")]:
        part = "text_encoder" if key.startswith("lora_te_") else "unet"
        rank = len(found[key.replace(".alpha", ".lora_down.weight")])
        found[key] = torch.tensor(scale(settings, part) * rank)
    return found


def scale(settings: Mapping[str, Any], part: str) -> float:
    """What peft multiplies B A with: alpha / rank, or alpha / sqrt(rank) where rank-stabilised."""
    rank, alpha = float(settings[f"{part}.r"]), float(settings[f"{part}.lora_alpha"])
    return alpha / (math.sqrt(rank) if settings.get(f"{part}.use_rslora") else rank)
