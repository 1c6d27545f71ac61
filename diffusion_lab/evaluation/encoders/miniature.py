"""The miniature's own encoders: face embedder, CLIP and aesthetics head, read from the shipped weights."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from diffusion_lab.miniature.shipped import WEIGHTS


def file_digest(folder: Path) -> str:
    """The first 12 hex digits of the SHA-256 of ``folder/model.safetensors``."""
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()[:12]


class MiniatureFaceEmbedder:
    """Embeds face crops of MTCNN's boxes as unit vectors; their cosine similarity separates people."""

    name = "miniature-face"
    # On 16 portraits of each of the ten subjects: 1 % of the pairs of one person have a cosine below .62, and 1 % of the
    # pairs of two people one above .64. The nearest portrait of the same person has .76 or more; of others 5 % exceed .62.
    same_person = 0.6

    def __init__(self, net: Any, *, size: int, margin: float, version: str, device: str = "cpu") -> None:
        self._net = net.to(device).eval()
        self.size = size
        self.margin = margin
        self.version = version
        self.preprocessing = (
            f"square around MTCNN's box, margin {margin}, {size}x{size} bilinear, x / 127.5 - 1"
        )
        self.device = torch.device(device)

    @classmethod
    def load(cls, folder: Path | None = None, device: str = "cpu") -> Self:
        """From ``folder`` (model.safetensors, config.json), by default the shipped one."""
        from diffusion_lab.miniature.networks import load_face_net

        folder = folder or WEIGHTS / "face"
        net, config = load_face_net(folder)
        return cls(
            net, size=config["size"], margin=config["margin"], version=file_digest(folder), device=device
        )

    @torch.no_grad()
    def embed(self, crops: NDArray[np.uint8], batch: int = 128) -> Tensor:
        """uint8 [n, size, size, 3] of ``detect.crop(image, face, size, margin)`` -> float32 [n, d], unit norm."""
        parts = []
        for start in range(0, len(crops), batch):
            pixels = torch.from_numpy(np.array(crops[start : start + batch])).to(self.device)
            parts.append(self._net(pixels.permute(0, 3, 1, 2).float() / 127.5 - 1).float().cpu())
        return torch.cat(parts) if parts else torch.zeros(0, self._net.dimension)


class MiniatureClip:
    """Embeds images and texts as unit vectors in one space."""

    name = "miniature-clip"

    def __init__(self, model: Any, tokenizer: Any, *, version: str, device: str = "cpu") -> None:
        self._model = model.to(device).eval()
        self._tokenizer = tokenizer
        self.version = version
        self.device = torch.device(device)
        self.size = 64  # pixels
        self.preprocessing = "centre square, Pillow bicubic 64x64, x / 127.5 - 1"

    @classmethod
    def load(cls, folder: Path | None = None, device: str = "cpu") -> Self:
        """From ``folder`` (text/ in transformers' format, model.safetensors), by default the shipped one."""
        from transformers import CLIPTokenizer

        from diffusion_lab.miniature.networks import load_clip
        from diffusion_lab.models.load import quiet_loading

        folder = folder or WEIGHTS / "clip"
        version = file_digest(folder)
        with quiet_loading():
            tokenizer = CLIPTokenizer.from_pretrained(folder / "text")
            return cls(load_clip(folder), tokenizer, version=version, device=device)

    @torch.no_grad()
    def embed_images(self, images: Sequence[NDArray[np.uint8]], batch: int = 128) -> Tensor:
        """uint8 arrays [h, w, 3] of any sizes -> float32 [n, d] of unit norm."""
        from diffusion_lab.miniature.networks import image_features, normalise

        parts = []
        for start in range(0, len(images), batch):
            pixels = np.stack(
                [center_crop_bicubic(image, self.size) for image in images[start : start + batch]]
            )
            tensor = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2)
            parts.append(image_features(self._model, normalise(tensor)).float().cpu())
        return torch.cat(parts) if parts else torch.zeros(0, self._model.text.config.projection_dim)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str], batch: int = 128) -> Tensor:
        """Texts (cut at 77 tokens) -> float32 [n, d] of unit norm."""
        from diffusion_lab.miniature.networks import text_features

        parts = []
        for start in range(0, len(texts), batch):
            ids = self._tokenizer(
                list(texts[start : start + batch]),
                padding="max_length",
                max_length=77,
                truncation=True,
                return_tensors="pt",
            ).input_ids
            parts.append(text_features(self._model, ids.to(self.device)).float().cpu())
        return torch.cat(parts) if parts else torch.zeros(0, self._model.text.config.projection_dim)


class MiniatureAesthetics:
    """Predicts the rating by the miniature's simulated raters, 0 to 10, from CLIP image embeddings."""

    name = "miniature-aesthetics"
    preprocessing = "unit-length miniature CLIP image embedding; clamped to 0..10"

    def __init__(self, net: Any, *, version: str, device: str = "cpu") -> None:
        self._net = net.to(device).eval()
        self.version = version
        self.device = torch.device(device)

    @classmethod
    def load(cls, folder: Path | None = None, device: str = "cpu") -> Self:
        """From ``folder`` (model.safetensors, config.json), by default the shipped one."""
        from diffusion_lab.miniature.networks import load_aesthetics_net

        folder = folder or WEIGHTS / "aesthetics"
        return cls(load_aesthetics_net(folder), version=file_digest(folder), device=device)

    @torch.no_grad()
    def score(self, clip_image_embeddings: Tensor) -> Tensor:
        """float [n, d] of unit norm -> float32 [n] in 0..10."""
        result: Tensor = self._net(clip_image_embeddings.float().to(self.device)).clamp(0, 10).cpu()
        return result


def center_crop_bicubic(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """The largest centred square, resized (bicubic) to uint8 [size, size, 3]; unchanged if it already has this size."""
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = Image.fromarray(np.ascontiguousarray(image[top : top + side, left : left + side]))
    return np.asarray(square.resize((size, size), Image.Resampling.BICUBIC)).copy()
