"""Disk errors as messages with a remedy: no space, no write permission, a folder that was removed."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from diffusion_lab.records import UserError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_NOT_A_FOLDER = {errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOTEMPTY}
_GUARDED: dict[Path, tuple[int, int]] = {}  # folders that must not be removed: device and inode of each


@contextlib.contextmanager
def guarded_folder(folder: Path) -> Iterator[None]:
    """Inside, writing below `folder` raises UserError once that folder has been removed or moved.

    Otherwise the next write would create it again, with only part of its content.
    """
    root = folder.absolute()
    with recoverable(root):
        status = root.stat()
    before = _GUARDED.get(root)
    _GUARDED[root] = (status.st_dev, status.st_ino)
    try:
        yield
    finally:
        if before is None:
            del _GUARDED[root]
        else:
            _GUARDED[root] = before


def check_guarded(path: Path) -> None:
    """Raises UserError if `path` is below a guarded folder that has been removed or moved."""
    for root, identity in _GUARDED.items():
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
    """Converts errors about `path` that the user can fix into a UserError with the remedy.

    These are OSErrors, and safetensors' own errors that report one.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, FileNotFoundError):
            check_guarded(path)
        found = os_error(error)
        message = None if found is None else remedy(path, found)
        if message is None:
            raise
        raise UserError(message) from error


def os_error(error: BaseException) -> OSError | None:
    """The OSError that a library's own error reports, if its number is given."""
    if isinstance(error, OSError):
        return error
    match = re.search(r"\(os error (\d+)\)", str(error))  # as in safetensors' messages
    return None if match is None else OSError(int(match[1]), os.strerror(int(match[1])))


def remedy(path: Path | str, error: OSError) -> str | None:
    """What to do about an error in writing `path`; None if unknown."""
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
        return f"cannot write {path}: it is a symbolic link to {os.readlink(path)}, which does not exist; remove the link"
    if error.errno == errno.ENOENT:
        return (
            f"cannot write {path} ({error.strerror}): its folder was removed or moved meanwhile; put it back, or "
            "choose another place with hydra.run.dir=FOLDER (hydra.sweep.dir=FOLDER with -m)"
        )
    if error.errno in _NOT_A_FOLDER:
        return (
            f"cannot write {path} ({error.strerror}): something else is in its place; move it away, or "
            "choose another place with hydra.run.dir=FOLDER (hydra.sweep.dir=FOLDER with -m)"
        )
    return None
