"""Checksums of a run's files, stored in result.json: they reveal missing, truncated or foreign files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

WHOLE_BYTES = 4 << 20  # files up to this size are read whole
PART_BYTES = 1 << 20  # of larger files, at the start, in the middle and at the end


def file_checksum(path: Path) -> str:
    """ "SIZE:SHA256" of a file, the digest truncated to 32 digits. Above 4 MiB, three parts are hashed.

    This way gigabytes of weights are compared in milliseconds. Raises OSError if the file cannot be read.
    """
    digest = hashlib.sha256()
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= WHOLE_BYTES:
            digest.update(file.read())
        else:
            for start in (0, (size - PART_BYTES) // 2, size - PART_BYTES):
                file.seek(start)
                digest.update(file.read(PART_BYTES))
    return f"{size}:{digest.hexdigest()[:32]}"


def checksums_of(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Checksums of the files at or below `names`, by path in `folder`; missing ones are skipped."""
    found: dict[str, str] = {}
    for name in names:
        at = folder / name
        files = sorted(at.rglob("*")) if at.is_dir() else [at]
        found |= {
            path.relative_to(folder).as_posix(): file_checksum(path)
            for path in files
            if path.is_file() and not path.name.startswith(".")
        }
    return found


def damaged(folder: Path, recorded: Mapping[str, object]) -> list[str]:
    """The recorded files that are missing or have changed, in the record's order.

    A folder of adapters, images or checkpoints that is missing entirely was removed on purpose (by
    `steps.keep_adapters`, or by a user who needed the space) and is not reported.
    """
    lost = []
    for name, known in recorded.items():
        parts = PurePosixPath(name).parts
        if not parts or parts[0] in ("/", "artefact") or ".." in parts:
            removed = False
        else:
            removed = len(parts) > 1 and not (folder / Path(*parts[:-1])).is_dir()
        if removed or ".." in parts or name.startswith("/"):
            continue
        path = folder / name
        try:
            if not path.is_file() or file_checksum(path) != known:
                lost.append(name)
        except OSError:
            lost.append(name)
    return lost
