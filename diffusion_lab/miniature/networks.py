"""The miniature's own networks (face embedder, CLIP, aesthetics head) and how they are read from the shipped weights."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIDE = 64  # pixels of the world's images
FACE_SIZE = 48  # pixels of a face's crop
DIMENSION = 128  # of the embeddings of faces, images and texts


class Block(nn.Module):
    """A residual block of two 3x3 convolutions."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.two = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm_one, self.norm_two = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.short = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """float [n, inputs, h, w] -> [n, outputs, h / stride, w / stride]."""
        y = self.norm_two(self.two(F.relu(self.norm_one(self.one(x)))))
        return F.relu(y + self.short(x))


class FaceNet(nn.Module):
    """A small ResNet; the whole last map is used, since where features sit matters for aligned crops."""

    def __init__(
        self, size: int = FACE_SIZE, dimension: int = DIMENSION, widths: tuple[int, ...] = (32, 64, 96, 128)
    ) -> None:
        super().__init__()
        self.dimension = dimension
        self.stem = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        steps = zip(widths, (*widths[1:], widths[-1]), strict=True)
        self.blocks = nn.Sequential(*[Block(a, b, 2) for a, b in steps])
        side = math.ceil(size / 2 ** len(widths))
        self.out = nn.Linear(widths[-1] * side * side, dimension)
        self.norm = nn.BatchNorm1d(dimension)

    def forward(self, crops: Tensor) -> Tensor:
        """float [n, 3, size, size] in -1..1 -> unit vectors [n, dimension]."""
        features: Tensor = self.blocks(F.relu(self.stem(crops))).flatten(1)
        return F.normalize(self.norm(self.out(features).float()), dim=-1)


def load_face_net(folder: Path) -> tuple[FaceNet, dict[str, Any]]:
    """The net saved in ``folder`` and its configuration (size, margin, dimension)."""
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text())
    net = FaceNet(config["size"], config["dimension"])
    net.load_state_dict(load_file(folder / "model.safetensors"))
    return net.eval(), config


class ImageTower(nn.Module):
    """A small ResNet on 64-pixel images; the whole last map is used, since where things sit matters for a pose.

    Not a ViT as in CLIP: at 24,000 pictures and minutes of training its patches never find an eye or a mouth.
    """

    widths = (24, 48, 96, 128, 192)

    def __init__(self, dimension: int = DIMENSION) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, self.widths[0], 3, 1, 1, bias=False)
        self.blocks = nn.Sequential(
            *[Block(a, b, 2) for a, b in zip(self.widths, self.widths[1:], strict=False)]
        )
        self.out = nn.Linear(self.widths[-1] * (SIDE // 2 ** (len(self.widths) - 1)) ** 2, dimension)

    def forward(self, pixels: Tensor) -> Tensor:
        """float [n, 3, 64, 64] in -1..1 -> [n, dimension]."""
        out: Tensor = self.out(self.maps(pixels)[-1].flatten(1))
        return out

    def maps(self, pixels: Tensor) -> list[Tensor]:
        """float [n, 3, 64, 64] in -1..1 -> the maps after the stem and after each block, fine to coarse."""
        found = [F.relu(self.stem(pixels))]
        for block in self.blocks:
            found.append(block(found[-1]))
        return found


class SmallClip(nn.Module):
    """Two towers and a temperature: images and texts in one space (Radford et al. 2021)."""

    def __init__(self, text: Any) -> None:
        super().__init__()
        self.text = text  # transformers' CLIPTextModelWithProjection, Stable Diffusion's kind of text encoder
        self.image = ImageTower(int(text.config.projection_dim))
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())


def load_clip(folder: Path) -> SmallClip:
    """The model saved in ``folder``, float32, eval mode."""
    from safetensors.torch import load_file
    from transformers import CLIPTextModelWithProjection

    model = SmallClip(CLIPTextModelWithProjection.from_pretrained(folder / "text", dtype=torch.float32))
    rest = {name: value.float() if value.is_floating_point() else value
            for name, value in load_file(folder / "model.safetensors").items()}  # fmt: skip
    unread = model.load_state_dict(rest, strict=False)
    if unread.unexpected_keys or any(not name.startswith("text.") for name in unread.missing_keys):
        raise ValueError(f"{folder} holds another model: {unread}")
    return model.eval()


def normalise(pixels: Tensor) -> Tensor:
    """uint8 [n, 3, 64, 64] -> float in -1..1."""
    return pixels.float() / 127.5 - 1


def image_features(model: SmallClip, pixels: Tensor) -> Tensor:
    """float [n, 3, 64, 64] -> unit vectors [n, d]."""
    return F.normalize(model.image(pixels).float(), dim=-1)


def text_features(model: SmallClip, ids: Tensor) -> Tensor:
    """Token ids [n, length] -> unit vectors [n, d]."""
    return F.normalize(model.text(input_ids=ids).text_embeds.float(), dim=-1)


class AestheticsNet(nn.Module):
    """Two layers on a unit vector; gives 0..10."""

    def __init__(self, inputs: int = 128, hidden: int = 64) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(inputs, hidden), nn.Linear(hidden, 1)

    def forward(self, embedding: Tensor) -> Tensor:
        """float [n, inputs] -> [n]."""
        hidden = F.gelu(self.first(embedding * embedding.shape[-1] ** 0.5))
        rating: Tensor = 5 + 5 * self.last(hidden)[:, 0]
        return rating


def load_aesthetics_net(folder: Path) -> AestheticsNet:
    """The net saved in ``folder``."""
    from safetensors.torch import load_file

    net = AestheticsNet(**json.loads((folder / "config.json").read_text()))
    net.load_state_dict(load_file(folder / "model.safetensors"))
    return net.eval()
