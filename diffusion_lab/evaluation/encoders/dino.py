"""DINO and DINOv2 through transformers, with the preprocessing of their published evaluations.

Caron et al. 2021 (arXiv:2104.14294) and Oquab et al. 2023 (arXiv:2304.07193): shorter side to 256 (bicubic, on
Pillow), centre 224, ImageNet's mean and deviation. The feature is the class token after the last layer norm.
The processor stored with `facebook/dino-vits16` on the hub resizes to 224x224 without cropping: not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from diffusion_lab.evaluation.encoders.hub import load_pretrained, stamps_of
from diffusion_lab.evaluation.encoders.weights import loaded_digest
from diffusion_lab.records import UserError

_KEY = "metrics.dino_model"
_FILES = "config.json and model.safetensors"
KINDS = ("vit", "dinov2", "dinov2_with_registers")  # transformers' model types


def published_transform(size: int = 224, resize: int = 256) -> Any:
    """PIL image -> float32 [3, size, size], as in both papers' evaluation code."""
    from torchvision import transforms

    return transforms.Compose(
        [
            transforms.Resize(resize, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )


class DinoEncoder:
    """Embeds images as unit vectors."""

    preprocessing = "Pillow bicubic 256, centre 224, ImageNet mean and deviation"

    def __init__(self, model: Any, *, name: str, device: str = "cpu", files: str | None = None) -> None:
        """``files``: stamps of the files that were loaded, see `weights.loaded_digest`."""
        self._model = model.to(device).eval()
        self._transform = published_transform()
        self.name = name
        self.version = loaded_digest(model, name, files)
        self.device = torch.device(device)

    @classmethod
    def load(cls, name: str, device: str = "cpu") -> Self:
        """``name``: a folder or a hub id (`facebook/dino-vits16`, `facebook/dinov2-small`)."""
        from transformers import AutoConfig, AutoModel

        from diffusion_lab.models.load import quiet_loading

        def load(path: str) -> Any:
            kind = AutoConfig.from_pretrained(path).model_type
            if kind not in KINDS:
                raise UserError(f"it is a {kind} model, and DINO is one of {', '.join(KINDS)}")
            # ViT's pooler is not part of DINO and would have random weights.
            extra = {"add_pooling_layer": False} if kind == "vit" else {}
            return AutoModel.from_pretrained(path, use_safetensors=True, **extra)

        files = stamps_of(name)
        with quiet_loading():
            model = load_pretrained(load, name, _KEY, _FILES)
        last = name.rstrip("/").rpartition("/")[2]
        return cls(model, name=f"transformers {last}", device=device, files=files)

    @torch.no_grad()
    def embed_images(self, images: Sequence[NDArray[np.uint8]], batch: int = 32) -> Tensor:
        """uint8 arrays [h, w, 3] of any sizes -> float32 [n, d] of unit norm, on the CPU."""
        parts = []
        for start in range(0, len(images), batch):
            pictures = [Image.fromarray(np.ascontiguousarray(i)) for i in images[start : start + batch]]
            pixels = torch.stack([self._transform(picture) for picture in pictures]).to(self.device)
            tokens = self._model(pixel_values=pixels).last_hidden_state
            parts.append(normalize(tokens[:, 0].float(), dim=-1).cpu())
        return torch.cat(parts)
