"""Extended sweeps: a run that an earlier job of the sweep has already made is not trained again."""

from __future__ import annotations

import contextlib
import functools
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

from diffusion_lab.config.schema import Config, as_plain_dict
from diffusion_lab.records import UserError
from diffusion_lab.runs.folder_record import (
    ENDED,
    read_folder_record,
)
from diffusion_lab.runs.resume import run_id
from diffusion_lab.runs.shorter_run import copy_shorter_run, discard_unfinished_copy, id_without_length

log = logging.getLogger(__name__)


def already_begun(config: Config, run_folder: Path) -> Path:
    """The folder beside `run_folder` that contains the same run, or `run_folder` itself if there is none.

    Extending a sweep renumbers and renames its jobs; a run is identified by its configuration and its seeds.
    Finished runs are preferred to others, and newer ones to older ones. If another folder is returned, the
    files that Hydra wrote to `run_folder` are removed.

    If there is only a run with fewer steps that can be extended, its files are copied to `run_folder`.
    """
    discard_unfinished_copy(run_folder)
    if config.job.name != "finetune" or _id_at(run_folder) is not None:
        return run_folder
    plain = as_plain_dict(config)
    wanted = run_id(plain)
    others = [folder for folder in sorted(run_folder.parent.iterdir()) if folder != run_folder]
    same_runs = [(known, folder) for folder in others if (known := _id_at(folder)) and known.id == wanted]
    if not same_runs:
        alike = [(known, folder) for folder in others if (known := _id_at(folder))]
        length_free = id_without_length(plain)
        shorter = [(known, folder) for known, folder in alike if known.id_without_length == length_free]
        shorter.sort(key=lambda pair: (pair[0].steps_done, pair[1].name), reverse=True)
        found = copy_shorter_run(plain, run_folder, [folder for _, folder in shorter])
        if found is not None:
            log.info("%s: %s has fewer steps of the same run; a copy of it is extended", run_folder, found)
        return run_folder
    best = max(same_runs, key=lambda pair: (pair[0].ended, pair[0].started, pair[1].name))[1]
    log.info("%s: the same run is in %s; it is not trained twice", run_folder, best)
    if {path.name for path in run_folder.iterdir()} <= {".hydra", "run.log"}:
        shutil.rmtree(run_folder, ignore_errors=True)
    return best


@dataclass(frozen=True, slots=True)
class _Known:
    id: str
    ended: bool
    started: str
    id_without_length: str
    steps_done: int


def _id_at(folder: Path) -> _Known | None:
    """The run in a folder, or None if there is none."""
    stamps = []
    for name in ("result.json", "record.zip", "config.yaml"):
        with contextlib.suppress(OSError):
            stamps.append((folder / name).stat().st_mtime_ns)
    return _known(folder, tuple(stamps)) if stamps else None


@functools.lru_cache(maxsize=100_000)
def _known(folder: Path, stamps: tuple[int, ...]) -> _Known | None:
    """Cached while the files are unchanged, since each job of a sweep reads the folders of all others."""
    try:
        found = read_folder_record(folder, lambda config: True)
    except UserError:
        return None
    if found is None or not found.result.get("config"):
        return None
    result = found.result
    return _Known(
        id=run_id(result["config"]),
        ended=result.get("status") in ENDED,
        started=str(result.get("started") or ""),
        id_without_length=id_without_length(result["config"]) if "steps" in result["config"] else "",
        steps_done=int(result.get("steps_done") or 0),
    )
