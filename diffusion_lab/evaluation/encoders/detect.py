"""Face detection: facenet-pytorch's MTCNN with the weights in its wheel, independent of the batch.

Source: Zhang et al. 2016, "Joint Face Detection and Alignment Using Multitask Cascaded Convolutional
Networks".

Of several faces in one image the most prominent counts: large, near the centre, certainly a face (see
`prominence`). Likeness to the subject has no part in that for generated images: the best of several faces would
score above a single one by chance alone. Of photographs, see `evaluation/encoders/photographs.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from diffusion_lab.evaluation.encoders.weights import module_digest

_MIN_FACE = 20  # pixels of the (enlarged) image: MTCNN's own default
_THRESHOLDS = (0.6, 0.7, 0.7)  # of its three networks: the defaults
_FACTOR = 0.709  # of its image pyramid
_SMALLEST = 21  # pixels of the shorter side below which the pyramid has no level at all
CENTRE = 4.0  # how fast a face's weight falls with its distance from the centre
_NO_FACE = 8  # pixels of the shorter side below which no face is recognisable: such images are not enlarged


@dataclass(frozen=True, slots=True)
class Face:
    """One face: its box (left, top, right, bottom) in pixels of the input image, and MTCNN's probability."""

    box: tuple[float, float, float, float]
    probability: float


def prominence(face: Face, width: int, height: int) -> float:
    """The prominence of a face in an image of this size: area * exp(-4 d^2) * probability^4, pixels^2.

    d is the distance of its centre from the image's, in half widths and half heights, so that a face at the
    middle of an edge has d near 1. Size less distance from the centre is the rule used by facenet's alignment
    (Sandberg's `align_dataset_mtcnn.py`) and of facenet-pytorch's `center_weighted_size`; as a product it does
    not depend on the image's size. The least certain box (MTCNN's lowest probability is .7) has a quarter of the weight.
    """
    left, top, right, bottom = face.box
    across = (left + right) / width - 1
    down = (top + bottom) / height - 1
    area = (right - left) * (bottom - top)
    return area * math.exp(-CENTRE * (across**2 + down**2)) * face.probability**4


class FaceDetector:
    """The faces of each image.

    ``enlarge_to``: images whose shorter side is smaller are enlarged (bilinear) until it has this many
    pixels, since MTCNN misses faces of less than about 40 pixels; None leaves images as they are.
    """

    name = "mtcnn of facenet-pytorch"

    def __init__(self, device: str = "cpu", enlarge_to: int | None = 160) -> None:
        from facenet_pytorch import MTCNN

        self.device = torch.device(device)
        self.enlarge_to = enlarge_to
        self._net = MTCNN(keep_all=True, post_process=False, device=self.device)
        self.version = module_digest(self._net)
        self.preprocessing = f"most prominent face (size and centre) of {_MIN_FACE} pixels or more" + (
            "" if enlarge_to is None else f", shorter side enlarged to {enlarge_to}, bilinear"
        )

    def detect(self, images: Sequence[NDArray[np.uint8]]) -> list[Face | None]:
        """The most prominent face of each image (uint8 [h, w, 3], any sizes), None if there is none."""
        return [faces[0] if faces else None for faces in self.detect_all(images)]

    def detect_all(self, images: Sequence[NDArray[np.uint8]]) -> list[list[Face]]:
        """All faces of each image (uint8 [h, w, 3], any sizes), the most prominent first.

        Every image is processed alone, so its result is bit-identical whatever else is in the list. (Batches were
        tested: not faster on a CPU, and boxes moved by 1e-5 pixels.)
        """
        return [self._one(image) for image in images]

    def crop(self, image: NDArray[np.uint8], face: Face, size: int, margin: float = 0.0) -> NDArray[np.uint8]:
        """See :func:`crop`."""
        return crop(image, face, size, margin)

    @torch.no_grad()
    def _one(self, image: NDArray[np.uint8]) -> list[Face]:
        from facenet_pytorch.models.utils.detect_face import detect_face

        if min(image.shape[:2]) < _NO_FACE:
            return []
        enlarged, scale = _enlarge(image, self.enlarge_to)
        if min(enlarged.shape[:2]) < _SMALLEST:
            return []
        net = self._net
        with torch.autocast(self.device.type, enabled=False):
            boxes, _ = detect_face(
                enlarged[None],
                _MIN_FACE,
                net.pnet,
                net.rnet,
                net.onet,
                list(_THRESHOLDS),
                _FACTOR,
                self.device,
            )
        height, width = image.shape[:2]
        return _faces(boxes[0], scale, width, height)


def crop(image: NDArray[np.uint8], face: Face, size: int, margin: float = 0.0) -> NDArray[np.uint8]:
    """The square around ``face``, resized (bilinear, antialiased): uint8 [size, size, 3].

    The square's side is the box's longer side times ``1 + margin``; outside of the image its edge is repeated.
    """
    left, top, right, bottom = face.box
    side = max(2, round(max(right - left, bottom - top) * (1 + margin)))
    x = round((left + right) / 2 - side / 2)
    y = round((top + bottom) / 2 - side / 2)
    height, width = image.shape[:2]
    rows = np.clip(np.arange(y, y + side), 0, height - 1)
    columns = np.clip(np.arange(x, x + side), 0, width - 1)
    square = Image.fromarray(np.ascontiguousarray(image[rows][:, columns]))
    return np.asarray(square.resize((size, size), Image.Resampling.BILINEAR)).copy()


def _enlarge(image: NDArray[np.uint8], to: int | None) -> tuple[NDArray[np.uint8], float]:
    """The image enlarged until its shorter side has ``to`` pixels, and the factor."""
    height, width = image.shape[:2]
    shorter = min(height, width)
    if to is None or shorter >= to or shorter == 0:
        return image, 1.0
    scale = to / shorter
    size = (round(width * scale), round(height * scale))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)), scale


def _faces(found: Any, scale: float, width: int, height: int) -> list[Face]:
    """MTCNN's boxes (float [n, 5], enlarged pixels) in the image's own pixels, the most prominent first."""
    faces = []
    for *corners, probability in np.asarray(found, dtype=np.float64).reshape(-1, 5):
        box = np.clip(np.array(corners) / scale, 0, (width, height, width, height))
        if box[2] - box[0] < 1 or box[3] - box[1] < 1:
            continue
        left, top, right, bottom = (float(v) for v in box)
        faces.append(Face((left, top, right, bottom), float(probability)))
    return sorted(faces, key=lambda face: -prominence(face, width, height))
