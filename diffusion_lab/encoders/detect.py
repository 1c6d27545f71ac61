"""Face detection: facenet-pytorch's MTCNN with the weights in its wheel, made safe for batches.

Source: Zhang et al. 2016, "Joint Face Detection and Alignment Using Multitask Cascaded Convolutional
Networks".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from diffusion_lab.encoders.weights import fingerprint

_MIN_FACE = 20  # pixels of the (enlarged) image: MTCNN's own default
_THRESHOLDS = (0.6, 0.7, 0.7)  # of its three networks: the defaults
_FACTOR = 0.709  # of its image pyramid
_SMALLEST = 21  # pixels of the shorter side below which the pyramid has no level at all
_NO_FACE = 8  # pixels of the shorter side below which nobody could tell a face: not enlarged for it


@dataclass(frozen=True, slots=True)
class Face:
    """One face: its box (left, top, right, bottom) in pixels of the input image, and MTCNN's probability."""

    box: tuple[float, float, float, float]
    probability: float


class FaceDetector:
    """One face, or none, per image.

    ``enlarge_to``: images whose shorter side is smaller are enlarged (bilinear) until it has this many
    pixels, since MTCNN misses faces of less than about 40 pixels; None leaves images as they are.
    """

    name = "mtcnn of facenet-pytorch"

    def __init__(self, device: str = "cpu", enlarge_to: int | None = 160) -> None:
        from facenet_pytorch import MTCNN

        self.device = torch.device(device)
        self.enlarge_to = enlarge_to
        self._net = MTCNN(keep_all=True, post_process=False, device=self.device)
        self.version = fingerprint(self._net)
        self.preprocessing = f"most probable face of {_MIN_FACE} pixels or more" + (
            "" if enlarge_to is None else f", shorter side enlarged to {enlarge_to}, bilinear"
        )

    def detect(self, images: Sequence[NDArray[np.uint8]]) -> list[Face | None]:
        """The most probable face of each image (uint8 [h, w, 3], any sizes); of near equals the largest.

        Every image goes through the cascade alone, so its result is the same to the bit whatever else is in
        the list. (Sharing a batch was tried: no faster on a CPU, and boxes moved by 1e-5 pixels.)
        """
        return [self._one(image) for image in images]

    def crop(self, image: NDArray[np.uint8], face: Face, size: int, margin: float = 0.0) -> NDArray[np.uint8]:
        """See :func:`crop`."""
        return crop(image, face, size, margin)

    @torch.no_grad()
    def _one(self, image: NDArray[np.uint8]) -> Face | None:
        from facenet_pytorch.models.utils.detect_face import detect_face

        if min(image.shape[:2]) < _NO_FACE:
            return None
        enlarged, scale = _enlarge(image, self.enlarge_to)
        if min(enlarged.shape[:2]) < _SMALLEST:
            return None
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
        return _best(boxes[0], scale, width, height)


def crop(image: NDArray[np.uint8], face: Face, size: int, margin: float = 0.0) -> NDArray[np.uint8]:
    """The square around ``face``, resized (bilinear, antialiased): uint8 [size, size, 3].

    The square's side is the box's longer side times ``1 + margin``; beyond the image its edge is repeated.
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


def _best(found: Any, scale: float, width: int, height: int) -> Face | None:
    """The most probable of MTCNN's boxes (float [n, 5], enlarged pixels); within 0.01 the largest."""
    found = np.asarray(found, dtype=np.float64).reshape(-1, 5)
    if not len(found):
        return None
    area = (found[:, 2] - found[:, 0]) * (found[:, 3] - found[:, 1])
    near = found[:, 4] >= found[:, 4].max() - 0.01
    pick = int(np.argmax(np.where(near, area, -np.inf)))
    box = found[pick, :4] / scale
    box = np.clip(box, 0, (width, height, width, height))
    if box[2] - box[0] < 1 or box[3] - box[1] < 1:
        return None
    left, top, right, bottom = (float(v) for v in box)
    return Face((left, top, right, bottom), float(found[pick, 4]))
