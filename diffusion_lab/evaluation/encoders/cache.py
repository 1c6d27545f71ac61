"""Embeddings cached on disk by image and encoder, so that nothing is encoded twice.

One SQLite file: an encoder's identity (name, weights' hash, preprocessing), a SHA-256 of the pixels or the text,
and the embedding as float32. It can be deleted at any time. A damaged file is rebuilt. If it cannot be written, a
warning is logged and the embeddings are computed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from diffusion_lab.records import Pixels

log = logging.getLogger(__name__)

WAIT_SECONDS = 20.0  # for another process that is writing
_RENEWALS = 2
_AT_ONCE = 500  # keys per query: the limit of SQLite is 999 in old versions


class RowCache(Protocol):
    """Where a bank stores encoder outputs: `FeatureCache`, or `blocks.BlockCache`."""

    def rows(self, identity: str, keys: Sequence[bytes], encode: Callable[[list[int]], Tensor]) -> Tensor:
        """float32 [len(keys), ...]: stored rows; the others are computed by ``encode(numbers)``."""


def image_key(pixels: Pixels) -> bytes:
    """SHA-256 of shape and values of uint8 [h, w, 3]: the same for the same image in any file format."""
    digest = hashlib.sha256(f"{pixels.shape} {pixels.dtype}\n".encode())
    digest.update(np.ascontiguousarray(pixels).tobytes())
    return digest.digest()


def text_key(text: str) -> bytes:
    """SHA-256 of a text."""
    return hashlib.sha256(b"text\n" + text.encode()).digest()


class FeatureCache:
    """``path``: the file, created when first written. ``hits`` and ``misses`` count rows, for the log."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.hits = self.misses = 0
        self._broken = False
        self._renewed = 0  # how often a damaged file was removed

    def rows(self, identity: str, keys: Sequence[bytes], encode: Callable[[list[int]], Tensor]) -> Tensor:
        """float32 [len(keys), ...]: cached rows; the others are computed by ``encode(numbers)`` and cached.

        Equal keys are encoded once. NaN rows are cached too: they record that there is no face.
        """
        import torch

        known = self._read(identity, keys)
        if len({row.size for row in known.values()}) > 1:
            log.warning(
                "the feature cache %s has rows of several sizes for one encoder: they are computed again",
                self.path,
            )
            known = {}
        missing = {key: number for number, key in reversed(list(enumerate(keys))) if key not in known}
        numbers = sorted(missing.values())
        self.hits += len(keys) - len(numbers)
        self.misses += len(numbers)
        if numbers:
            encoded = encode(numbers).float().cpu()
            fresh = {keys[number]: row.numpy() for number, row in zip(numbers, encoded, strict=True)}
            odd = [key for key, row in known.items() if row.size != encoded[0].numel()]
            if odd:
                log.warning(
                    "the feature cache %s has rows of another size: they are computed again", self.path
                )
                again = sorted(list(keys).index(key) for key in odd)
                fresh |= {
                    keys[n]: row.numpy() for n, row in zip(again, encode(again).float().cpu(), strict=True)
                }
            self._write(identity, fresh)
            known |= fresh
        return torch.from_numpy(np.stack([known[key] for key in keys]))

    def _read(self, identity: str, keys: Sequence[bytes]) -> dict[bytes, np.ndarray]:
        found: dict[bytes, np.ndarray] = {}
        if self._broken or not self.path.exists():
            return found
        wanted = list(dict.fromkeys(keys))
        with self._guarded(), contextlib.closing(self._open()) as base:
            for start in range(0, len(wanted), _AT_ONCE):
                part = wanted[start : start + _AT_ONCE]
                marks = ",".join("?" * len(part))
                question = f"SELECT key, value FROM features WHERE encoder = ? AND key IN ({marks})"
                for key, value in base.execute(question, [identity, *part]):
                    if (
                        isinstance(value, bytes) and value and len(value) % 4 == 0
                    ):  # else it is computed again
                        found[key] = np.frombuffer(value, dtype="<f4").copy()
        return found

    def _write(self, identity: str, rows: dict[bytes, np.ndarray]) -> None:
        question = "INSERT OR REPLACE INTO features VALUES (?, ?, ?)"
        values = [(identity, key, row.astype("<f4").tobytes()) for key, row in rows.items()]
        for _ in range(2):  # the second time with a new file, if the old one was damaged
            before = self._renewed
            if self._broken:
                return
            with self._guarded():
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with contextlib.closing(self._open()) as base, base:
                    base.executemany(question, values)
            if self._renewed == before:
                return

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
            if self._renewed < _RENEWALS and self._is_damaged(error) and self._remove():
                self._renewed += 1
                log.warning("the feature cache %s cannot be used and is rebuilt (%s)", self.path, error)
                return
            self._broken = True
            log.warning("the feature cache %s cannot be used, nothing is stored in it: %s", self.path, error)

    def _is_damaged(self, error: Exception) -> bool:
        """Whether the file is no database or has other tables. False if it is locked, not writable, or the disk is full."""
        if self.path.is_dir():
            return True
        foreign = any(
            words in str(error) for words in ("no such", "has no column", "values for", "columns but")
        )
        return isinstance(error, sqlite3.DatabaseError) and (
            foreign or not isinstance(error, sqlite3.OperationalError)
        )

    def _remove(self) -> bool:
        try:
            if self.path.is_dir():
                shutil.rmtree(self.path)
            for end in ("", "-journal", "-wal", "-shm"):
                self.path.with_name(f"{self.path.name}{end}").unlink(missing_ok=True)
        except OSError:
            return False
        return True
