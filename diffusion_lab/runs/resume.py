"""What a run folder already contains, and whether the run can be resumed. Checked before any slow import."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from diffusion_lab.config import jobs, paths
from diffusion_lab.config.schema import Config, as_plain_dict
from diffusion_lab.methods import METHODS
from diffusion_lab.records import SETTLED, UserError
from diffusion_lab.runs.extension import LENGTH, is_longer
from diffusion_lab.runs.extension import check as check_extension
from diffusion_lab.runs.folder_record import (
    ENDED,
    FolderRecord,
    is_concluding,
    missing_files,
    read_folder_record,
)
from diffusion_lab.runs.resume_folder import began_in
from diffusion_lab.system.disk_errors import recoverable
from diffusion_lab.training.digest import digest
from diffusion_lab.values.jsonable import plain
from diffusion_lab.values.mappings import flatten

log = logging.getLogger(__name__)

FolderStatus = Literal["empty", "unfinished", "extended", "incomplete", "finished", "diverged"]

FREE = (
    "resume", "as_typed", "job.dry_run", "job.given", "tracker.", "steps.checkpoint_every", "steps.keep_checkpoints",
    "steps.keep_adapters",
)  # fmt: skip
"""Keys that may differ where a run goes on: they change what is said and kept, not what is trained."""
ELSEWHERE = "choose another folder with hydra.run.dir=FOLDER (hydra.sweep.dir=FOLDER with -m)"


def folder_status(config: Config, run_folder: Path) -> FolderStatus:
    """The state of the run in the folder.

    empty: no run was begun; unfinished: the run can be resumed, also one that was ended by something other than
    its configuration (pruned); extended: it is the same run with fewer steps,
    which goes on from there; incomplete: training has ended, but some of the files it should have written are
    missing or damaged; finished and diverged: nothing is left to do.

    Raises UserError for resume=never if there is a record, for resume=must if there is none, and if the
    record has another configuration; the message names the keys that differ.
    """
    record = find_record(config, run_folder)
    if record is None:
        if config.resume == "must":
            raise UserError(
                f"resume=must: {run_folder} holds no run that was begun; name the folder of one: resume=FOLDER"
            )
        return "empty"
    result, status = record.result, record.result.get("status")
    known = bool(result.get("config")) or status in ENDED
    if config.resume == "never" or not (known or record.failed_early):
        raise UserError(f"{run_folder}: a run is recorded there already; {ELSEWHERE}")
    if record.failed_early:
        return "empty"
    before, now = result.get("config"), as_plain_dict(config)
    changed = differing_values(before, now, began_in(run_folder)) if before else {}
    if before and is_longer(changed):
        if status != "diverged":
            check_extension(run_folder, result, changed, flatten(plain(now)))
        return "diverged" if status == "diverged" else "extended"
    if changed:
        said = "; ".join(f"{key} was {was}, is {is_now}" for key, (was, is_now) in changed.items())
        raise UserError(
            f"{run_folder}: the run there was begun with another configuration: {said}. "
            f"Give the same values to resume it, or {ELSEWHERE}"
        )
    if is_concluding(result):
        return "incomplete"
    if status not in ENDED or (result.get("ended") or {}).get("kind", SETTLED) != SETTLED:
        return "unfinished"
    if record.problem is not None or missing_files(run_folder, result):
        return "incomplete"
    return "diverged" if status == "diverged" else "finished"


def find_record(config: Config, run_folder: Path) -> FolderRecord | None:
    """The record in the folder, from any file that is still intact; None if no run was begun."""
    wanted, began = as_plain_dict(config), began_in(run_folder)
    return read_folder_record(run_folder, lambda config: not describe_differences(config, wanted, began))


def describe_differences(
    before: Mapping[str, Any], now: Mapping[str, Any], began: Path | None = None
) -> list[str]:
    """ "steps.total was 300, is 400" for every key that matters and differs; see `differing`."""
    return [
        f"{key} was {was}, is {is_now}" for key, (was, is_now) in differing_values(before, now, began).items()
    ]


def differing_values(
    before: Mapping[str, Any], now: Mapping[str, Any], began: Path | None = None
) -> dict[str, tuple[Any, Any]]:
    """Key -> what it was and what it is, for every key that matters and differs.

    Paths are compared regardless of spelling; relative ones in `before` are relative to `began`. Keys that
    are missing in `before`, since an earlier version wrote it, count as their defaults; those of other jobs
    are ignored.
    """
    old, new = flatten(plain(before)), flatten(plain(now))
    usual = _defaults(new.get("method.name"), new.get("job.name"))
    absent = "not there"
    differing = {}
    for key in dict.fromkeys([*new, *old]):
        was, is_now = old.get(key, absent), new.get(key, absent)
        if key.startswith(FREE) or was == is_now or (paths.is_path(key) and paths.same(was, is_now, began)):
            continue
        if key not in old and key in usual and usual[key] == is_now:
            continue
        if key not in new and jobs.foreign(key, new.get("job.name")):
            continue
        differing[key] = (was, is_now)
    return differing


@functools.lru_cache
def _defaults(method: object, job: object = None) -> Mapping[str, Any]:
    """The defaults of the schema, flattened."""
    kind = METHODS.get(str(method))
    config = as_plain_dict(Config() if kind is None else Config(method=kind()))
    return flatten(plain({**config, "job": jobs.defaults(job) or config["job"]}))


def bound_flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """The training part of a plain configuration, flattened and sorted by key.

    Excludes keys that may differ when a run is resumed, paths (their content has its own digests) and
    defaults, so that keys added by later versions do not change the result.
    """
    flat = flatten(plain(config))
    job = flat.get("job.name")
    usual = _defaults(flat.get("method.name"))
    return {
        key: value
        for key, value in sorted(flat.items())
        if not (key.startswith(FREE) or paths.is_path(key) or jobs.foreign(key, job))
        and (key not in usual or usual[key] != value)
    }


def bound_digest(config: Mapping[str, Any]) -> str:
    """A checksum of `bound_flat`, which checkpoints contain."""
    return digest([f"{key}={value}" for key, value in bound_flat(plain(config)).items()])


def extensions(result: Mapping[str, Any], config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the run in a folder was before each time that it was extended, including now, to `config`.

    `result`: its record. Each entry has the run's id, its steps.total and steps.stop, and the checksum of the
    configuration in its checkpoints.
    """
    earlier: list[dict[str, Any]] = list(result.get("extended") or [])
    before = result.get("config") or {}
    old, new = flatten(plain(before)), flatten(plain(config))
    usual = _defaults(new.get("method.name"))
    if not before or all(old.get(key, usual[key]) == new[key] for key in LENGTH):
        return earlier
    entry = {key.partition(".")[2]: old.get(key, usual[key]) for key in LENGTH[:2]}
    return [*earlier, {"run": run_id(before), **entry, "configuration": bound_digest(before)}]


