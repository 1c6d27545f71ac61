"""CLIP's embeddings of many picture files, kept on disk by the files' hashes."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from diffusion_lab.data.pictures import read_picture
from diffusion_lab.records import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from diffusion_lab.evaluation.encoders.bank import EncoderBank
    from diffusion_lab.evaluation.encoders.cache import FeatureCache
    from diffusion_lab.records import Pixels

log = logging.getLogger(__name__)

CHUNK = 64  # images in memory at once


def embed(
    paths: Sequence[Path],
    bank: EncoderBank,
    cache: FeatureCache,
    progress: Callable[[int], None] | None = None,
) -> tuple[Tensor, list[int]]:
    """float32 [m, d] of the m readable images, and their indices in ``paths``.

    Those that cannot are named in the log (AVA has a few); what ``cache`` has is not even decoded.
    Raises UserError if none can be read.
    """
    import torch

    identity = f"file; {bank.clip_identity()}; {torch.device(bank.device).type}"
    parts = []
    for start in range(0, len(paths), CHUNK):
        some = paths[start : start + CHUNK]

        def encode(numbers: list[int], some: Sequence[Path] = some) -> Tensor:
            return _encode([some[number] for number in numbers], bank)

        parts.append(cache.rows(identity, [file_key(path) for path in some], encode))
        if progress is not None:
            progress(len(some))
    rows = torch.cat(parts)
    there = torch.isfinite(rows).all(dim=1)
    broken = [path.name for path, good in zip(paths, there.tolist(), strict=True) if not good]
    if broken:
        shown = ", ".join(broken[:5]) + (" and so on" if len(broken) > 5 else "")
        log.warning("left out, cannot be read as pictures: %d, %s", len(broken), shown)
    if len(broken) == len(paths):
        raise UserError(f"job.images: none of the {len(paths)} rated pictures can be read as a picture")
    return rows[there], torch.nonzero(there)[:, 0].tolist()


def _encode(paths: Sequence[Path], bank: EncoderBank) -> Tensor:
    """One row per file, NaN if it cannot be read."""
    import torch

    pixels: list[Pixels | None] = []
    for path in paths:
        try:
            pixels.append(read_picture(path).pixels)
        except UserError:
            pixels.append(None)
    good = [number for number, picture in enumerate(pixels) if picture is not None]
    blank = np.zeros((8, 8, 3), np.uint8)  # only determines the width, if no file can be read
    seen = bank.features(
        [picture for picture in pixels if picture is not None] or [blank], texts=None, needs={"clip_image"}
    ).clip_image
    assert seen is not None
    rows = torch.full((len(paths), seen.shape[1]), torch.nan)
    if good:
        rows[good] = seen
    return rows


def file_key(path: Path) -> bytes:
    """SHA-256 of the file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
