"""The full-size aesthetics head: linear layers on CLIP's image embedding, read from a file.

Fits the two published families on ViT-L/14: LAION-AI/aesthetic-predictor (one linear layer) and
christophschuhmann/improved-aesthetic-predictor (five linear layers with dropout and **no** activation
between them, trained on SAC, Logos and AVA). Ratings from LAION leak where the diffusion model was trained
on LAION.
"""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from diffusion_lab.encoders.weights import fingerprint, read_tensors
from diffusion_lab.interfaces import UserError

_KEY = "metrics.aesthetics_weights"


class AestheticsHead:
    """CLIP image embeddings -> ratings, 0 to 10."""

    name = "aesthetics-head"
    preprocessing = "unit-length CLIP image embedding; clamped to 0..10"

    def __init__(self, net: nn.Module, *, device: str = "cpu") -> None:
        self._net = net.to(device).eval()
        self.device = torch.device(device)
        self.version = fingerprint(net)

    @classmethod
    def load(cls, weights: str, device: str = "cpu") -> Self:
        """From a file (.safetensors, or .pt with tensors only), which also fixes the layers' sizes."""
        return cls(read_head(Path(weights).expanduser()), device=device)

    @torch.no_grad()
    def score(self, clip_image_embeddings: Tensor) -> Tensor:
        """float [n, d] of unit norm -> float32 [n] in 0..10, on the CPU."""
        inputs = clip_image_embeddings.float().to(self.device)
        width = self._net[0].in_features  # type: ignore[index]
        if inputs.shape[1] != width:
            raise UserError(
                f"{_KEY} expects embeddings of {width} numbers, metrics.clip_model gives {inputs.shape[1]}: "
                "the head belongs to another CLIP"
            )
        rating: Tensor = self._net(inputs)[:, 0].clamp(0, 10).cpu()
        return rating


def read_head(path: Path) -> nn.Sequential:
    """The chain of linear layers in ``path``, in the order of the numbers in their names."""
    tensors = read_tensors(path, _KEY)
    names = [name for name in tensors if re.fullmatch(r"(.*\.)?weight", name) and tensors[name].ndim == 2]
    names.sort(key=lambda name: [int(number) for number in re.findall(r"\d+", name)])
    used = {*names, *(name.removesuffix("weight") + "bias" for name in names)}
    widths = [(tensors[name].shape[1], tensors[name].shape[0]) for name in names]
    chained = all(before[1] == after[0] for before, after in pairwise(widths))
    if not names or used != set(tensors) or not chained or widths[-1][1] != 1:
        raise UserError(
            f"{_KEY}: {path} is not a chain of linear layers (weight and bias) that ends in one number"
        )
    layers: list[nn.Module] = []
    for name, (inputs, outputs) in zip(names, widths, strict=True):
        layer = nn.Linear(inputs, outputs)
        layer.load_state_dict(
            {"weight": tensors[name], "bias": tensors[name.removesuffix("weight") + "bias"]}
        )
        layers.append(layer)
    return nn.Sequential(*layers).float()