def run_id(config: Mapping[str, Any]) -> str:
    """The id of a run, from its configuration and its seeds: 16 hexadecimal digits. `config`: as recorded.

    It does not depend on the folder, nor on where and how the run was tracked. Keys that are missing in an
    older record count as their defaults.
    """
    flat = flatten(plain(config))
    kept = {key: value for key, value in bound_flat(config).items() if not key.startswith("job.")}
    usual = _defaults(flat.get("method.name"))
    for key, value in flat.items():
        if paths.is_path(key) and not key.startswith("job.") and value != usual.get(key):
            kept[key] = os.path.realpath(value) if isinstance(value, str) and os.path.isabs(value) else value
    return hashlib.sha256(json.dumps(kept, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def folder_size(folder: Path) -> int:
    """Size in bytes of all files at or below `folder`; 0 if there are none."""
    return sum(
        os.path.getsize(os.path.join(where, name)) for where, _, names in os.walk(folder) for name in names
    )


def error_of(config: Config, run_folder: Path) -> str:
    """The recorded error that stopped the run in the folder."""
    found = find_record(config, run_folder)
    return str((found.result.get("error") if found else None) or "no reason is recorded")


def wait_until_free(run_folder: Path, every: float = 2.0) -> None:
    """Waits while another process is at work in the folder, such as one that survived a killed sweep."""
    told = False
    while run_folder.is_dir():
        try:
            with locked(run_folder):
                return
        except UserError:
            if not told:
                log.info("%s: another process is at work in this folder; waiting for it", run_folder)
            told = True
            time.sleep(every)


@contextlib.contextmanager
def locked(run_folder: Path) -> Iterator[None]:
    """Locks the folder against other processes; the lock is released when the process ends, even by a kill.

    Raises UserError if another process is using the folder. Does nothing on systems without such locks.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    run_folder.mkdir(parents=True, exist_ok=True)
    with recoverable(run_folder):
        descriptor = os.open(run_folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{run_folder}: another process is at work in this folder; wait for it, or {ELSEWHERE}"
            ) from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(descriptor)
