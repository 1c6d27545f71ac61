"""Atomically created folders, clean-up after a kill, and checks for free space."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from diffusion_lab.records import UserError
from diffusion_lab.system.atomic import sync_file, sync_folder, write_bytes
from diffusion_lab.system.disk_errors import check_guarded, recoverable


@contextlib.contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """Yields an empty folder next to `path`; on a clean exit it becomes `path`, otherwise it is removed.

    Its files are flushed to disk first. An existing folder at `path` is replaced. Raises UserError if the
    disk is full or the parent folder cannot be written.
    """
    with recoverable(path):
        check_guarded(path)
        with fresh_folder(path) as beside:
            yield beside


@contextlib.contextmanager
def fresh_folder(path: Path, *, keep: Callable[[Path], bool] | None = None) -> Iterator[Path]:
    """Like `replace_folder`, for caches: errors remain OSErrors, and several processes may write it at once.

    `keep`: whether a folder that another process has put at `path` meanwhile is complete; if so, it is kept.
    """
    number = threading.get_native_id()  # distinguishes processes and threads that create the same folder
    beside, before = (path.with_name(f".{path.name}.{number}.{kind}") for kind in ("tmp", "old"))
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        yield beside
        _sync_files(beside)
        if keep is None or not keep(path):
            _put(beside, path, before, keep)
        sync_folder(path.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _put(beside: Path, path: Path, before: Path, keep: Callable[[Path], bool] | None) -> None:
    """Renames `beside` to `path`; an existing folder is moved to `before`, and moved back if that fails."""
    with contextlib.suppress(FileNotFoundError):
        os.replace(path, before)
    try:
        os.replace(beside, path)
    except OSError:
        if before.exists() and not path.exists():
            os.replace(before, path)
        if keep is None or not keep(path):
            raise
    shutil.rmtree(before, ignore_errors=True)


def _sync_files(folder: Path) -> None:
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            sync_file(file)


def clear_leftovers(folder: Path) -> None:
    """Restores folders in or below `folder` whose replacement was interrupted, and removes temporary ones.

    Only for folders to which no other process is writing.
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
    """Creates `folder` and writes a test file. Raises UserError if that fails or too little space is free."""
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
