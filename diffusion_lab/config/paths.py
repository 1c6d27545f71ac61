"""Paths in the configuration, resolved once at the start relative to the folder in which the command was run.

After that every path is absolute, regardless of the working directory; `Config.as_typed` keeps the original
text. `data.folder=pictures`, `./pictures/` and the absolute path are the same configuration.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_lab.miniature.shipped import MINIATURES

if TYPE_CHECKING:
    from diffusion_lab.config.schema import Config

PATHS = (
    "data.folder", "data.impostors", "prompts.path", "job.images", "job.runs", "job.output", "job.artefact",
    "job.start", "job.ratings", "job.texts_file", "metrics.inception_weights",
)  # fmt: skip
"""Keys whose value is a file or folder on this machine, whether it exists or not."""
NAMES_OR_PATHS = (
    "model.path", "model.config", "metrics.face_weights", "metrics.clip_model", "metrics.clip_weights",
    "metrics.dino_model", "metrics.aesthetics_weights",
)  # fmt: skip
"""Keys whose value is a path if such a file or folder exists or if it is written as a path, else a name."""
BARE_NAMES = ("metrics.face_weights", "metrics.clip_weights", "metrics.aesthetics_weights")
"""Of these, the keys whose value without a slash or dot is always a name: "openai", "vggface2"."""


def is_path(key: str) -> bool:
    """Whether the key may contain a path."""
    return key in PATHS or key in NAMES_OR_PATHS


def resolve(config: Config, base: Path | str) -> Config:
    """A copy of the configuration with absolute paths; `as_typed` keeps the original text of changed ones.

    `base` is the folder to which relative paths refer.
    """
    resolved = copy.deepcopy(config)
    for key in (*PATHS, *NAMES_OR_PATHS):
        group, _, name = key.partition(".")
        node = getattr(resolved, group)
        given = getattr(node, name, None)
        if not given or not _means_path(key, given, base):
            continue
        path = absolute(given, base)
        if path != given:
            setattr(node, name, path)
            resolved.as_typed[key] = given
    return resolved


def _means_path(key: str, given: str, base: Path | str) -> bool:
    if key in PATHS:
        return True
    if given in MINIATURES:
        return False
    if given.startswith(("/", "~", "./", "../")) or given in (".", ".."):
        return True
    if key in BARE_NAMES and not {"/", "."} & set(given):
        return False
    return os.path.exists(absolute(given, base))


def absolute(given: str | Path, base: Path | str) -> str:
    """`given` as an absolute path, with ~ expanded and double slashes and dots removed. Keeps symbolic links.

    `..` is resolved after following links, as by the operating system.
    """
    path = os.path.join(os.path.abspath(base), os.path.expanduser(given))
    return os.path.realpath(path) if ".." in Path(path).parts else os.path.normpath(path)


def same(one: object, other: object, base: Path | str | None = None) -> bool:
    """Whether two values of a key that may contain a path refer to the same file or folder.

    `base` is the folder to which a relative `one` refers, if known; otherwise a relative path is the same as
    an absolute one that ends with it.
    """
    if one == other:
        return True
    if not (isinstance(one, str) and isinstance(other, str) and one and other):
        return False
    first, second = os.path.expanduser(one), os.path.expanduser(other)
    if not os.path.isabs(first) and base is not None:
        first = absolute(first, base)
    if os.path.isabs(first) and os.path.isabs(second):
        return os.path.normpath(first) == os.path.normpath(second) or _real(first) == _real(second)
    longer, shorter = sorted((Path(first).parts, Path(second).parts), key=len, reverse=True)
    return not {".."} & {*longer, *shorter} and bool(shorter) and longer[-len(shorter) :] == shorter


def _real(path: str) -> tuple[Any, ...]:
    """The identity of the file or folder: device and inode if it exists, else its resolved name."""
    try:
        found = os.stat(path)
    except OSError:
        return ("", os.path.realpath(path))
    return (found.st_dev, found.st_ino)


def as_typed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A plain configuration with its paths as they were given, for readers on other machines."""
    plain = {name: dict(value) if isinstance(value, Mapping) else value for name, value in config.items()}
    for key, given in (plain.pop("as_typed", None) or {}).items():
        group, _, name = key.partition(".")
        if isinstance(plain.get(group), dict) and name in plain[group]:
            plain[group][name] = given
    return plain


def searched(words: Iterable[str], base: Path | str) -> list[str]:
    """Words in which the file:// folders of hydra.searchpath are absolute."""
    from diffusion_lab.values.quoting import always_quoted, split, unquoted

    found = []
    for word in words:
        key, _, value = word.partition("=")
        if key.lstrip("+") == "hydra.searchpath" and value.startswith("[") and value.endswith("]"):
            parts = [unquoted(part) or part for part in split(value[1:-1])]
            moved = [
                f"file://{absolute(part.removeprefix('file://'), base)}"
                if part.startswith("file://")
                else part
                for part in parts
            ]
            if moved != parts:
                word = f"{key}=[{','.join(always_quoted(part) for part in moved if part)}]"
        found.append(word)
    return found
