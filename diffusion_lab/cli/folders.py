"""Folders that a command writes into: claimed before anything is written, and shown as a person would type them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from diffusion_lab.records import UserError
from diffusion_lab.system.disk_errors import recoverable
from diffusion_lab.system.folders import check_writable


def claim(folder: Path, key: str, overrides: Sequence[str], needed: int) -> Path:
    """Makes `folder` and returns it. One made of date and time gets a number, -2 and so on, if it is taken:
    two runs begun in the same second must not share it. `needed`: bytes that have to be free there.

    Raises UserError where it cannot be written.
    """
    if not any(word.lstrip("+").startswith(f"{key}=") for word in overrides):
        with recoverable(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
        number, wanted = 1, folder
        while True:
            with recoverable(folder), contextlib.suppress(FileExistsError):
                folder.mkdir()
                break
            number += 1
            folder = wanted.with_name(f"{wanted.name}-{number}")
    check_writable(folder, needed_bytes=needed)
    return folder


def shown(folder: Path, begun: Path | None = None) -> str:
    """Relative to `begun`, the folder in which the command was given (here), where it lies below."""
    with contextlib.suppress(ValueError):
        return str(folder.relative_to(begun or Path.cwd()))
    return str(folder)


def refuse_reference(folder: Path, named: str) -> None:
    """Hydra puts these folders into its configuration as they are, where ${ begins a reference to a key."""
    if "${" in str(folder):
        raise UserError(f"{named} {folder}: ${{ in a folder's name cannot be used here; choose another one")
