"""Text in a person's own YAML files: `identifier: 010` under --config-dir means those three letters, not the number 8.

YAML makes numbers and truth values of unquoted scalars before the schema is asked; here they are read again as text.
The package's own files are written with care, and a test reads them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml  # type: ignore[import-untyped]

from diffusion_lab.config.texts import kind
from diffusion_lab.values.quoting import literal

if TYPE_CHECKING:
    from omegaconf import DictConfig

OURS = ("hydra", "main", "schema")  # providers of Hydra's search path that are not the person's


def misread(composed: DictConfig) -> dict[str, tuple[Path, str]]:
    """Key -> (file, word that brings its text) for every text that YAML has changed in the composed configuration."""
    from omegaconf import OmegaConf

    found = {}
    for group, file in _files(composed):
        for key, read, written in changed(file, group):
            if OmegaConf.select(composed, key) == read:  # nothing that wins over the file has set it
                found[key] = (file, f"{key}={_written(written)}")
    return found


def _files(composed: DictConfig) -> Iterator[tuple[str, Path]]:
    """The person's own option files that are in use, with their group."""
    folders = [
        Path(source.path)
        for source in composed.hydra.runtime.config_sources
        if source.schema == "file" and source.provider not in OURS
    ]
    for group, option in composed.hydra.runtime.choices.items() if folders else ():
        files = [folder / str(group).partition("@")[0] / f"{option}.yaml" for folder in folders]
        for file in [file for file in files if file.is_file()][:1]:
            yield str(group), file


def changed(file: Path, group: str) -> list[tuple[str, Any, Any]]:
    """(key, what YAML reads as text, what is written) for every key of the file that holds text."""
    from omegaconf import OmegaConf

    content = file.read_text("utf-8")
    letters = yaml.load(content, yaml.BaseLoader)
    values = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    if not isinstance(letters, dict) or not isinstance(values, dict):
        return []
    at = "" if "@package _global_" in content.partition("\n\n")[0] else f"{group.replace('/', '.')}."
    return list(_pairs(values, letters, at))


def _pairs(values: Mapping[Any, Any], letters: Mapping[str, Any], at: str) -> Iterator[tuple[str, Any, Any]]:
    for (name, value), written in zip(values.items(), letters.values(), strict=True):
        key = f"{at}{name}"
        if isinstance(value, dict) and isinstance(written, dict):
            yield from _pairs(value, written, f"{key}.")
        elif kind(key) is not None and (read := _as_text(value)) != written and value is not None:
            yield key, read, written


def _as_text(value: Any) -> Any:
    """As OmegaConf converts it for a key that holds text."""
    return [_as_text(part) for part in value] if isinstance(value, list) else str(value)


def _written(letters: Any) -> str:
    return (
        f"[{','.join(literal(part) for part in letters)}]" if isinstance(letters, list) else literal(letters)
    )
