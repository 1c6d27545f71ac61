"""`resume=FOLDER`: the command line that started the run in a folder, and its working folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion_lab.config import jobs, paths
from diffusion_lab.config.schema import RESUME
from diffusion_lab.records import UserError
from diffusion_lab.runs.folder_record import (
    read_folder_record,
)
from diffusion_lab.values.jsonable import plain
from diffusion_lab.values.mappings import flatten
from diffusion_lab.values.quoting import always_quoted, pasted, unquoted


def expand_resume(words: list[str]) -> list[str]:
    """Replaces `resume=FOLDER` by the words with which the run in FOLDER was started, and resume=must.

    Further words are kept and take precedence. The run's own paths are relative to the folder in which it was
    started, those of further words to the current folder. Raises UserError if FOLDER contains no run.
    """
    named = [word for word in words if word.startswith("resume=")]
    if not named or named[-1].partition("=")[2] in RESUME:
        return words
    from diffusion_lab.config.texts import recorded as as_recorded

    given = named[-1].partition("=")[2]
    within = unquoted(given)
    folder = Path(paths.absolute(given if within is None else within, Path.cwd()))
    notes = folder / ".hydra"
    if not (notes / "overrides.yaml").is_file():
        raise UserError(
            f"resume={given}: must be one of {', '.join(RESUME)}, or the folder of a run (with .hydra in it)"
        )
    before = _words(notes / "overrides.yaml")
    began = began_in(folder) or Path.cwd()
    hydra = _words(notes / "hydra.yaml", "hydra", "overrides", "hydra")
    searched = [word for word in hydra if "hydra.searchpath=" in word]
    config = _config(folder)
    placed = _placed(config, began)
    replaced = {"resume", *(_key(word) for word in placed)}
    job = (config.get("job") or {}).get("name")
    return [
        *paths.searched(searched, began),
        *(
            word
            for word in as_recorded(before)
            if _key(word) not in replaced and not jobs.foreign(_key(word), job)
        ),
        *placed,
        *(word for word in words if word not in named),
        f"hydra.run.dir={always_quoted(str(folder))}",
        "resume=must",
    ]


def _key(word: str) -> str:
    return word.lstrip("+").partition("=")[0]


def _words(file: Path, *keys: str) -> list[str]:
    """The list of words below `keys` in one of Hydra's files. Raises UserError if there is none."""
    value = _notes(file)
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    if not isinstance(value, list):
        raise _unreadable(file, "no list of words")
    return [str(word) for word in value]


def _notes(file: Path) -> Any:
    import yaml  # type: ignore[import-untyped]

    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, why: object) -> UserError:
    return UserError(
        f"{file}: cannot be read ({' '.join(str(why).split())[:150]}); give the run's own words again with "
        f"{pasted(f'hydra.run.dir={file.parents[1]}')} instead of resume=FOLDER"
    )


def began_in(run_folder: Path) -> Path | None:
    """The folder in which the run was started, according to Hydra's files; None if unknown."""
    import yaml

    with contextlib.suppress(OSError, ValueError, RecursionError, yaml.YAMLError, KeyError, TypeError):
        notes = yaml.safe_load((run_folder / ".hydra" / "hydra.yaml").read_text(encoding="utf-8"))
        return Path(str(notes["hydra"]["runtime"]["cwd"]))
    return None


def _config(run_folder: Path) -> Mapping[str, Any]:
    """The run's configuration, from its config.yaml or else its record; empty if neither can be read."""
    config: Any = None
    with contextlib.suppress(UserError):
        config = _notes(run_folder / "config.yaml")
    if not isinstance(config, dict):
        record = read_folder_record(run_folder, lambda config: True)
        config = record.result.get("config") if record else None
    return config if isinstance(config, dict) else {}


def _placed(config: Mapping[str, Any], began: Path) -> list[str]:
    """Overrides for the run's paths as they were resolved at its start, and as they were typed.

    They are taken from the configuration, so paths from an experiment file are included. Records of earlier
    versions contain relative paths only: these are resolved against the folder in which the run was started.
    """
    flat = {key: value for key, value in flatten(plain(config)).items() if paths.is_path(key)}
    job = (config.get("job") or {}).get("name")
    flat = {key: value for key, value in flat.items() if not jobs.foreign(key, job)}
    typed = {key: str(value) for key, value in (config.get("as_typed") or {}).items() if key in flat}
    overrides = []
    for key, value in flat.items():
        if key not in typed and isinstance(value, str) and key in paths.PATHS and value:
            typed |= {} if os.path.isabs(value) else {key: value}
            value = paths.absolute(value, began)
        if key in typed:
            overrides.append(f"{key}={always_quoted(str(value))}")
    if typed:
        kept = ",".join(f"{key}:{always_quoted(value)}" for key, value in typed.items())
        overrides.append(f"as_typed={{{kept}}}")
    return overrides
