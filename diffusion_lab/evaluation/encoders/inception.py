"""Inception v3's pool features, 2048 dimensions, for FID and KID, and its classifier's logits, for `fid_legacy`.

Two published networks, distinguished by the size of their classifier:
- the one of the FID paper as ported to torch by pytorch-fid (1008 classes): average pools that do not count the
  padding, a max pool in the last block, input resized to 299x299 (bilinear, not antialiased) and scaled to
  [-1, 1]. Values in the literature use this one;
- torchvision's own (1000 classes), with torchvision's preprocessing. Its values are not comparable with published ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import inception as published

from diffusion_lab.evaluation.encoders.weights import find_inception, module_digest, read_weights
from diffusion_lab.records import UserError

_KEY = "metrics.inception_weights"


class InceptionEncoder:
    """Computes the pool features of images, not normalised, float32 [n, 2048]."""

    def __init__(
        self,
        net: nn.Module,
        *,
        fid: bool,
        device: str = "cpu",
        classifier: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """``classifier``: weight [classes, 2048] and bias [classes]."""
        self._net = net.to(device).eval()
        self._classifier = classifier
        self.fid = fid
        self.device = torch.device(device)
        self.version = module_digest(net)
        self.name = "inception-v3 of FID" if fid else "inception-v3 of torchvision"
        self.preprocessing = (
            "299x299 bilinear without antialiasing, 2x - 1"
            if fid
            else "Pillow bilinear 342, centre 299, ImageNet mean and deviation"
        )

    @classmethod
    def load(cls, weights: str | None, device: str = "cpu") -> Self:
        """``weights``: a file; None searches for the published ones in torch's cache."""
        path = find_inception(weights)
        tensors = read_weights(path, _KEY)
        classes = len(tensors.get("fc.bias", ()))
        kept = {k: v for k, v in tensors.items() if not k.startswith(("AuxLogits.", "fc."))}
        net = build(fid=classes == 1008)
        try:
            net.load_state_dict(kept)
        except RuntimeError as error:
            raise UserError(f"{_KEY}: {path} does not fit Inception v3 ({error})") from error
        last = (
            (tensors["fc.weight"].float(), tensors["fc.bias"].float())
            if "fc.weight" in tensors and classes
            else None
        )
        return cls(net, fid=classes == 1008, device=device, classifier=last)

    @torch.no_grad()
    def embed_images(self, images: Sequence[NDArray[np.uint8]], batch: int = 16) -> Tensor:
        """uint8 arrays [h, w, 3] of any sizes -> float32 [n, 2048], on the CPU."""
        prepare = prepare_fid if self.fid else prepare_torchvision
        parts = []
        for start in range(0, len(images), batch):
            pixels = torch.stack([prepare(image) for image in images[start : start + batch]])
            parts.append(self._net(pixels.to(self.device)).float().cpu())
        return torch.cat(parts)

    def logits(self, pooled: Tensor) -> Tensor | None:
        """float32 [n, classes] of pool features [n, 2048]; None if the weights have no classifier."""
        if self._classifier is None:
            return None
        weight, bias = self._classifier
        return pooled.float() @ weight.T + bias


def build(*, fid: bool) -> nn.Module:
    """The network without its classifier, with random weights."""
    blocks: list[Any] = [
        published.BasicConv2d, published.InceptionA, published.InceptionB, published.InceptionC,
        published.InceptionD, published.InceptionE, published.InceptionAux,
    ]  # fmt: skip
    if fid:
        blocks[1], blocks[3] = _BlockA, _BlockC
    net = published.Inception3(
        num_classes=1, aux_logits=False, transform_input=not fid, init_weights=False, inception_blocks=blocks
    )
    if fid:
        net.Mixed_7b, net.Mixed_7c = _BlockE1(1280), _BlockE2(2048)
    net.fc = nn.Identity()
    net.dropout = nn.Identity()
    made: nn.Module = net.eval()
    return made


def _without_padding(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, kernel_size=3, stride=1, padding=1, count_include_pad=False)


class _BlockA(published.InceptionA):  # type: ignore[misc]  # torchvision has no types
    """Average pool that does not count the padding: TensorFlow's."""

    def _forward(self, x: Tensor) -> list[Tensor]:
        return [*super()._forward(x)[:3], self.branch_pool(_without_padding(x))]


class _BlockC(published.InceptionC):  # type: ignore[misc]
    def _forward(self, x: Tensor) -> list[Tensor]:
        return [*super()._forward(x)[:3], self.branch_pool(_without_padding(x))]


class _BlockE1(published.InceptionE):  # type: ignore[misc]
    def _forward(self, x: Tensor) -> list[Tensor]:
        return [*super()._forward(x)[:3], self.branch_pool(_without_padding(x))]


class _BlockE2(published.InceptionE):  # type: ignore[misc]
    """Max pool: a mistake in the original network, with which its published weights were trained."""

    def _forward(self, x: Tensor) -> list[Tensor]:
        pooled = F.max_pool2d(x, kernel_size=3, stride=1, padding=1)
        return [*super()._forward(x)[:3], self.branch_pool(pooled)]


def prepare_fid(image: NDArray[np.uint8]) -> Tensor:
    """pytorch-fid's: [0, 1], 299x299 by `interpolate` without antialiasing, then 2x - 1: float32 [3, 299, 299]."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    return 2 * F.interpolate(pixels, size=(299, 299), mode="bilinear", align_corners=False)[0] - 1


def prepare_torchvision(image: NDArray[np.uint8]) -> Tensor:
    """torchvision's `Inception_V3_Weights.IMAGENET1K_V1.transforms()`: float32 [3, 299, 299]."""
    from torchvision.models import Inception_V3_Weights

    found: Tensor = Inception_V3_Weights.IMAGENET1K_V1.transforms()(Image.fromarray(np.array(image)))
    return found
