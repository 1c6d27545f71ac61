"""What encoders have seen, kept on disk by image and encoder, so that nothing is encoded twice.

One SQLite file: an encoder's identity (name, weights' hash, preprocessing), a SHA-256 of the pixels or the text,
and the embedding as float32. It can be deleted at any time; a broken or unwritable one costs a warning and time,
never a result.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from diffusion_lab.interfaces import Pixels

log = logging.getLogger(__name__)

WAIT_SECONDS = 20.0  # for another process that writes
_AT_ONCE = 500  # keys in one question: SQLite's own limit is 999 in old versions


def image_key(pixels: Pixels) -> bytes:
    """SHA-256 of shape and values of uint8 [h, w, 3]: the same for the same picture in any file format."""
    digest = hashlib.sha256(f"{pixels.shape} {pixels.dtype}\n".encode())
    digest.update(np.ascontiguousarray(pixels).tobytes())
    return digest.digest()


def text_key(text: str) -> bytes:
    """SHA-256 of a text."""
    return hashlib.sha256(b"text\n" + text.encode()).digest()


class FeatureCache:
    """``path``: the file, made when first written. ``hits`` and ``misses`` count rows, for the log."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.hits = self.misses = 0
        self._broken = False

    def rows(self, identity: str, keys: Sequence[bytes], encode: Callable[[list[int]], Tensor]) -> Tensor:
        """float32 [len(keys), ...]: rows that are kept, and ``encode(numbers)`` for the others, which it keeps.

        Of equal keys one is encoded. Rows are kept with NaN too: that there is no face is worth knowing.
        """
        import torch

        known = self._read(identity, keys)
        missing = {key: number for number, key in reversed(list(enumerate(keys))) if key not in known}
        numbers = sorted(missing.values())
        self.hits += len(keys) - len(numbers)
        self.misses += len(numbers)
        if numbers:
            encoded = encode(numbers).float().cpu()
            fresh = {keys[number]: row.numpy() for number, row in zip(numbers, encoded, strict=True)}
            self._write(identity, fresh)
            known |= fresh
        return torch.from_numpy(np.stack([known[key] for key in keys]))

    def _read(self, identity: str, keys: Sequence[bytes]) -> dict[bytes, np.ndarray]:
        found: dict[bytes, np.ndarray] = {}
        if self._broken or not self.path.is_file():
            return found
        wanted = list(dict.fromkeys(keys))
        with self._guarded(), contextlib.closing(self._open()) as base:
            for start in range(0, len(wanted), _AT_ONCE):
                part = wanted[start : start + _AT_ONCE]
                marks = ",".join("?" * len(part))
                question = f"SELECT key, value FROM features WHERE encoder = ? AND key IN ({marks})"
                for key, value in base.execute(question, [identity, *part]):
                    found[key] = np.frombuffer(value, dtype="<f4").copy()
        return found

    def _write(self, identity: str, rows: dict[bytes, np.ndarray]) -> None:
        if self._broken:
            return
        with self._guarded():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(self._open()) as base, base:
                base.executemany(
                    "INSERT OR REPLACE INTO features VALUES (?, ?, ?)",
                    [(identity, key, row.astype("<f4").tobytes()) for key, row in rows.items()],
                )

    def _open(self) -> sqlite3.Connection:
        base = sqlite3.connect(self.path, timeout=WAIT_SECONDS)
        base.execute(
            "CREATE TABLE IF NOT EXISTS features "
            "(encoder TEXT, key BLOB, value BLOB, PRIMARY KEY (encoder, key)) WITHOUT ROWID"
        )
        return base

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, ValueError) as error:
            self._broken = True
            log.warning("the feature cache %s cannot be used, all is encoded anew: %s", self.path, error)
