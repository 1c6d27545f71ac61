"""Weights files that a person names: safetensors, or a pickle of tensors and nothing else."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion_lab.interfaces import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn


def read_tensors(path: Path, key: str) -> dict[str, Tensor]:
    """The tensors in ``path`` (.safetensors, or .pt and .pth read with `weights_only`); UserError names
    ``key``.
    """
    import torch
    from safetensors.torch import load_file

    if not path.is_file():
        raise UserError(f"{key}: there is no file {path}")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # safetensors, zipfile and pickle each raise their own
        raise UserError(f"{key}: {path} cannot be read as weights ({error})") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(
        isinstance(value, torch.Tensor) for value in content.values()
    ):
        raise UserError(f"{key}: {path} does not hold a table of tensors")
    return content


def fingerprint(module: nn.Module) -> str:
    """The first 12 hex digits of a SHA-256 over names, types, shapes and values: the same for any file
    format.
    """
    import torch

    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]
