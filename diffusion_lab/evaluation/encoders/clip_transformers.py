"""CLIP through transformers: any hub id or folder, with the preprocessing of its own config.

Uses the Pillow image processor, which resizes like OpenAI's published code. The library's default one
resizes tensors and gives different values.
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

_KEY = "metrics.clip_model"
_FILES = "config.json, preprocessor_config.json, the tokenizer's files and model.safetensors"


class TransformersClip:
    """Embeds images and texts as unit vectors in one space."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        tokenizer: Any,
        *,
        name: str,
        device: str = "cpu",
        files: str | None = None,
    ) -> None:
        """``files``: stamps of the files that were loaded, see `weights.loaded_digest`."""
        self._model = model.to(device).eval()
        self._processor = processor
        self._tokenizer = tokenizer
        self.name = name
        self.version = loaded_digest(model, name, files)
        self.device = torch.device(device)
        kept = ("size", "crop_size", "resample", "image_mean", "image_std", "do_center_crop")
        self.preprocessing = "Pillow " + ", ".join(f"{k}={getattr(processor, k, None)}" for k in kept)
        self._limit = int(model.config.text_config.max_position_embeddings)

    @classmethod
    def load(cls, name: str, device: str = "cpu") -> Self:
        """``name``: a folder or a hub id of a model with image and text features (CLIP, SigLIP)."""
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        from diffusion_lab.models.load import quiet_loading

        files = stamps_of(name)
        with quiet_loading():
            model = load_pretrained(
                lambda path: AutoModel.from_pretrained(path, use_safetensors=True), name, _KEY, _FILES
            )
            if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
                raise UserError(
                    f"{_KEY}={name}: is a {type(model).__name__}, which does not embed text and images in one "
                    "space; give a CLIP model"
                )
            processor = load_pretrained(
                lambda path: AutoImageProcessor.from_pretrained(path, backend="pil"), name, _KEY, _FILES
            )
            tokenizer = load_pretrained(AutoTokenizer.from_pretrained, name, _KEY, _FILES)
        last = name.rstrip("/").rpartition("/")[2]  # not its path on this machine
        return cls(model, processor, tokenizer, name=f"transformers {last}", device=device, files=files)

    @torch.no_grad()
    def embed_images(self, images: Sequence[NDArray[np.uint8]], batch: int = 32) -> Tensor:
        """uint8 arrays [h, w, 3] of any sizes -> float32 [n, d] of unit norm, on the CPU."""
        parts = []
        for start in range(0, len(images), batch):
            pictures = [Image.fromarray(np.ascontiguousarray(i)) for i in images[start : start + batch]]
            pixels = self._processor(images=pictures, return_tensors="pt")["pixel_values"].to(self.device)
            parts.append(
                normalize(_pooled(self._model.get_image_features(pixel_values=pixels)), dim=-1).cpu()
            )
        return torch.cat(parts)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str], batch: int = 128) -> Tensor:
        """Texts (truncated to the model's length) -> float32 [n, d] of unit norm, on the CPU."""
        parts = []
        for start in range(0, len(texts), batch):
            # Padded to the full length, as SigLIP was trained; for CLIP, whose attention is causal, it makes no difference.
            tokens = self._tokenizer(
                list(texts[start : start + batch]), padding="max_length", truncation=True,
                max_length=self._limit, return_tensors="pt",
            ).to(self.device)  # fmt: skip
            parts.append(normalize(_pooled(self._model.get_text_features(**tokens)), dim=-1).cpu())
        return torch.cat(parts)


def _pooled(output: Any) -> Tensor:
    """Since transformers 5 features are an output object; its `pooler_output` is the projected embedding."""
    found: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return found.float()
