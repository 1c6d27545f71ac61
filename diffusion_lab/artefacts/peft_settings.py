"""peft's settings in the header of diffusers' LoRA files: the alpha of layers that have none of their own."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diffusion_lab.artefacts.made_for import OTHER_FILE
from diffusion_lab.records import UserError

if TYPE_CHECKING:
    from diffusion_lab.system.readers import Header

SETTINGS = "lora_adapter_metadata"  # diffusers' name for the settings
NETWORKS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")


def read(header: Header, where: str) -> Mapping[str, Any]:
    """The settings by keys such as `unet.r`; empty if the file has none."""
    text = header.metadata.get(SETTINGS)
    if text is None:
        return {}
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: {SETTINGS} in its header is not JSON ({error}); {OTHER_FILE}") from error
    if not isinstance(found, dict):
        raise UserError(f"{where}: {SETTINGS} in its header is not an object; {OTHER_FILE}")
    for part in NETWORKS:
        alpha, patterns = found.get(f"{part}.lora_alpha", 1), found.get(f"{part}.alpha_pattern") or {}
        is_mapping = isinstance(patterns, dict)
        alphas = [alpha, *patterns.values()] if is_mapping else [alpha]
        switches = [found.get(f"{part}.{name}") for name in ("use_rslora", "use_dora")]
        if not (
            is_mapping
            and all(map(_is_finite, alphas))
            and all(map(_is_pattern, patterns))
            and all(switch in (None, True, False) for switch in switches)
            and not isinstance(found.get(part), dict)
        ):
            raise UserError(
                f"{where}: {SETTINGS} in its header cannot be used: {part}.lora_alpha and the values of "
                f"{part}.alpha_pattern must be numbers, its keys names of layers, use_rslora and use_dora true or "
                f"false; {OTHER_FILE}"
            )
    return found


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def add_alpha(tensors: dict[str, Any], settings: Mapping[str, Any], part: str, name: str) -> bool:
    """Adds the layer's alpha from peft's settings if it has none; returns whether it is rank-stabilised.

    Patterns are matched as in peft: a layer's name or its end.
    """
    import torch

    if f"{part}.lora_alpha" not in settings or "alpha" in tensors:
        return False
    alpha = settings[f"{part}.lora_alpha"]
    for pattern, value in (settings.get(f"{part}.alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            alpha = value
            break
    tensors["alpha"] = torch.tensor(float(alpha))
    return bool(settings.get(f"{part}.use_rslora"))
