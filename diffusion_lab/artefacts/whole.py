"""Loads whole fine-tuned networks (DreamBooth) into a pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_lab.artefacts.attach import refuse_quantised
from diffusion_lab.artefacts.made_for import no_fit
from diffusion_lab.models.folder import shards
from diffusion_lab.records import UserError
from diffusion_lab.system.readers import read_tensors

if TYPE_CHECKING:
    from torch import Tensor

AGAIN = "copy it again"
_BESIDE = "embeddings.position_ids"  # of CLIP: older versions of transformers saved it with the weights


def put(network: Any, folder: Path, weight: float, where: str) -> None:
    """Interpolates linearly between the network's weights (0) and the folder's (1).

    UserError for another network.
    """
    import torch

    refuse_quantised(network, where)
    files = weight_files(folder, where)
    weights = {key: value for file in files for key, value in read_tensors(file, where).items()}
    own = network.state_dict()
    if not any(key.startswith("text_model.") for key in own):  # a level that transformers removed
        weights = {key.removeprefix("text_model."): value for key, value in weights.items()}
    weights = {
        key: value
        for key, value in weights.items()
        if key in own or key.removeprefix("text_model.") != _BESIDE
    }
    if weight != 1:
        weights = {
            key: torch.lerp(own[key].float(), value.float().to(own[key].device), weight)
            if key in own and own[key].shape == value.shape and value.is_floating_point()
            else value
            for key, value in weights.items()
        }
    load_state(network, weights, where)


def load_state(network: Any, weights: Mapping[str, Tensor], where: str) -> None:
    """Loads exactly the network's tensors. UserError with the first one that differs, and the sizes."""
    own = network.state_dict()
    for key, value in weights.items():
        if key in own and own[key].shape != value.shape:
            raise no_fit(where, f"{key} is {list(value.shape)}, and {list(own[key].shape)} is needed")
    there = {own[key].data_ptr() for key in weights if key in own}
    missing = {
        key for key in own if key not in weights and own[key].data_ptr() not in there
    }  # tied: T5's embedding
    for keys, what in ((missing, "lacks"), (set(weights) - set(own), "has beside the model's")):
        if keys:
            raise no_fit(where, f"it {what} {len(keys)} tensors, such as {min(keys)}")
    network.load_state_dict(weights, strict=False)


def weight_files(folder: Path, where: str) -> list[Path]:
    """The safetensors files of one network: a single file, or the shards of the index.

    UserError if incomplete.
    """
    for stem in ("diffusion_pytorch_model", "model"):
        index = folder / f"{stem}.safetensors.index.json"
        if (folder / f"{stem}.safetensors").exists():
            return [folder / f"{stem}.safetensors"]
        if index.exists():
            return [folder / name for name in shards(index, where)]
    found = sorted(folder.glob("*.safetensors"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise UserError(
            f"{where}: one .safetensors file of weights is needed there, and there is {names}; {AGAIN}"
        )
    return found
