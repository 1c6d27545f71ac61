"""Atomic file writes: a temporary file next to the target is written, flushed to disk, then renamed.

Neither a reader nor a run resumed after a kill ever finds a partial file under its final name. Errors that
the user can fix (a full disk, a folder that cannot be written or was removed) become a `UserError` with the
path and the remedy.
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

CHUNK = 1 << 24  # bytes per system call


class Sink:
    """A file being written, as a file object with `write` that also hashes the content.

    The first system error is kept, and later writes are discarded until `check` raises it: libraries that
    write from compiled code (`torch.save`) would replace it by an error of their own.
    """

    def __init__(self, descriptor: int, name: str = "") -> None:
        """`name`: the file's name, for the error."""
        self._descriptor, self._name = descriptor, name
        self._hash = hashlib.sha256()
        self._error: OSError | None = None

    def write(self, content: bytes | memoryview) -> int:
        rest = memoryview(content).cast("B")
        length = len(rest)
        try:
            while rest and self._error is None:
                # os.write may write less than requested, especially on a nearly full disk.
                taken = os.write(self._descriptor, rest[:CHUNK])
                self._hash.update(rest[:taken])
                rest = rest[taken:]
        except OSError as error:
            error.filename = error.filename or self._name or None
            self._error = error
        return length

    def flush(self) -> None:
        """Does nothing, since nothing is buffered."""

    def check(self) -> None:
        """Raises the first error that occurred while writing, if any."""
        if self._error is not None:
            raise self._error

    @property
    def sha256(self) -> str:
        """The SHA-256 of everything written, in hexadecimal."""
        return self._hash.hexdigest()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Sink]:
    """A sink for the content of `path`, which is replaced atomically on a clean exit; its folder is created.

    Raises UserError if the disk is full or the folder cannot be written; `path` is then unchanged.
    """
    with recoverable(path):
        check_guarded(path)
        with fresh_file(path) as sink:
            yield sink


@contextlib.contextmanager
def fresh_file(path: Path) -> Iterator[Sink]:
    """Like `writing`, for caches: errors stay OSErrors, for a message that names the cache's own setting."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The process id distinguishes two writers of one file; the dot hides it in listings.
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            sink = Sink(descriptor, str(path))
            try:
                yield sink
            except Exception:
                sink.check()  # the cause of the library's own error
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
    """Like `write_bytes`, in pieces. Returns the SHA-256 of the file, in hexadecimal."""
    with writing(path) as sink:
        for piece in pieces:
            sink.write(piece)
            sink.check()
    return sink.sha256


def write_bytes(path: Path, content: bytes) -> None:
    """Replaces `path` by `content` atomically; its folder is created if necessary.

    Raises UserError if the disk is full or the folder cannot be written; `path` is then unchanged.
    """
    write_pieces(path, [content])


def write_text(path: Path, text: str) -> None:
    """Like `write_bytes`, in UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Like `write_bytes`; indented, in UTF-8 and strict JSON: NaN and infinities become null."""
    write_text(path, dumps(value, indent=2) + "\n")


def append_line(path: Path, line: str, *, flush: bool = False) -> None:
    """Appends one line to a log in a single write; if that fails, a partially written line is removed again.

    `flush`: also flushes the log to disk, so that the line survives a power failure.
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
    """Moves a finished file or folder to its target on the same disk, atomically. May raise OSError."""
    if source.is_file():
        sync_file(source)
    os.replace(source, target)
    sync_folder(target.parent)


def sync_file(path: Path) -> None:
    """Flushes what was written to `path` to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Makes a rename survive a power failure; does nothing on systems that do not support it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
