"""Encoders in transformers' format: a local folder or a hub id, safetensors only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from diffusion_lab.records import UserError
from diffusion_lab.system.readers import read_header, read_json

WEIGHTS = (".safetensors", ".bin", ".ckpt", ".pt", ".pth")

DESCRIPTIONS = (
    "config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json",
    "special_tokens_map.json", "model.safetensors.index.json",
)  # fmt: skip

T = TypeVar("T")


def load_pretrained(load: Callable[[str], T], name: str, key: str, files: str) -> T:
    """``load(name)``. Errors become a UserError with the key and the files that are needed.

    ``files``: "config.json and model.safetensors".
    """
    folder = Path(name).expanduser()
    local = folder.is_dir()
    # A hub id may contain a dot (owner/model-1.5), so only the suffix of a weights file indicates a path.
    if not local and (folder.suffix in WEIGHTS or name.startswith((".", "/", "~"))):
        problem = "that is a file" if folder.is_file() else "there is no such folder"
        raise UserError(f"{key}={name}: {problem}; give a folder with {files}, or a hub id (owner/name)")
    if (
        local
        and not (folder / "model.safetensors").is_file()
        and not list(folder.glob("model-*.safetensors"))
    ):
        raise UserError(f"{key}={name}: model.safetensors is missing there; it needs {files}")
    if local:
        _check_files(folder, f"{key}={name}")
    from diffusion_lab.models.hub import cached, from_cache

    try:
        weights = ("model.safetensors", "model.safetensors.index.json")
        with from_cache(not local and any(cached(name, file) is not None for file in weights)):
            return load(str(folder) if local else name)
    except Exception as error:  # no network, a private repository, an unsuitable file
        raise UserError(
            f"{key}={name} could not be {'read' if local else 'downloaded or read'} ({_first(error)}). "
            f"Put {files} of that model into a folder and set {key} to it"
        ) from error


def stamps_of(name: str) -> str | None:
    """`fingerprints.stamps` of the config and weights of a folder or of a hub id in the cache; None if unknown."""
    from diffusion_lab.models.fingerprints import stamps
    from diffusion_lab.models.hub import cached

    folder = Path(name).expanduser()
    if folder.is_dir():
        return stamps([*folder.glob("*.safetensors"), folder / "config.json"])
    found = [cached(name, file) for file in ("config.json", "model.safetensors")]  # weights in one file
    return None if None in found else stamps([file for file in found if file is not None])


def _check_files(folder: Path, key: str) -> None:
    """UserError for the first file that is truncated or has other shapes; the libraries' errors do not name it."""
    for path in sorted(folder.iterdir()):
        if path.name in DESCRIPTIONS:
            read_json(path, key, name=path.name)
        elif path.suffix == ".safetensors":
            read_header(path, key, name=path.name)


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
