"""Extended sweeps: a run that an earlier job of the sweep has already made is not trained again."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion_lab.config.schema import Config, as_plain_dict
from diffusion_lab.records import UserError
from diffusion_lab.runs.folder_record import ENDED, read_folder_record
from diffusion_lab.runs.resume import bound_flat, run_id
from diffusion_lab.runs.shorter_run import copy_shorter_run, discard_unfinished_copy, id_without_length

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Known:
    """A run that a folder contains."""

    id: str  # identity of its configuration
    ended: bool
    started: str
    config: Mapping[str, Any]  # as recorded
    steps_done: int


def identity(config: Mapping[str, Any]) -> str:
    """What tells two jobs of a sweep apart: the run's id; for other jobs than finetune their own keys, too."""
    found = run_id(config)
    if (config.get("job") or {}).get("name", "finetune") == "finetune":
        return found
    own = {key: value for key, value in bound_flat(config).items() if key.startswith("job.")}
    return f"{found}-{hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()[:8]}"


def runs_in(folder: Path) -> dict[str, Known]:
    """Name of folder -> the run in it, for the folders directly in `folder`."""
    if not folder.is_dir():
        return {}
    found = {path.name: _known_at(path) for path in sorted(folder.iterdir())}
    return {name: known for name, known in found.items() if known is not None}


def best_of(runs: Mapping[str, Known]) -> dict[str, str]:
    """Identity -> name of the folder: a finished run before others, a newer one before older ones."""
    ranked = sorted(runs.items(), key=lambda item: (item[1].ended, item[1].started, item[0]))
    return {known.id: name for name, known in ranked}


def already_begun(config: Config, run_folder: Path) -> Path:
    """The folder beside `run_folder` that contains the same run, or `run_folder` itself if there is none.

    Another sweep may have begun it since the names were settled, and sweepers that choose jobs as they run
    repeat themselves. If another folder is returned, the files that Hydra wrote to `run_folder` are removed.

    If there is only a run with fewer steps that can be extended, its files are copied to `run_folder`.
    """
    if config.job.name != "finetune":
        return run_folder
    discard_unfinished_copy(run_folder)
    if _known_at(run_folder) is not None:
        return run_folder
    plain = as_plain_dict(config)
    others = {name: known for name, known in runs_in(run_folder.parent).items() if name != run_folder.name}
    name = best_of(others).get(identity(plain))
    if name is None:
        _begin_from_shorter(plain, run_folder, others)
        return run_folder
    best = run_folder.with_name(name)
    log.info("%s: the same run is in %s; it is not trained twice", run_folder, best)
    if {path.name for path in run_folder.iterdir()} <= {".hydra", ".lock", "run.log"}:
        shutil.rmtree(run_folder, ignore_errors=True)
    return best


def _begin_from_shorter(plain: Mapping[str, Any], run_folder: Path, others: Mapping[str, Known]) -> None:
    """Copies the longest run of `others` that the configuration extends, if there is one."""
    wanted = id_without_length(plain)
    shorter = [
        (known.steps_done, name)
        for name, known in others.items()
        if "steps" in known.config and id_without_length(known.config) == wanted
    ]
    folders = [run_folder.with_name(name) for _, name in sorted(shorter, reverse=True)]
    found = copy_shorter_run(plain, run_folder, folders)
    if found is not None:
        log.info("%s: %s has fewer steps of the same run; a copy of it is extended", run_folder, found)


def _known_at(folder: Path) -> Known | None:
    """The run in a folder, or None if there is none."""
    stamps = []
    for name in ("result.json", "record.zip", "config.yaml"):
        with contextlib.suppress(OSError):
            stamps.append((folder / name).stat().st_mtime_ns)
    return _known(folder, tuple(stamps)) if stamps else None


@functools.lru_cache(maxsize=10_000)
def _known(folder: Path, stamps: tuple[int, ...]) -> Known | None:
    """Cached while the files are unchanged, since each job of a sweep reads the folders of all others."""
    try:
        found = read_folder_record(folder, lambda config: True)
    except UserError:
        return None
    if found is None or not found.result.get("config"):
        return None
    result = found.result
    return Known(
        id=identity(result["config"]),
        ended=result.get("status") in ENDED,
        started=str(result.get("started") or ""),
        config=result["config"],
        steps_done=int(result.get("steps_done") or 0),
    )
