"""Tensors on disk by a digest of everything they depend on, shared by runs, sweeps and processes.

An entry is one safetensors file with a checksum of its content in the header. It is written atomically and
never changed, so no process waits for another: two that need the same entry at the same time both compute it,
and the last one replaces the file by the same bytes. A damaged entry counts as missing. If the total size is
above the limit, the entries that were used least recently are deleted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_lab.records import UserError
from diffusion_lab.system.cache import default_cache

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

FOLDER = "evaluations"  # in the cache folder
LIMIT = "DIFFUSION_LAB_SHARED_GB"  # environment variable: size limit in GB (10^9 bytes); 0: nothing is shared
USUAL_GB = 4.0
_CHECKSUM = "sha256"  # in the header
_ABANDONED = 24 * 3600  # seconds after which a temporary file belongs to a process that was killed


def limit_in_bytes() -> int:
    """The limit of the store in bytes, from the environment. UserError if it is not a number of 0 or more."""
    given = os.environ.get(LIMIT, "").strip()
    try:
        found = float(given) if given else USUAL_GB
    except ValueError:
        found = math.nan
    if not 0 <= found < math.inf:
        raise UserError(
            f"{LIMIT}={given}: must be a size in GB, 0 or more, such as {LIMIT}=4; 0 turns sharing off"
        )
    return int(found * 1e9)


def open_store() -> Store | None:
    """The store in the cache folder; None if it is turned off."""
    limit = limit_in_bytes()
    return Store(default_cache() / FOLDER, limit) if limit else None


def key_of(facts: Any) -> str:
    """SHA-256 of JSON-like ``facts``, in hexadecimal. The order of mappings does not matter."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


class Store:
    """``limit``: of all entries together, in bytes."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._warned = False

    def path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def read(self, key: str) -> dict[str, Tensor] | None:
        """The entry's tensors, on the CPU; None if it is missing or damaged."""
        from safetensors import safe_open

        path = self.path(key)
        if not path.is_file():
            return None
        try:
            with safe_open(str(path), framework="pt") as file:
                # Copies: the library's tensors are not aligned, and the last bits of a product may depend on it.
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
                whole = (file.metadata() or {}).get(_CHECKSUM) == checksum(tensors)
        except FileNotFoundError:  # deleted by another process since
            return None
        except Exception as error:  # the library raises its own error, OSErrors and ValueErrors
            log.debug("%s cannot be read", path, exc_info=error)
            whole = False
        if not whole:
            log.warning("%s is damaged: its content is computed again", path)
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # used now
        return tensors

    def write(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Writes an entry, unless it is larger than the limit. If that fails, a warning is logged once."""
        from diffusion_lab.system import tensors as files

        if sum(value.nbytes for value in tensors.values()) > self.limit:
            return
        try:
            files.write(self.path(key), tensors, {_CHECKSUM: checksum(tensors)})
            self._prune()
        except (OSError, UserError) as error:
            if not self._warned:
                log.warning(
                    "%s cannot be written, so other runs compute this again (%s=0 turns sharing off): %s",
                    self.folder, LIMIT, error,
                )  # fmt: skip
            self._warned = True

    def _prune(self) -> None:
        """Deletes entries until the limit is kept, and what killed processes have left."""
        found: list[tuple[float, int, Path]] = []
        for path in self.folder.iterdir():
            with contextlib.suppress(OSError):  # another process deletes too
                status = path.stat()
                if path.suffix == ".safetensors":
                    found.append((status.st_mtime, status.st_size, path))
                elif path.suffix == ".tmp" and time.time() - status.st_mtime > _ABANDONED:
                    path.unlink()
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self.limit:
                return
            with contextlib.suppress(OSError):
                path.unlink()
            total -= size


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values, in hexadecimal."""
    import torch

    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
