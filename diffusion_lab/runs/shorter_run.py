"""A sweep's point that another folder of the sweep holds with fewer steps: its files are copied, then it is extended.

The shorter run stays as it is. What a run only replaces and never changes in place is hard-linked.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from diffusion_lab.records import UserError
from diffusion_lab.runs import backup
from diffusion_lab.runs.extension import LENGTH, check, is_longer
from diffusion_lab.runs.folder_record import CHECKPOINTS, read_folder_record
from diffusion_lab.runs.resume import differing_values, locked, run_id, wait_until_free
from diffusion_lab.runs.resume_folder import began_in
from diffusion_lab.system import atomic
from diffusion_lab.system.disk_errors import recoverable
from diffusion_lab.values.jsonable import plain
from diffusion_lab.values.mappings import flatten

log = logging.getLogger(__name__)

MARK = ".copying"  # in a folder whose files are not all copied yet
FOLDERS = (CHECKPOINTS, "adapters", "samples")  # hard-linked
FILES = (backup.BASE, backup.PROMPTS, backup.CONFIG, backup.EVENTS, backup.SCORES, backup.NAME, backup.RESULT)


def id_without_length(config: Mapping[str, Any]) -> str:
    """The run's id without the keys that decide how long it trains; `config`: as recorded."""
    own = {key.partition(".")[2] for key in LENGTH}
    return run_id({**config, "steps": {k: v for k, v in config["steps"].items() if k not in own}})


def discard_unfinished_copy(run_folder: Path) -> None:
    """Removes the files of a copy that was interrupted; waits while another process is making it."""
    if not (run_folder / MARK).exists():
        return
    wait_until_free(run_folder)
    with locked(run_folder):
        if not (run_folder / MARK).exists():  # finished by the other process
            return
        for name in FOLDERS:
            shutil.rmtree(run_folder / name, ignore_errors=True)
        for name in (*FILES, MARK):
            (run_folder / name).unlink(missing_ok=True)


def copy_shorter_run(config: Mapping[str, Any], run_folder: Path, folders: Iterable[Path]) -> Path | None:
    """Copies the run in the first of `folders` that can be extended to `config` into `run_folder`.

    Returns that folder, or None if there is none: those in use by another process are skipped, and nothing is copied
    while another process is at work in `run_folder`. Raises UserError if the disk is full.
    """
    for folder in folders:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(folder))
                _check(config, folder)
                stack.enter_context(locked(run_folder))
            except UserError as error:
                log.info("not extended from a shorter run: %s", error)
                continue
            if (run_folder / backup.RESULT).exists():  # copied by another process meanwhile
                return None
            with recoverable(run_folder):
                _copy(folder, run_folder)
            return folder
    return None


def _check(config: Mapping[str, Any], folder: Path) -> None:
    """Raises UserError if the run in `folder` cannot be extended to `config`."""
    found = read_folder_record(folder, lambda theirs: True)
    before = {} if found is None else found.result.get("config") or {}
    changed = differing_values(before, config, began_in(folder))
    if found is None or found.result.get("status") == "diverged" or not is_longer(changed):
        raise UserError(f"{folder}: holds no shorter run")
    check(folder, found.result, changed, flatten(plain(config)))


def _copy(source: Path, target: Path) -> None:
    atomic.write_text(target / MARK, f"{source}\n")
    for name in FOLDERS:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name, copy_function=_link, dirs_exist_ok=True)
    for name in FILES:
        with contextlib.suppress(FileNotFoundError):
            atomic.write_bytes(target / name, (source / name).read_bytes())
    (target / MARK).unlink()


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)
