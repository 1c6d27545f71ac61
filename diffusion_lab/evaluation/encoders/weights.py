"""Weights files given in the configuration: safetensors, or a pickle that contains only tensors."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion_lab.records import UserError
from diffusion_lab.system import readers

if TYPE_CHECKING:
    from torch import Tensor, nn


INCEPTION_FILES = ("pt_inception-2015-12-05-6726825d.pth", "inception_v3_google-0cc3c7bd.pth")
"""As published by pytorch-fid and torchvision; the first is the one used in the literature."""


PUBLISHED, PUBLISHED_WIDTH = "laion", 768  # the name of the published aesthetics head, and its input width


def find_inception(weights: str | None) -> Path:
    """The file of `metrics.inception_weights`, or one in torch's cache. Imports nothing slow.

    UserError that says which file is needed and where.
    """
    if weights is not None:
        path = Path(weights).expanduser()
        if not path.is_file():
            raise UserError(f"metrics.inception_weights={weights}: there is no such file")
        return path
    home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "torch"
    folder = Path(home).expanduser() / "hub" / "checkpoints"
    for name in INCEPTION_FILES:
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"metrics.inception_weights is not set: fid and kid need Inception's weights. Download {INCEPTION_FILES[0]} "
        "from the releases of mseitzer/pytorch-fid and set metrics.inception_weights to that file, or put it "
        f"into {folder}; fid_clip and kid_clip do not need it"
    )


def why_not_published(clip_model: str, clip_weights: str) -> str:
    """Why the published head does not fit this CLIP, or "" if it does. It was trained on OpenAI's ViT-L/14.

    Weights in a file and models in a folder are accepted if their width matches. Uses no network and does not
    import torch.
    """
    name = clip_model.replace("/", "-")
    if name.removesuffix("-quickgelu") == "ViT-L-14":
        fits = clip_weights == "openai" or Path(clip_weights).expanduser().is_file()
        return "" if fits else f"metrics.clip_weights={clip_weights} are not OpenAI's weights"
    if clip_model == "openai/clip-vit-large-patch14":
        return ""
    folder = Path(clip_model).expanduser()
    if folder.is_dir():
        try:
            width = json.loads((folder / "config.json").read_text("utf-8")).get("projection_dim")
        except (OSError, ValueError, AttributeError):
            width = None
        return (
            ""
            if width == PUBLISHED_WIDTH
            else f"metrics.clip_model={clip_model} has embeddings of width {width}, not 768"
        )
    return f"metrics.clip_model={clip_model} is another model"


def read_weights(path: Path, key: str) -> dict[str, Tensor]:
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
    except Exception as error:  # safetensors, zipfile and pickle raise different errors
        raise UserError(f"{key}: {path} cannot be read as weights ({error})") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(
        isinstance(value, torch.Tensor) for value in content.values()
    ):
        raise UserError(f"{key}: {path} does not contain a dict of tensors")
    return content


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file; empty for other files."""
    if path.suffix != ".safetensors":
        return {}
    return dict(readers.read_header(path, "the weights").metadata)


def module_digest(module: nn.Module) -> str:
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


def loaded_digest(module: nn.Module, name: str, files: str | None) -> str:
    """`module_digest` of a network as it was loaded, computed once for the same files.

    ``files``: their `models.fingerprints.stamps`, taken before loading; None: computed now.
    """
    from diffusion_lab.models.fingerprints import remembered
    from diffusion_lab.system.provenance import versions

    libraries = {one: versions().get(one) for one in ("torch", "transformers", "open_clip_torch")}
    facts = {"encoder": name, "class": type(module).__qualname__, "files": files, "libraries": libraries}
    source = None if files is None else json.dumps(facts, sort_keys=True)
    return remembered(source, lambda: module_digest(module))
