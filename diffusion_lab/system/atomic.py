"""Files that are whole or not there: written beside their place, flushed to the disk, then renamed.

A reader, and a run resumed after a kill, never meets half a file under a final name. What a person can
fix (a full disk, a folder that cannot be written or was removed) becomes a `UserError` with the path and
the remedy.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from diffusion_lab.system.disk_errors import check_guarded, recoverable
from diffusion_lab.values.jsonable import dumps

CHUNK = 1 << 24  # bytes handed to the system at once


class Sink:
    """A file being written, as a file object with `write`; it hashes what it is given.

    The first error of the system is kept and the rest is dropped, until `check` raises it: libraries that write
    from compiled code (`torch.save`) would report an error of their own in its place.
    """

    def __init__(self, descriptor: int, name: str = "") -> None:
        """`name`: of the file, for the error."""
        self._descriptor, self._name = descriptor, name
        self._hash = hashlib.sha256()
        self._error: OSError | None = None

    def write(self, content: bytes | memoryview) -> int:
        rest = memoryview(content).cast("B")
        length = len(rest)
        try:
            while rest and self._error is None:
                # os.write may take less than it is given, on a nearly full disk above all.
                taken = os.write(self._descriptor, rest[:CHUNK])
                self._hash.update(rest[:taken])
                rest = rest[taken:]
        except OSError as error:
            error.filename = error.filename or self._name or None
            self._error = error
        return length

    def flush(self) -> None:
        """Nothing is held back."""

    def check(self) -> None:
        """Raises the error that writing met, if any."""
        if self._error is not None:
            raise self._error

    @property
    def sha256(self) -> str:
        """Of all that was written, in hexadecimal."""
        return self._hash.hexdigest()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Sink]:
    """A sink for the content of `path`, which is replaced in one step on a clean exit; its folder is made.

    Raises UserError where the disk is full or the place cannot be written; `path` is then as it was.
    """
    with recoverable(path):
        check_guarded(path)
        with fresh_file(path) as sink:
            yield sink


@contextlib.contextmanager
def fresh_file(path: Path) -> Iterator[Sink]:
    """Like `writing`, for caches: errors stay OSErrors, for a message that names the cache's own setting."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process's number keeps two writers of one file apart; the dot keeps it out of listings.
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            sink = Sink(descriptor, str(path))
            try:
                yield sink
            except Exception:
                sink.check()  # the cause of whatever a library made of it
                raise
            sink.check()
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    sync_folder(path.parent)


def write_pieces(path: Path, pieces: Iterable[bytes | memoryview]) -> str:
    """Like `write_bytes`, piece by piece. Returns the SHA-256 of the whole, in hexadecimal."""
    with writing(path) as sink:
        for piece in pieces:
            sink.write(piece)
            sink.check()
    return sink.sha256


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces `path` by `content` in one step; its folder is made if need be.

    Raises UserError where the disk is full or the place cannot be written; `path` is then as it was.
    """
    write_pieces(path, [content])


def write_text(path: Path, text: str) -> None:
    """Like `write_bytes`, in UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Like `write_bytes`; indented, UTF-8, and strictly JSON: NaN and infinities become null."""
    write_text(path, dumps(value, indent=2) + "\n")


def append_line(path: Path, line: str, *, flush: bool = False) -> None:
    """Adds one line to a log in a single write; where that fails, what was written of it is cut off again.

    `flush`: the log is flushed to the disk too, so that the line outlives a power cut.
    """
    with recoverable(path):
        check_guarded(path)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            size = os.fstat(descriptor).st_size
            try:
                sink = Sink(descriptor)
                sink.write(line.rstrip("\n").encode("utf-8") + b"\n")
                sink.check()
                if flush:
                    os.fsync(descriptor)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)


def move(source: Path, target: Path) -> None:
    """Puts a finished file or folder in its place, on the same disk, in one step. OSError as the system has it."""
    if source.is_file():
        sync_file(source)
    os.replace(source, target)
    sync_folder(target.parent)


def sync_file(path: Path) -> None:
    """Flushes what was written to `path` to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Makes the renaming itself survive a power cut; systems that cannot do it say so and are left alone."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
