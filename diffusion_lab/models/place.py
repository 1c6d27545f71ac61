"""Location of a model: a folder, a single file, the hub's cache, or the hub itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from diffusion_lab.miniature.shipped import MINIATURES, shipped_folder
from diffusion_lab.models.folder import check_folder
from diffusion_lab.models.hub import HUB_ID, cached_model
from diffusion_lab.models.single_file import check_file, config_folder
from diffusion_lab.records import UserError
from diffusion_lab.values.checks import closest

if TYPE_CHECKING:
    from diffusion_lab.config.schema import Model


def check_model(model: Model, warnings: list[str]) -> Path | None:
    """UserError if the model lacks a part. Returns the folder of its configs; None if only on the hub."""
    place = model_folder(model)
    if place is not None and place.is_dir():
        check_folder(place, model)
        return place
    if place is not None:
        check_file(place, model)
        configs = config_folder(model)
        if configs is None:
            warnings.append("model.config names no folder: the model's configs may be downloaded (kilobytes)")
        return configs
    if model.local_files_only:
        raise UserError(
            f"model.path={model.path}: it is not whole in the hub's cache on this machine; set "
            "model.local_files_only=false to fetch it"
        )
    warnings.append(f"model.path={model.path} is treated as a hub id: it will be downloaded (gigabytes)")
    return None


def model_folder(model: Model) -> Path | None:
    """The model's diffusers folder or single file, or for a hub id its folder in the hub's cache.

    Returns None if the hub's cache does not contain the complete model. UserError if it is none of these.
    """
    if model.path in MINIATURES:
        return shipped_folder(model.path)
    folder = Path(model.path).expanduser()
    if folder.exists():
        return folder
    if folder.suffix in (".safetensors", ".ckpt"):
        raise UserError(f"model.path={model.path}: there is no such file")
    if not HUB_ID.fullmatch(model.path):
        raise UserError(
            f"model.path={model.path}: there is no such folder, nor is it a hub id (owner/name)"
            f"{closest(model.path, MINIATURES)}"
        )
    return cached_model(model)
