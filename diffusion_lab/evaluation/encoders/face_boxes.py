"""Faces of a photograph found at two sizes, merged, and packed into rows for the cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from diffusion_lab.evaluation.encoders.detect import Face, prominence

if TYPE_CHECKING:
    from diffusion_lab.evaluation.encoders.detect import FaceDetector
    from diffusion_lab.records import Pixels

MOST_FACES = 8  # of one photograph, the most prominent ones
DETAIL = 480  # pixels of the shorter side at which small faces are searched for
_SAME_PLACE = 0.3  # minimum overlap (intersection over union) at which two boxes are one face


@dataclass(frozen=True, slots=True)
class DetectedFace:
    """One face of a photo."""

    face: Face  # in pixels of the photo as it is compared
    embedding: Tensor  # float32 [d], unit norm; NaN if it is not finite


def detect_at_both_sizes(detector: FaceDetector, image: Pixels, detail: Pixels) -> list[Face]:
    """The faces of ``image``, and those that only its larger version shows, in pixels of ``image``."""
    (found,) = detector.detect_all([image])
    height, width = image.shape[:2]
    if detail.shape != image.shape:
        scale = width / detail.shape[1]
        (more,) = detector.detect_all([detail])
        found = _merged(found, [_scaled(face, scale) for face in more])
        found.sort(key=lambda face: -prominence(face, width, height))
    return found[:MOST_FACES]


def _merged(found: Sequence[Face], more: Sequence[Face]) -> list[Face]:
    """A face found in both keeps its first box and the larger probability."""
    faces = list(found)
    for face in more:
        if face.box[2] - face.box[0] < 2:  # pixels: too small to embed
            continue
        overlaps = [_overlap(face.box, one.box) for one in faces]
        near = max(range(len(faces)), key=lambda number: overlaps[number], default=None)
        if near is None or overlaps[near] < _SAME_PLACE:
            faces.append(face)
        else:
            faces[near] = Face(faces[near].box, max(faces[near].probability, face.probability))
    return faces


def _scaled(face: Face, scale: float) -> Face:
    left, top, right, bottom = face.box
    return Face((left * scale, top * scale, right * scale, bottom * scale), face.probability)


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Intersection over union of two boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = ((one[2] - one[0]) * (one[3] - one[1]) for one in (a, b))
    return width * height / (sum(areas) - width * height)


def packed(found: Sequence[Sequence[Face]], embeddings: Tensor) -> Tensor:
    """float32 [n, MOST_FACES, 5 + d]: box, probability and embedding; ``embeddings``: of all faces in order."""
    rows = torch.full((len(found), MOST_FACES, 5 + embeddings.shape[1]), torch.nan)
    number = 0
    for picture, faces in enumerate(found):
        for place, face in enumerate(faces):
            rows[picture, place, :5] = torch.tensor([*face.box, face.probability])
            rows[picture, place, 5:] = embeddings[number]
            number += 1
    return rows


def unpacked(row: Tensor) -> list[DetectedFace]:
    """What `packed` put into one picture's row."""
    faces = []
    for one in row.reshape(MOST_FACES, -1):  # the cache keeps it flat
        if bool(one[:5].isnan().any()):
            break
        left, top, right, bottom, probability = (float(v) for v in one[:5])
        faces.append(DetectedFace(Face((left, top, right, bottom), probability), one[5:].clone()))
    return faces
