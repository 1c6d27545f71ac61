"""Files that are whole or not there: written beside their place, flushed to the disk, then renamed.

A reader, and a run resumed after a kill, never meets half a file under a final name. What a person can
fix (a full disk, a folder that cannot be written or was removed) becomes a `UserError` with the path and
the remedy.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from diffusion_lab.records import UserError

CHUNK = 1 << 24  # bytes handed to the system at once

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_NOT_A_FOLDER = {errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOTEMPTY}


_ROOTS: dict[Path, tuple[int, int]] = {}  # folders that have to stay: device and inode of each


@contextlib.contextmanager
def standing_folder(folder: Path) -> Iterator[None]:
    """Inside, what is written below `folder` is refused with a UserError once that folder was removed or moved.

    Otherwise the next write would make it again, with a part of what it has to hold.
    """
    root = folder.absolute()
    with recoverable(root):
        status = root.stat()
    before = _ROOTS.get(root)
    _ROOTS[root] = (status.st_dev, status.st_ino)
    try:
        yield
    finally:
        if before is None:
            del _ROOTS[root]
        else:
            _ROOTS[root] = before


def _check_roots(path: Path) -> None:
    """Raises UserError where `path` belongs into a folder that had to stay and did not."""
    for root, identity in _ROOTS.items():
        if not path.absolute().is_relative_to(root):
            continue
        try:
            status = root.stat()
        except FileNotFoundError:
            status = None
        if status is None or (status.st_dev, status.st_ino) != identity:
            raise UserError(
                f"{root} was removed or moved while the run was writing into it: nothing more can be kept. "
                "Put it back and give the same command to resume the run, or begin again in another folder with "
                "hydra.run.dir=FOLDER"
            )


@contextlib.contextmanager
def recoverable(path: Path) -> Iterator[None]:
    """Turns an error about `path` that a person can mend into a UserError that says how.

    Errors of the system (OSError), and those in which safetensors reports one.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, FileNotFoundError):
            _check_roots(path)
        found = os_error(error)
        message = None if found is None else remedy(path, found)
        if message is None:
            raise
        raise UserError(message) from error


def os_error(error: BaseException) -> OSError | None:
    """The system's error that a library's own error stands for, if it says which."""
    if isinstance(error, OSError):
        return error
    match = re.search(r"\(os error (\d+)\)", str(error))  # as safetensors has it
    return None if match is None else OSError(int(match[1]), os.strerror(int(match[1])))


def remedy(path: Path | str, error: OSError) -> str | None:
    """What to do about an error in writing `path`; None where that is not known."""
    if error.errno in FULL:
        return (
            f"no room to write {path} ({error.strerror}): free some space or raise the quota, or put the run "
            "on another disk with hydra.run.dir=FOLDER (hydra.sweep.dir=FOLDER with -m)"
        )
    if error.errno in _FORBIDDEN:
        return (
            f"cannot write {path} ({error.strerror}): give yourself the right to write there, or choose "
            "another place with hydra.run.dir=FOLDER (hydra.sweep.dir=FOLDER with -m)"
        )
    if error.errno == errno.ENOENT and os.path.islink(path):
        return f"cannot write {path}: it is a symbolic link to {os.readlink(path)}, which is not there; remove the link"
    if error.errno == errno.ENOENT:
        return (
            f"cannot write {path} ({error.strerror}): its folder was removed or moved meanwhile; put it back, or "
            "choose another place with hydra.run.dir=FOLDER (hydra.sweep.dir=FOLDER with -m)"
        )
    if error.errno in _NOT_A_FOLDER:
        return (
            f"cannot write {path} ({error.strerror}): something else stands in its place; move it away, or "
            "choose another place with hydra.run.dir=FOLDER (hydra.sweep.dir=FOLDER with -m)"
        )
    return None


class Sink:
    """A file being written, as a file object with `write`; it hashes what it is given.

    The first error of the system is kept and the rest is dropped, until `check` raises it: libraries that write
    from compiled code (`torch.save`) would report an error of their own in its place.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
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
        _check_roots(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        # The process's number keeps two writers of one file apart; the dot keeps it out of listings.
        beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            try:
                sink = Sink(descriptor)
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
        _sync_folder(path.parent)


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


def dumps(value: Any, indent: int | None = None) -> str:
    """Strict JSON (no NaN), paths and other unknown values as their text, tuples and sets as lists."""
    return json.dumps(plain(value), indent=indent, ensure_ascii=False, allow_nan=False)


def plain(value: Any) -> Any:
    """`value` as JSON and YAML know it: mappings, lists, text, numbers, None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((plain(item) for item in value), key=str)
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # NumPy's and torch's scalars
        return plain(value.item())
    if hasattr(value, "keys"):  # other mappings
        return {str(key): plain(value[key]) for key in value.keys()}  # noqa: SIM118
    return str(value)


def append_line(path: Path, line: str, *, flush: bool = False) -> None:
    """Adds one line to a log in a single write; where that fails, what was written of it is cut off again.

    `flush`: the log is flushed to the disk too, so that the line outlives a power cut.
    """
    with recoverable(path):
        _check_roots(path)
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


@contextlib.contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Gives an empty folder beside `path`; on a clean exit it becomes `path`, otherwise it is removed.

    Its files are flushed to the disk first. A folder that stood at `path` is replaced.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    before = path.with_name(f".{path.name}.{os.getpid()}.old")
    with recoverable(path):
        _check_roots(path)
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        try:
            yield beside
            for file in sorted(beside.rglob("*")):
                if file.is_file():
                    descriptor = os.open(file, os.O_RDONLY)
                    try:
                        os.fsync(descriptor)
                    finally:
                        os.close(descriptor)
            if path.exists():
                os.replace(path, before)
            os.replace(beside, path)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            if before.exists() and not path.exists():
                os.replace(before, path)
            raise
        shutil.rmtree(before, ignore_errors=True)
        _sync_folder(path.parent)


def clear_leftovers(folder: Path) -> None:
    """What a kill has left in or below `folder` is put back where it was being replaced, or removed.

    Only for a folder in which nobody else is writing.
    """
    pattern = re.compile(r"\.(.+)\.\d+\.(tmp|old)")
    for path in sorted(folder.rglob(".*")):
        match = pattern.fullmatch(path.name)
        if match is None or not path.exists():
            continue
        place = path.with_name(match[1])
        with recoverable(path):
            if match[2] == "old" and not place.exists():
                os.replace(path, place)
            elif path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()


def check_writable(folder: Path, *, needed_bytes: int = 0) -> None:
    """Makes `folder` and writes a probe there. Raises UserError where that fails or less room is free."""
    probe = folder / f".probe.{os.getpid()}"
    write_bytes(probe, b"x" * 4096)
    with recoverable(folder):
        probe.unlink()
        free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise UserError(
            f"{folder} has {free / 1e6:.0f} MB free and the run needs about {needed_bytes / 1e6:.0f} MB: "
            "free some space, or put the run on another disk with hydra.run.dir=FOLDER"
        )


def _sync_folder(folder: Path) -> None:
    """Makes the renaming itself survive a power cut; systems that cannot do it say so and are left alone."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
