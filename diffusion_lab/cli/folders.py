"""Output folders of a command: claimed before anything is written, and shown as relative paths."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from diffusion_lab.records import UserError
from diffusion_lab.system.disk_errors import recoverable
from diffusion_lab.system.folders import check_writable


def claim(folder: Path, key: str, overrides: Sequence[str], needed: int) -> Path:
    """Creates `folder` and returns it. `needed`: the bytes that must be free there.

    An existing folder named by date and time gets a suffix, -2 and so on: two runs started in the same second
    must not share it. Raises UserError if it cannot be written.
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
    """The path relative to `begun` (default: the current folder) if it is below that folder."""
    with contextlib.suppress(ValueError):
        return str(folder.relative_to(begun or Path.cwd()))
    return str(folder)


def refuse_reference(folder: Path, named: str) -> None:
    """Rejects ${ in a folder: Hydra inserts it unescaped into its configuration, as an interpolation."""
    if "${" in str(folder):
        raise UserError(f"{named} {folder}: ${{ in a folder's name cannot be used here; choose another one")
