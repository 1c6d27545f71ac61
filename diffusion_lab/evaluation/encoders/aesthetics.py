"""The aesthetics head: linear layers on CLIP's image embedding, read from a file.

Reads files of `write_head` (the header names the activation between the layers and the CLIP used in training)
and the two published families: LAION-AI/aesthetic-predictor (one linear layer) and
christophschuhmann/improved-aesthetic-predictor (five linear layers with dropout and **no** activation between
them, trained on SAC, Logos and AVA). The last two are loaded with a warning: see `LEAK`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from diffusion_lab.evaluation.encoders.weights import PUBLISHED, module_digest, read_metadata, read_weights
from diffusion_lab.records import UserError

log = logging.getLogger(__name__)

_KEY = "metrics.aesthetics_weights"
FORMAT = "diffusion_lab aesthetics head 1"  # in the header of our own files
LAYOUTS: Mapping[tuple[int, ...], str] = {
    (768, 1): "LAION-AI/aesthetic-predictor, ViT-L/14",
    (512, 1): "LAION-AI/aesthetic-predictor, ViT-B",
    (768, 1024, 128, 64, 16, 1): "improved-aesthetic-predictor, ViT-L/14",
}
LEAK = (
    "Stable Diffusion was trained on LAION images selected with such a predictor, so its scores may be biased "
    "towards Stable Diffusion; a head trained on other ratings, such as AVA's, avoids this"
)
_ACTIVATIONS = {"none": nn.Identity, "gelu": nn.GELU}


class AestheticsHead:
    """CLIP image embeddings -> ratings, 0 to 10. ``clip``: the identity it was trained on, "" if unknown."""

    name = "aesthetics-head"
    preprocessing = "unit-length CLIP image embedding; clamped to 0..10"

    def __init__(self, net: nn.Module, *, clip: str = "", device: str = "cpu") -> None:
        self._net = net.to(device).eval()
        self.clip = clip
        self.device = torch.device(device)
        self.version = module_digest(net)

    @classmethod
    def load(cls, weights: str, device: str = "cpu") -> Self:
        """Reads a file (.safetensors, or .pt with tensors only), which also determines the layer sizes.

        "laion": the published head, which has been fetched before (`plan/fetch.py`).
        """
        path = published_head() if weights == PUBLISHED else Path(weights).expanduser()
        net, header = read_head(path), read_metadata(path)
        published = LAYOUTS.get(layout(net))
        if published and header.get("format") != FORMAT:
            log.warning("%s: has the layers of %s. %s", _KEY, published, LEAK)
        return cls(net, clip=header.get("clip", ""), device=device)

    @torch.no_grad()
    def score(self, clip_image_embeddings: Tensor) -> Tensor:
        """float [n, d] of unit norm -> float32 [n] in 0..10, on the CPU."""
        inputs = clip_image_embeddings.float().to(self.device)
        width = self._net[0].in_features  # type: ignore[index]
        if inputs.shape[1] != width:
            raise UserError(
                f"{_KEY} expects embeddings of width {width}, but metrics.clip_model gives {inputs.shape[1]}: "
                "the head was trained for another CLIP"
            )
        rating: Tensor = self._net(inputs)[:, 0].clamp(0, 10).cpu()
        return rating

    def check_clip(self, identity: str) -> None:
        """UserError if it was trained on another CLIP than ``identity`` (name and weights' hash)."""
        if self.clip and self.clip != identity:
            raise UserError(
                f"{_KEY} was trained on {self.clip}, but the metrics use {identity}: train a head on that CLIP"
            )


def published_head() -> Path:
    """The file of LAION's head in the hub's cache. UserError where it is not there."""
    from diffusion_lab.evaluation.encoders.published import head
    from diffusion_lab.models.hub import cached

    file = head()
    path = cached(file.repo, file.name, file.revision)
    if path is None:
        raise UserError(f"{file.key}: {file.name} of {file.source} is not on this machine; {file.by_hand}")
    return path


def layout(net: nn.Module) -> tuple[int, ...]:
    """(768, 1024, 128, 64, 16, 1): the widths of a chain of linear layers."""
    layers = [layer for layer in net.modules() if isinstance(layer, nn.Linear)]
    return (layers[0].in_features, *(layer.out_features for layer in layers))


def read_head(path: Path) -> nn.Sequential:
    """The chain of linear layers in ``path``, in the order of the numbers in their names, and the activation between
    them according to the header.
    """
    tensors = read_weights(path, _KEY)
    names = [name for name in tensors if re.fullmatch(r"(.*\.)?weight", name) and tensors[name].ndim == 2]
    names.sort(key=lambda name: [int(number) for number in re.findall(r"\d+", name)])
    used = {*names, *(name.removesuffix("weight") + "bias" for name in names)}
    widths = [(tensors[name].shape[1], tensors[name].shape[0]) for name in names]
    chained = all(before[1] == after[0] for before, after in pairwise(widths))
    if not names or used != set(tensors) or not chained or widths[-1][1] != 1:
        raise UserError(f"{_KEY}: {path} is not a chain of linear layers (weight and bias) with one output")
    between = read_metadata(path).get("activation", "none")
    if between not in _ACTIVATIONS:
        raise UserError(f"{_KEY}: {path} needs the activation {between!r}, which is not supported")
    layers: list[nn.Module] = []
    for name, (inputs, outputs) in zip(names, widths, strict=True):
        layer = nn.Linear(inputs, outputs)
        layer.load_state_dict(
            {"weight": tensors[name], "bias": tensors[name.removesuffix("weight") + "bias"]}
        )
        layers.append(layer)
        if between != "none" and name != names[-1]:
            layers.append(_ACTIVATIONS[between]())
    return nn.Sequential(*layers).float()


def write_head(
    net: nn.Sequential, path: Path, *, activation: str, clip: str, notes: Mapping[str, str]
) -> None:
    """A chain of linear layers (activations between are named, not stored) as safetensors."""
    from diffusion_lab.system import tensors

    layers = [layer for layer in net if isinstance(layer, nn.Linear)]
    weights = {
        f"layers.{number}.{name}": value
        for number, layer in enumerate(layers)
        for name, value in layer.state_dict().items()
    }
    header = {**notes, "format": FORMAT, "activation": activation, "clip": clip}
    tensors.write(path, weights, header)
