"""Folders that are whole or not there; what a kill has left of them; whether there is room for one."""

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
    """Gives an empty folder beside `path`; on a clean exit it becomes `path`, otherwise it is removed.

    Its files are flushed to the disk first. A folder that stood at `path` is replaced. Raises UserError where the disk
    is full or the place cannot be written.
    """
    with recoverable(path):
        check_guarded(path)
        with fresh_folder(path) as beside:
            yield beside


@contextlib.contextmanager
def fresh_folder(path: Path, *, keep: Callable[[Path], bool] | None = None) -> Iterator[Path]:
    """Like `replace_folder`, for caches: errors stay OSErrors, and several processes may make the same folder.

    `keep`: whether the folder that stands at `path` at the end, another process's, is whole; then it stays.
    """
    number = threading.get_native_id()  # of a process or thread: keeps two that make one folder apart
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
    """Renames `beside` to `path`; what stood there goes to `before` meanwhile, and back where that fails."""
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
