"""All encoders of a run: each loaded once, when first needed, and shared by all metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from diffusion_lab.config.schema import Metrics
from diffusion_lab.evaluation.encoders.cache import RowCache, image_key, text_key
from diffusion_lab.evaluation.encoders.face_boxes import detect_at_both_sizes, packed, unpacked
from diffusion_lab.evaluation.encoders.table import IMAGE_ENCODERS
from diffusion_lab.records import Features, UserError
from diffusion_lab.system.rng import preserved_rng

if TYPE_CHECKING:
    from collections.abc import Set

    from diffusion_lab.evaluation.encoders.detect import FaceDetector
    from diffusion_lab.evaluation.encoders.face_boxes import DetectedFace
    from diffusion_lab.records import Pixels

KINDS = ("miniature", "full")
# Fields of `Features`. "face_found" needs only the detector, and fills `face` if embeddings are not needed.
FIELDS = frozenset(
    {"face", "face_found", "clip_image", "clip_text", "aesthetics", "dino", "inception", "inception_logits"}
)


class EncoderBank:
    """Computes `Features` of images. Encoders are loaded inside `features`; global random generators are not affected.

    ``cache``: stores rows, and is searched before anything is encoded; for images that will be used again.
    """

    def __init__(
        self, settings: Metrics, device: str | torch.device = "cpu", *, cache: RowCache | None = None
    ) -> None:
        if settings.encoders not in KINDS:
            raise UserError(f"metrics.encoders is {settings.encoders!r}; it can be {' or '.join(KINDS)}")
        self.settings = settings
        self.device = str(device)
        self.cache = cache
        self._used: dict[str, Any] = {}

    @contextmanager
    def caching(self, cache: RowCache | None) -> Iterator[None]:
        """Inside, ``cache`` is used in place of the bank's own, if it is not None."""
        before = self.cache
        self.cache = before if cache is None else cache
        try:
            yield
        finally:
            self.cache = before

    def features(
        self,
        images: Sequence[Pixels],
        *,
        texts: Sequence[str | None] | None,
        needs: Set[str],
        progress: Callable[[int], None] | None = None,
    ) -> Features:
        """The fields in ``needs`` (of `Features`) of n >= 1 images, float32 on the CPU; the others are None.

        ``texts``: the text for CLIP of each image, None for an image without a prompt, whose `clip_text`
        is NaN; None for photos, which have no `clip_text`.
        `aesthetics` is also None if no head is configured.
        Rows of `face` are NaN if no face is found, or if the crop's embedding is not finite. `faces`, the number
        of faces found, is returned with `face`; of several faces the most prominent one is embedded. With
        "face_found" and without "face" in ``needs``, rows of `face` have the single value 1, and no embedder is
        loaded.
        """
        if unknown := set(needs) - FIELDS - set(IMAGE_ENCODERS):
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
        fields: dict[str, Any] = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        more = {name: fields.pop(name) for name in list(fields) if name in IMAGE_ENCODERS}
        return Features(n=len(images), more=more, **fields)

    def _encode(
        self, images: Sequence[Pixels], texts: Sequence[str | None] | None, needs: Set[str]
    ) -> dict[str, Tensor]:
        fields: dict[str, Tensor] = {}
        keys = [] if self.cache is None else [image_key(image) for image in images]

        def seen(roles: tuple[str, ...], encode: Callable[[Sequence[Pixels]], Tensor]) -> Tensor:
            if self.cache is None:
                return encode(images)
            return self._cached_rows(
                roles, keys, lambda numbers: encode([images[number] for number in numbers])
            )

        if {"face", "face_found"} & needs:
            embed = "face" in needs
            rows = (
                seen(("detector", "face"), self._faces) if embed else seen(("detector",), self._face_counts)
            )
            fields["face"], fields["faces"] = rows[:, :-1], rows[:, -1]
        rate = "aesthetics" in needs and self.has_aesthetics
        if rate or "clip_image" in needs:
            clip = seen(("clip",), lambda some: self._clip.embed_images(some))
            if "clip_image" in needs:
                fields["clip_image"] = clip
            if rate:
                fields["aesthetics"] = self._aesthetics.score(clip)
        if "clip_text" in needs and texts is not None:
            fields["clip_text"] = self._texts(texts)
        if "dino" in needs:
            fields["dino"] = seen(("dino",), lambda some: self._dino.embed_images(some))
        if {"inception", "inception_logits"} & needs:
            fields["inception"] = seen(("inception",), lambda some: self._inception.embed_images(some))
            logits = self._inception.logits(fields["inception"]) if "inception_logits" in needs else None
            if logits is not None:
                fields["inception_logits"] = logits
        for name in sorted(set(IMAGE_ENCODERS) & needs):
            fields[name] = seen((name,), lambda some, name=name: self._other(name).embed_images(some))  # type: ignore[misc]
        return {name: value.float().cpu() for name, value in fields.items()}

    def _texts(self, texts: Sequence[str | None]) -> Tensor:
        """float32 [n, d], NaN rows for None."""
        there = [(row, text) for row, text in enumerate(texts) if text is not None]
        asked = [text for _, text in there] or [""]  # the empty text only gives the width
        if self.cache is None:
            rows = self._clip.embed_texts(asked)
        else:
            keys = [text_key(text) for text in asked]
            rows = self._cached_rows(("clip",), keys, lambda n: self._clip.embed_texts([asked[i] for i in n]))
        found = torch.full((len(texts), rows.shape[1]), torch.nan)
        if there:
            found[[row for row, _ in there]] = rows.float().cpu()
        return found

    def _cached_rows(
        self, roles: tuple[str, ...], keys: Sequence[bytes], encode: Callable[[list[int]], Tensor]
    ) -> Tensor:
        """Rows from the cache; ``encode(numbers)`` computes those that are missing."""
        assert self.cache is not None
        for role in roles:
            self._other(role) if role in IMAGE_ENCODERS else getattr(
                self, _LOADED_BY[role]
            )  # for its identity
        known = self.identities()
        identity = "; ".join([*(known[role] for role in roles), torch.device(self.device).type])
        return self.cache.rows(identity, keys, encode)

    @property
    def has_aesthetics(self) -> bool:
        """False only for the full-size encoders without `metrics.aesthetics_weights`."""
        return self.settings.encoders == "miniature" or self.settings.aesthetics_weights is not None

    def networks(self) -> list[torch.nn.Module]:
        """The networks loaded so far, which may be offloaded between two uses."""
        return [
            value
            for encoder in self._used.values()
            for value in vars(encoder).values()
            if isinstance(value, torch.nn.Module)
        ]

    def clip_identity(self) -> str:
        """Name and weights' hash of the CLIP in use, for which a head is trained."""
        return f"{self._clip.name} {self._clip.version}"

    def identities(self) -> dict[str, str]:
        """Encoder -> name, weights and preprocessing, of the encoders used so far, for the record."""
        return {
            role: " ".join(
                part
                for part in (encoder.name, encoder.version, getattr(encoder, "preprocessing", ""))
                if part
            )
            for role, encoder in sorted(self._used.items())
        }

    @property
    def same_person(self) -> float:
        """The smallest cosine at which two faces may show the same person, for the embedder in use."""
        return float(self._embedder.same_person)

    def all_faces(self, images: Sequence[Pixels], detailed: Sequence[Pixels]) -> list[list[DetectedFace]]:
        """Every face of each image, the most prominent first, at most 8.

        ``detailed``: the same images at a higher resolution, if available; faces found only there are included.
        Boxes and embeddings refer to ``images``.
        """
        with preserved_rng(), torch.inference_mode(False), torch.no_grad():
            if self.cache is None:
                packed = self._packed(images, detailed)
            else:
                keys = [image_key(a) + image_key(b) for a, b in zip(images, detailed, strict=True)]
                packed = self._cached_rows(
                    ("detector", "face"),
                    keys,
                    lambda some: self._packed([images[i] for i in some], [detailed[i] for i in some]),
                )
        return [unpacked(row) for row in packed]

    def _packed(self, images: Sequence[Pixels], detailed: Sequence[Pixels]) -> Tensor:
        """float32 [n, 8, 5 + d]: box, probability and embedding of each face, NaN for missing ones."""
        found = [
            detect_at_both_sizes(self._detector, image, detail)
            for image, detail in zip(images, detailed, strict=True)
        ]
        crops = [
            self._crop(image, face) for image, faces in zip(images, found, strict=True) for face in faces
        ]
        return packed(found, self._embedded(crops))

    def _faces(self, images: Sequence[Pixels]) -> Tensor:
        """float32 [n, d + 1], the last column the number of faces; detection and cropping are separate, because
        MTCNN's own batch call fails for mixed batches.
        """
        found = self._detector.detect_all(list(images))
        with_face = [row for row, some in enumerate(found) if some]
        embedded = self._embedded([self._crop(images[row], found[row][0]) for row in with_face])
        faces = torch.full((len(images), embedded.shape[1] + 1), torch.nan)
        faces[with_face, :-1] = embedded
        faces[:, -1] = torch.tensor([float(len(some)) for some in found])
        return faces

    def _embedded(self, crops: Sequence[Pixels]) -> Tensor:
        """float32 [len(crops), d], NaN rows where an embedding is not finite."""
        size = self._embedder.size
        stacked = np.stack(crops) if crops else np.zeros((0, size, size, 3), np.uint8)
        embedded = self._embedder.embed(stacked).float().cpu()
        return torch.where(embedded.isfinite().all(1, keepdim=True), embedded, torch.nan)

    def _face_counts(self, images: Sequence[Pixels]) -> Tensor:
        """float32 [n, 2]: 1 if the detector finds a face, else NaN; and the number of faces."""
        found = self._detector.detect_all(list(images))
        return torch.tensor([[1.0 if some else torch.nan, float(len(some))] for some in found])

    def _load(self, role: str, load: Callable[[], Any]) -> Any:
        with preserved_rng():
            self._used[role] = load()
        return self._used[role]

    def _other(self, name: str) -> Any:
        if name in self._used:
            return self._used[name]
        return self._load(name, lambda: IMAGE_ENCODERS[name](self.settings, self.device))

    @cached_property
    def _detector(self) -> FaceDetector:
        from diffusion_lab.evaluation.encoders.detect import FaceDetector

        return cast("FaceDetector", self._load("detector", lambda: FaceDetector(self.device, enlarge_to=160)))

    @cached_property
    def _embedder(self) -> Any:
        if self.settings.encoders == "miniature":
            from diffusion_lab.evaluation.encoders.miniature import MiniatureFaceEmbedder

            return self._load("face", lambda: MiniatureFaceEmbedder.load(device=self.device))
        from diffusion_lab.evaluation.encoders.face import FacenetEmbedder

        return self._load("face", lambda: FacenetEmbedder.load(self.settings.face_weights, self.device))

    @cached_property
    def _crop(self) -> Callable[..., Any]:
        """An encoder with a published crop of its own brings it; the others share one."""
        from diffusion_lab.evaluation.encoders.detect import crop

        embedder = self._embedder
        own = getattr(embedder, "crop", None)
        return own or (lambda image, face: crop(image, face, embedder.size, embedder.margin))

    @cached_property
    def _clip(self) -> Any:
        if self.settings.encoders == "miniature":
            from diffusion_lab.evaluation.encoders.miniature import MiniatureClip

            return self._load("clip", lambda: MiniatureClip.load(device=self.device))
        name = self.settings.clip_model
        if is_transformers(name):
            from diffusion_lab.evaluation.encoders.clip_transformers import TransformersClip

            return self._load("clip", lambda: TransformersClip.load(name, self.device))
        from diffusion_lab.evaluation.encoders.clip import OpenClip

        return self._load("clip", lambda: OpenClip.load(name, self.settings.clip_weights, self.device))

    @cached_property
    def _aesthetics(self) -> Any:
        """`metrics.aesthetics_weights` where it is set, which the miniature's own head makes way for."""
        if self.settings.aesthetics_weights is None:  # `has_aesthetics` was asked before
            from diffusion_lab.evaluation.encoders.miniature import MiniatureAesthetics

            return self._load("aesthetics", lambda: MiniatureAesthetics.load(device=self.device))
        from diffusion_lab.evaluation.encoders.aesthetics import AestheticsHead

        weights = self.settings.aesthetics_weights
        head = self._load("aesthetics", lambda: AestheticsHead.load(weights, self.device))
        head.check_clip(self.clip_identity())
        return head

    @cached_property
    def _dino(self) -> Any:
        from diffusion_lab.evaluation.encoders.dino import DinoEncoder

        return self._load("dino", lambda: DinoEncoder.load(self.settings.dino_model, self.device))

    @cached_property
    def _inception(self) -> Any:
        from diffusion_lab.evaluation.encoders.inception import InceptionEncoder

        return self._load(
            "inception", lambda: InceptionEncoder.load(self.settings.inception_weights, self.device)
        )


_LOADED_BY = {
    "detector": "_detector", "face": "_embedder", "clip": "_clip", "dino": "_dino", "inception": "_inception",
}  # fmt: skip


def is_transformers(clip_model: str) -> bool:
    """Whether `metrics.clip_model` is a folder or a hub id rather than a name of open_clip ("ViT-L/14" too)."""
    if Path(clip_model).expanduser().is_dir():
        return True
    if "/" not in clip_model and not clip_model.startswith((".", "~")):
        return False
    import open_clip

    return clip_model.replace("/", "-") not in open_clip.list_models()
