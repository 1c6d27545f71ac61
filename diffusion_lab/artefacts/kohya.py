"""Exports a LoRA with the key names of kohya's scripts, which A1111's web UI, ComfyUI and others read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusion_lab.families.family import Family

SOURCE_NAME = "pytorch_lora_weights.safetensors"  # diffusers' name, also used here
FILE_NAME = "lora_kohya.safetensors"


def export(family: Family, source: Path, target: Path) -> list[Path]:
    """Converts diffusers' LoRA file (with peft's settings in its header); writes `target` atomically.

    Returns the file written; an empty list if other tools read no such names for the family, or for DoRA.
    """
    from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
    from safetensors import safe_open
    from safetensors.torch import load_file

    from diffusion_lab.system import tensors

    with safe_open(source, framework="pt") as file:
        header = dict(file.metadata() or {})
    settings = json.loads(header.pop(LORA_ADAPTER_METADATA_KEY))
    weights = family.kohya(load_file(source), settings)
    if weights is None:
        return []
    ranks = {len(value) for key, value in weights.items() if key.endswith("lora_down.weight")}
    known = {
        "ss_network_module": "networks.lora",  # displayed and sorted by in other tools
        "ss_network_dim": str(max(ranks)),
        "ss_network_alpha": str(next(float(v) for k, v in weights.items() if k.endswith(".alpha"))),
        "ss_base_model_version": header.get("base_model", ""),
        "ss_steps": header.get("step", ""),
    }
    tensors.write(target, weights, {**header, **known})
    return [target]
