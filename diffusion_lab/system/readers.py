"""Readers for external JSON and safetensors files, which may be truncated, empty, damaged or malformed.

The error names the file, the problem and the remedy. `key` is the setting that refers to the file
(`model.path=sd15`), or a function that creates the error. Importing this module is fast.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from diffusion_lab.records import UserError

if TYPE_CHECKING:
    from torch import Tensor

Key = str | Callable[[str], UserError]
AGAIN = "copy or download it again"
_NAMES = {
    dict: "an object",
    list: "a list",
    str: "a text",
    int: "a number",
    float: "a number",
    type(None): "null",
}


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a safetensors file."""

    metadata: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]  # of every tensor, by name, in alphabetical order
    dtypes: Mapping[str, str] = field(default_factory=dict)  # names as in safetensors: F32, BF16, I8


def read_json(path: Path, key: Key, *, kind: type = dict, name: str = "", remedy: str = AGAIN) -> Any:
    """The content of a JSON file, which must be of type `kind` (dict or list).

    `name`: the file's name in the message, by default its path. Raises UserError.
    """
    name = name or str(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        value = json.loads(text)
    except FileNotFoundError:
        refuse(key, f"{name} is missing", remedy)
    except (OSError, ValueError, RecursionError) as error:
        refuse(key, f"{name} {_unreadable(path, error)}", remedy, error)
    if not isinstance(value, kind):
        found = "true or false" if isinstance(value, bool) else _NAMES.get(type(value), "something else")
        refuse(key, f"{name} holds {found} where {_NAMES[kind]} is needed", remedy)
    return value


def read_header(path: Path, key: Key, *, name: str = "", remedy: str = AGAIN) -> Header:
    """Metadata and shapes of a safetensors file; its length is checked against them. Loads no weights.

    Raises UserError.
    """
    from safetensors import SafetensorError, safe_open

    name = name or str(path)
    try:
        with safe_open(str(path), framework="np") as file:
            parts = {tensor: file.get_slice(tensor) for tensor in sorted(file.keys())}
            return Header(
                dict(file.metadata() or {}),
                {tensor: tuple(part.get_shape()) for tensor, part in parts.items()},
                {tensor: str(part.get_dtype()) for tensor, part in parts.items()},
            )
    except FileNotFoundError:
        refuse(key, f"{name} is missing", remedy)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        refuse(key, f"{name} {_unreadable(path, error)}", remedy, error)


def read_tensors(path: Path, key: Key, *, name: str = "", remedy: str = AGAIN) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU. Raises UserError, also for non-finite values."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    name = name or str(path)
    try:
        tensors = dict(load_file(path))
    except FileNotFoundError:
        refuse(key, f"{name} is missing", remedy)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        refuse(key, f"{name} {_unreadable(path, error)}", remedy, error)
    for tensor, value in tensors.items():
        if value.is_floating_point() and not bool(value.float().isfinite().all()):
            refuse(key, f"{name} is damaged: {tensor} holds numbers that are not finite", remedy)
    return tensors


def _unreadable(path: Path, error: Exception) -> str:
    if path.is_dir():
        return "is a folder where a file is needed"
    try:
        if path.stat().st_size == 0:
            return "is empty"
    except OSError:
        pass
    return f"is damaged ({' '.join(str(error).split())[:150]})"


def refuse(key: Key, what: str, remedy: str = AGAIN, cause: BaseException | None = None) -> NoReturn:
    """Raises a UserError about `what`."""
    raise (UserError(f"{key}: {what}; {remedy}") if isinstance(key, str) else key(what)) from cause
