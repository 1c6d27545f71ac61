"""Images encoded as bytes, to be written atomically (`atomic.write_bytes`)."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image


def png(image: Image.Image) -> bytes:
    """PNG with the same bytes for the same pixels: no time stamp, fixed compression."""
    return encoded(image, "PNG", compress_level=6)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The image in the format `kind` ("PNG", "JPEG", "WEBP"), with Pillow's options."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
