"""All encoders of a run: each loaded once, when first needed, and shared by all metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from diffusion_lab.config import Metrics
from diffusion_lab.interfaces import Features, UserError
from diffusion_lab.training.rng import preserved_rng

if TYPE_CHECKING:
    from collections.abc import Set

    from diffusion_lab.encoders.detect import FaceDetector
    from diffusion_lab.interfaces import Pixels

KINDS = ("miniature", "full")
FIELDS = frozenset({"face", "clip_image", "clip_text", "aesthetics"})


class EncoderBank:
    """Images to `Features`. Loading happens inside `features` and disturbs no global generator."""

    def __init__(self, settings: Metrics, device: str | torch.device = "cpu") -> None:
        if settings.encoders not in KINDS:
            raise UserError(f"metrics.encoders is {settings.encoders!r}; it can be {' or '.join(KINDS)}")
        self.settings = settings
        self.device = str(device)
        self._used: dict[str, Any] = {}

    def features(
        self,
        images: Sequence[Pixels],
        *,
        texts: list[str] | None,
        needs: Set[str],
        progress: Callable[[int], None] | None = None,
    ) -> Features:
        """The fields in ``needs`` (of `Features`) of n >= 1 images, float32 on the CPU; the others are None.

        ``texts``: what CLIP is asked about each image; None for photographs, which have no `clip_text`.
        `aesthetics` is None too where no head is configured.
        Rows of `face` are NaN where no face is found, also where the crop's embedding is not finite.
        """
        if unknown := set(needs) - FIELDS:
            raise ValueError(f"features has no {', '.join(sorted(unknown))}")
        if texts is not None and len(texts) != len(images):
            raise ValueError(f"{len(texts)} texts for {len(images)} images")
        parts: list[dict[str, Tensor]] = []
        with preserved_rng(), torch.inference_mode(False), torch.no_grad():
            for start in range(0, len(images), self.settings.batch_size):
                chunk = images[start : start + self.settings.batch_size]
                asked = None if texts is None else texts[start : start + len(chunk)]
                parts.append(self._encode(chunk, asked, needs))
                if progress is not None:
                    progress(len(chunk))
        fields = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return Features(n=len(images), **fields)

    def _encode(
        self, images: Sequence[Pixels], texts: list[str] | None, needs: Set[str]
    ) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        if "face" in needs:
            found["face"] = self._faces(images)
        rate = "aesthetics" in needs and self.has_aesthetics
        if rate or "clip_image" in needs:
            seen = self._clip.embed_images(images)
            if "clip_image" in needs:
                found["clip_image"] = seen
            if rate:
                found["aesthetics"] = self._aesthetics.score(seen)
        if "clip_text" in needs and texts is not None:
            found["clip_text"] = self._clip.embed_texts(texts)
        return {name: value.float().cpu() for name, value in found.items()}

    @property
    def has_aesthetics(self) -> bool:
        """False only for the full-size encoders without `metrics.aesthetics_weights`."""
        return self.settings.encoders == "miniature" or self.settings.aesthetics_weights is not None

    def networks(self) -> list[torch.nn.Module]:
        """The networks loaded so far, which may be moved away between two uses."""
        return [
            value
            for encoder in self._used.values()
            for value in vars(encoder).values()
            if isinstance(value, torch.nn.Module)
        ]

    def identities(self) -> dict[str, str]:
        """Encoder -> name, weights and preprocessing, of those that have been used so far: for the record."""
        return {
            role: " ".join(
                part
                for part in (encoder.name, encoder.version, getattr(encoder, "preprocessing", ""))
                if part
            )
            for role, encoder in sorted(self._used.items())
        }

    def _faces(self, images: Sequence[Pixels]) -> Tensor:
        """float32 [n, d]; detection and cropping apart, since MTCNN's own batch call fails on mixed
        batches.
        """
        found = self._detector.detect(list(images))
        with_face = [row for row, face in enumerate(found) if face is not None]
        crops = [self._crop(images[row], found[row]) for row in with_face]
        size = self._embedder.size
        stacked = np.stack(crops) if crops else np.zeros((0, size, size, 3), np.uint8)
        embedded = self._embedder.embed(stacked).float().cpu()
        faces = torch.full((len(images), embedded.shape[1]), torch.nan)
        faces[with_face] = torch.where(embedded.isfinite().all(1, keepdim=True), embedded, torch.nan)
        return faces

    def _load(self, role: str, load: Callable[[], Any]) -> Any:
        with preserved_rng():
            self._used[role] = load()
        return self._used[role]

    @cached_property
    def _detector(self) -> FaceDetector:
        from diffusion_lab.encoders.detect import FaceDetector

        return cast("FaceDetector", self._load("detector", lambda: FaceDetector(self.device, enlarge_to=160)))

    @cached_property
    def _embedder(self) -> Any:
        if self.settings.encoders == "miniature":
            from diffusion_lab.encoders.miniature import MiniatureFaceEmbedder

            return self._load("face", lambda: MiniatureFaceEmbedder.load(device=self.device))
        from diffusion_lab.encoders.face import FacenetEmbedder

        return self._load("face", lambda: FacenetEmbedder.load(self.settings.face_weights, self.device))

    @cached_property
    def _crop(self) -> Callable[..., Any]:
        """An encoder with a published crop of its own brings it; the others share one."""
        from diffusion_lab.encoders.detect import crop

        embedder = self._embedder
        own = getattr(embedder, "crop", None)
        return own or (lambda image, face: crop(image, face, embedder.size, embedder.margin))

    @cached_property
    def _clip(self) -> Any:
        if self.settings.encoders == "miniature":
            from diffusion_lab.encoders.miniature import MiniatureClip

            return self._load("clip", lambda: MiniatureClip.load(device=self.device))
        from diffusion_lab.encoders.clip import OpenClip

        return self._load(
            "clip", lambda: OpenClip.load(self.settings.clip_model, self.settings.clip_weights, self.device)
        )

    @cached_property
    def _aesthetics(self) -> Any:
        if self.settings.encoders == "miniature":
            from diffusion_lab.encoders.miniature import MiniatureAesthetics

            return self._load("aesthetics", lambda: MiniatureAesthetics.load(device=self.device))
        from diffusion_lab.encoders.aesthetics import AestheticsHead

        weights = str(self.settings.aesthetics_weights)  # `has_aesthetics` was asked before
        return self._load("aesthetics", lambda: AestheticsHead.load(weights, self.device))
