"""A resumed run: what it must have measured, and which of it can be kept."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from diffusion_lab.records import UserError
from diffusion_lab.runs import backup, checksums
from diffusion_lab.runs.recovery import RecoveredRecord, recover_record

log = logging.getLogger(__name__)


def load(folder: Path, step: int, config: Mapping[str, Any], run: str) -> RecoveredRecord:
    """The record up to `step`, from all files that contain parts of it. `run`: the run's id.

    An evaluation at `step` itself whose adapter or images are lost is left out, so that it is made again.
    Raises UserError if something is lost that is in no other file and that the run will not make again.
    """
    record = recover_record(folder, step, run=run, due=_due(config, step))
    files = record.result.get("files") or {}
    steps = [entry["step"] for entry in record.evaluations]
    for name in checksums.damaged(folder, files_of_steps(files, [at for at in steps if at != step])):
        log.warning("%s: it is missing or damaged, and no other file holds it", folder / name)
    _check_base(folder, step, config, record)
    if step not in steps or not checksums.damaged(folder, files_of_steps(files, [step])):
        return record
    return dataclasses.replace(
        record,
        evaluations=[entry for entry in record.evaluations if entry["step"] != step],
        rows=[row for row in record.rows if row.step != step],
        events=[e for e in record.events if e["event"] != "evaluation" or e["step"] != step],
    )


def _due(config: Mapping[str, Any], step: int) -> range:
    """The steps of the evaluations that a run has made before `step`."""
    every = (config.get("steps") or {}).get("every")
    return range(0, step, every) if every else range(0)


def files_of_steps(files: Mapping[str, str], steps: Iterable[int]) -> dict[str, str]:
    """The checksums that belong to evaluations at these steps."""
    names = {f"step-{step:06d}" for step in steps}
    return {
        name: known
        for name, known in files.items()
        if name.startswith(("samples/", "adapters/")) and names & set(Path(name).with_suffix("").parts)
    }


def _check_base(folder: Path, step: int, config: Mapping[str, Any], found: RecoveredRecord) -> None:
    """Checks the base model's features: only step 0 makes them, and class_drift is undefined without them."""
    names = (config.get("metrics") or {}).get("names") or ()
    path = folder / backup.BASE
    if step <= 0 or "class_drift" not in names or backup.BASE in found.copied_files or _is_safetensors(path):
        return
    raise UserError(
        f"{path}: is missing or damaged, and class_drift compares with it; put it back from a copy, or begin again: in "
        f"another folder with hydra.run.dir=FOLDER, or in this one after removing {folder / 'checkpoints'}"
    )


def _is_safetensors(path: Path) -> bool:
    """Whether the file has the length given in its header."""
    try:
        content = path.read_bytes()
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return False
    return len(content) == 8 + size + max(ends, default=0)
