"""Saves whole networks and pipelines in the format of their libraries, with this package's tensor writer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_lab.system import tensors

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline
    from torch import Tensor, nn

DIFFUSERS_NAME, TRANSFORMERS_NAME = "diffusion_pytorch_model.safetensors", "model.safetensors"


def file_name(network: nn.Module) -> str:
    """The name of the weights file in the network's own library."""
    return TRANSFORMERS_NAME if _is_transformers(network) else DIFFUSERS_NAME


def named_tensors(network: nn.Module) -> dict[str, Tensor]:
    """The network's own tensors (no copies), by the names that its library's `save_pretrained` writes."""
    weights: dict[str, Tensor] = network.state_dict()
    if _is_transformers(network):
        from transformers.core_model_loading import revert_weight_conversion

        weights = revert_weight_conversion(network, weights)
    return weights


def save_network(
    network: nn.Module, folder: Path, *, dtype: torch.dtype | None = None, weights: bool = True
) -> None:
    """Writes what `network.save_pretrained(folder)` would: config.json, and with `weights` the tensors.

    `dtype`: the format in which floating-point numbers are written. Raises UserError like
    `atomic.write_bytes`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    module: Any = network
    if _is_transformers(network):
        config = copy.deepcopy(module.config)
        config.dtype = str(dtype or module.dtype).removeprefix("torch.")
        config.architectures = [type(network).__name__]
        config.save_pretrained(folder)
    else:
        module.save_config(folder)
    if weights:
        tensors.write(folder / file_name(network), named_tensors(network), {"format": "pt"}, dtype=dtype)


def save_pipeline(pipe: StableDiffusionPipeline, folder: Path, *, dtype: torch.dtype | None = None) -> None:
    """Writes what `pipe.save_pretrained(folder)` would, except the parts that already exist in `folder`.

    The tokenizer is written as it was loaded: using it changes its padding and truncation settings, so that
    its file would depend on what was tokenized last.
    """
    for name in pipe.components:
        part: Any = getattr(pipe, name)
        if part is None or (folder / name).is_dir():
            continue
        if name == "tokenizer":
            part = copy.deepcopy(part)
            part.backend_tokenizer.no_padding()
            part.backend_tokenizer.no_truncation()
        if hasattr(part, "state_dict"):
            save_network(part, folder / name, dtype=dtype)
        else:
            part.save_pretrained(folder / name)
    pipe.save_config(folder)


def _is_transformers(network: nn.Module) -> bool:
    from transformers import PreTrainedModel

    return isinstance(network, PreTrainedModel)
