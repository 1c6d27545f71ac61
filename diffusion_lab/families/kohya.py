"""A LoRA of a U-Net and its text encoders under the names of kohya's scripts, which web UIs read.

diffusers' own converter does the renaming. It writes alpha = rank whatever it was, which is put right here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

UNET, FIRST, SECOND = "lora_unet_", "lora_te1_", "lora_te2_"
PARTS = {UNET: "unet", FIRST: "text_encoder", SECOND: "text_encoder_2"}


def renamed(weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """`lora_unet_`, `lora_te1_` and `lora_te2_` with the alpha that gives peft's scale.

    `settings`: peft's, `unet.r` and so on. None for DoRA, whose lengths (`dora_scale`) no one shape serves: diffusers'
    loader wants [out], ComfyUI [out, 1] or [1, in], where they are lengths of other vectors; and broadcasting makes
    wrong pictures of a wrong shape, without a word, wherever a layer is square.
    """
    import torch
    from diffusers.utils.state_dict_utils import convert_state_dict_to_kohya

    if any(settings.get(f"{part}.use_dora") for part in PARTS.values()):
        return None
    # transformers has done without the level `text_model` in CLIPTextModel, which kohya's names have.
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
    """What peft multiplies B A with: alpha / rank, or alpha / sqrt(rank) where rank-stabilised."""
    rank, alpha = float(settings[f"{part}.r"]), float(settings[f"{part}.lora_alpha"])
    return alpha / (math.sqrt(rank) if settings.get(f"{part}.use_rslora") else rank)
