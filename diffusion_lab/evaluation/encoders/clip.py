"""Full-size CLIP through open_clip, with the preprocessing of its weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from diffusion_lab.evaluation.encoders import clip_tags
from diffusion_lab.evaluation.encoders.weights import loaded_digest
from diffusion_lab.models.fingerprints import stamps
from diffusion_lab.models.hub import cached, from_cache
from diffusion_lab.records import UserError


def _cached(name: str, tag: str) -> Path | None:
    """The weights in the hub's cache; None if they are not there."""
    place = clip_tags.repository(name, tag)
    if place is None or not place[0]:
        return None
    names = [place[1]] if place[1] else ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
    return next((found for file in names if (found := cached(place[0], file)) is not None), None)


class OpenClip:
    """Embeds images and texts as unit vectors in one space."""

    def __init__(
        self,
        model: Any,
        preprocess: Any,
        tokenizer: Any,
        *,
        name: str,
        device: str = "cpu",
        files: str | None = None,
    ) -> None:
        """``files``: stamps of the files that were loaded, see `weights.loaded_digest`."""
        self._model = model.to(device).eval()
        self._preprocess = preprocess
        self._tokenizer = tokenizer
        self.name = name
        self.version = loaded_digest(model, name, files)
        self.device = torch.device(device)
        self.preprocessing = " ".join(str(preprocess).split())

    @classmethod
    def load(cls, model: str, weights: str, device: str = "cpu") -> Self:
        """``model``: open_clip's name; ``weights``: its tag, or a local file.

        OpenAI's weights need the activation QuickGELU. For their tag it is enabled here
        (open_clip itself only warns). A file does not say so: for OpenAI's weights in a file, use the model name
        "ViT-L-14-quickgelu".
        """
        import open_clip

        name = model.replace("/", "-")
        if name not in open_clip.list_models():
            near = ", ".join(known for known in open_clip.list_models() if known.startswith(name[:5]))
            raise UserError(
                f"metrics.clip_model={model} is not a model of open_clip; similar names: {near or 'none'}"
            )
        tag = open_clip.get_pretrained_cfg(name, weights)
        file = Path(weights).expanduser()
        if not tag and not file.is_file():
            tags = ", ".join(open_clip.list_pretrained_tags_by_model(name))
            raise UserError(f"metrics.clip_weights={weights} is neither a file nor a tag of {name}: {tags}")
        quick = bool(tag.get("quick_gelu", False)) if tag else False
        place = _cached(name, weights) if tag else file
        files = None if place is None else stamps([place])
        text_from_hub = "hf_model_name" in open_clip.get_model_config(name)["text_cfg"]
        try:
            with from_cache(bool(tag) and not text_from_hub and _cached(name, weights) is not None):
                net, _, preprocess = open_clip.create_model_and_transforms(
                    name, pretrained=weights if tag else str(file), force_quick_gelu=quick, device="cpu"
                )
        except Exception as error:  # no network, a wrong file
            raise UserError(
                f"metrics.clip_weights={weights} could not be downloaded or read for {name} ({error}). "
                "Without a network, set metrics.clip_weights to a local file of this model "
                "(safetensors preferred)"
            ) from error
        tokenizer = open_clip.get_tokenizer(name)
        return cls(net, preprocess, tokenizer, name=f"open_clip {name}", device=device, files=files)

    @torch.no_grad()
    def embed_images(self, images: Sequence[NDArray[np.uint8]], batch: int = 32) -> Tensor:
        """uint8 arrays [h, w, 3] of any sizes -> float32 [n, d] of unit norm, on the CPU."""
        parts = []
        for start in range(0, len(images), batch):
            pixels = torch.stack(
                [self._preprocess(Image.fromarray(image)) for image in images[start : start + batch]]
            )
            parts.append(normalize(self._model.encode_image(pixels.to(self.device)).float(), dim=-1).cpu())
        return torch.cat(parts)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str], batch: int = 128) -> Tensor:
        """Texts (truncated to the model's length) -> float32 [n, d] of unit norm, on the CPU."""
        parts = []
        for start in range(0, len(texts), batch):
            tokens = self._tokenizer(list(texts[start : start + batch])).to(self.device)
            parts.append(normalize(self._model.encode_text(tokens).float(), dim=-1).cpu())
        return torch.cat(parts)
