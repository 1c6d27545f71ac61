"""Writing what was trained: half precision in the files, single precision when loaded with no options."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any) -> None:
    """Indented JSON, written beside and renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name("." + path.name)
    temporary.write_text(json.dumps(value, indent=2, default=float) + "\n")
    temporary.replace(path)


def halve(folder: Path) -> None:
    """Rewrite every safetensors file below ``folder`` with its float32 tensors as float16."""
    import torch
    from safetensors.torch import load_file, save_file

    for path in sorted(folder.rglob("*.safetensors")):
        tensors = load_file(path)
        rounded = {k: v.half() if v.dtype == torch.float32 else v for k, v in tensors.items()}
        save_file(rounded, path, metadata={"format": "pt"})


def save_pipeline(pipe: Any, folder: Path) -> None:
    """The ordinary diffusers folder of a StableDiffusionPipeline."""
    with beside(folder) as temporary:
        pipe.save_pretrained(temporary)
        halve(temporary)
        forget_origin(temporary)


def forget_origin(folder: Path) -> None:
    """Take out of every config.json below ``folder`` where its part was loaded from: a path of this machine."""
    for path in sorted(folder.rglob("config.json")):
        config = json.loads(path.read_text())
        if config.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


class beside:
    """Fill a folder beside and swap it in at the end; after an error the old one stays."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.temporary = folder, folder.with_name("." + folder.name)

    def __enter__(self) -> Path:
        shutil.rmtree(self.temporary, ignore_errors=True)
        self.temporary.mkdir(parents=True)
        return self.temporary

    def __exit__(self, error: object, *rest: object) -> None:
        if error is None:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.temporary.rename(self.folder)
        else:
            shutil.rmtree(self.temporary, ignore_errors=True)
