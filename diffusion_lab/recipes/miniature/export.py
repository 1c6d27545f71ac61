"""Writing what was trained: half precision in the files, single precision when loaded with no options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffusion_lab.system import tensors
from diffusion_lab.system.atomic import write_json
from diffusion_lab.system.folders import replace_folder


def halve(folder: Path) -> None:
    """Rewrite every safetensors file below ``folder`` with its floating point tensors as float16."""
    import torch
    from safetensors.torch import load_file

    for path in sorted(folder.rglob("*.safetensors")):
        tensors.write(path, load_file(path), {"format": "pt"}, dtype=torch.float16)


def save_pipeline(pipe: Any, folder: Path) -> None:
    """The ordinary diffusers folder of a StableDiffusionPipeline."""
    with replace_folder(folder) as temporary:
        pipe.save_pretrained(temporary)
        halve(temporary)
        forget_origin(temporary)


def save_part(part: Any, folder: Path) -> None:
    """A network or tokenizer in its library's own format, the folder replaced in one step."""
    with replace_folder(folder) as temporary:
        part.save_pretrained(temporary)


def save_net(state: dict[str, Any], config: dict[str, Any], folder: Path) -> None:
    """model.safetensors (as it is) and config.json of a network of our own."""
    with replace_folder(folder) as temporary:
        tensors.write(temporary / "model.safetensors", state)
        write_json(temporary / "config.json", config)


def forget_origin(folder: Path) -> None:
    """Take out of every config.json below ``folder`` where its part was loaded from: a path of this machine."""
    for path in sorted(folder.rglob("config.json")):
        config = json.loads(path.read_text())
        if config.pop("_name_or_path", None) is not None:
            write_json(path, config)
