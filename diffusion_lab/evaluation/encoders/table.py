"""Encoders beside the built-in ones: a metric names one in `needs` and finds its rows in `Features.more`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from diffusion_lab.config.schema import Metrics
    from diffusion_lab.records import Pixels


class ImageEncoder(Protocol):
    """Loaded once for each run, when a metric first needs it."""

    name: str  # for the record, with version and preprocessing: what a score depends on
    version: str  # of the weights
    preprocessing: str

    def embed_images(self, images: Sequence[Pixels]) -> Tensor:
        """uint8 [h, w, 3] each -> float [n, d]."""


# Name -> function of the settings `metrics` and the device ("cpu", "cuda:0"); it imports torch itself.
IMAGE_ENCODERS: dict[str, Callable[[Metrics, str], ImageEncoder]] = {}
