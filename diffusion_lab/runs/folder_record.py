"""Which run a folder contains, and whether its recorded files are complete. Fast: no torch, no pyarrow."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from diffusion_lab.records import UserError
from diffusion_lab.runs import backup, checksums
from diffusion_lab.runs.recovery import ANOTHER, parse_result

REPORT = "report.html"
CHECKPOINTS = "checkpoints"
NOTES = ("config.yaml", "hydra.yaml", "overrides.yaml")  # in .hydra
ENDED = ("completed", "diverged")  # no training is left
_HEAD_BYTES = 4096  # of report.html; they contain the run's id


@dataclass(frozen=True, slots=True)
class FolderRecord:
    """A run's record, from whichever file contains it."""

    result: dict[str, Any]  # result.json's content; if it is lost, perhaps only status and config
    problem: str | None = None  # why it was not read from result.json

    @property
    def failed_early(self) -> bool:
        """True if the job ended before its run began: only its error is recorded."""
        return not self.result.get("config") and "traceback" in self.result


def read_folder_record(folder: Path, same: Callable[[Mapping[str, Any]], bool]) -> FolderRecord | None:
    """The record of the run in `folder`, or None if none was begun.

    If result.json is missing, damaged or from another run, record.zip or config.yaml is used instead.
    `same`: whether a configuration is the expected one. Raises UserError if no file says what was run.
    """
    path = folder / backup.RESULT
    main, problem = _read(path)
    started = has_run_files(folder)
    if main is not None and not main.get("config") and started and main.get("status") not in ENDED:
        main, problem = None, "it does not say what was run"
    if main is not None and (not main.get("config") or same(main["config"])):
        return FolderRecord(main)
    if main is None and problem is None and not started:
        return None
    others = [record for record in (backup.read_result(folder), _from_yaml(folder)) if record is not None]
    for found in others:
        if same(found["config"]):
            return FolderRecord(found, problem or ("it is missing" if main is None else ANOTHER))
    if main is not None:
        return FolderRecord(main)
    if others:
        return FolderRecord(others[0], problem or "it is missing")
    raise UserError(
        f"{path}: {problem or 'it is missing'}, and neither {backup.NAME} nor {backup.CONFIG} says what was run; "
        "put it back from a copy, or choose another folder with hydra.run.dir=FOLDER (hydra.sweep.dir=FOLDER "
        "with -m)"
    )


def _read(path: Path) -> tuple[dict[str, Any] | None, str | None]:
    """The record and None, or None and what is wrong with it; (None, None) if the file does not exist."""
    try:
        return parse_result(path.read_bytes()), None
    except (FileNotFoundError, NotADirectoryError):
        return None, None
    except (OSError, ValueError) as error:
        return None, f"it cannot be read ({error})"


def _from_yaml(folder: Path) -> dict[str, Any] | None:
    try:
        config = yaml.safe_load((folder / backup.CONFIG).read_bytes())
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return {"config": config, "status": "running"} if isinstance(config, dict) and config else None


def has_run_files(folder: Path) -> bool:
    """Whether the folder contains any file of a run other than its configuration."""
    if any((folder / name).exists() for name in (backup.SCORES, backup.EVENTS, backup.NAME)):
        return True
    return any((folder / CHECKPOINTS).glob("step-*"))


def is_concluding(result: Mapping[str, Any]) -> bool:
    """True if all was trained and measured, and the run was stopped while its record was being closed."""
    total = ((result.get("config") or {}).get("steps") or {}).get("total")
    last = (result.get("ended") or {}).get("step", total)  # of a run that ended early
    measured = {entry["step"] for entry in result.get("evaluations") or []}
    return result.get("status") not in ENDED and last in measured and bool(result.get("cost"))


def missing_files(folder: Path, result: Mapping[str, Any]) -> list[str]:
    """Files of a run that has ended that are missing, damaged or another run's."""
    if "schema" not in result:  # the record of a job, not of a run: it lists no files
        return []
    files = result.get("files")
    lost = checksums.damaged(folder, files if isinstance(files, Mapping) else {})
    stop = result.get("recommendation")
    if isinstance(stop, Mapping) and not any(path.is_file() for path in (folder / "artefact").rglob("*")):
        lost = [name for name in lost if not name.startswith("artefact/")] + ["artefact"]
    if not _whole_page(folder / REPORT, str(result.get("run") or "")):
        lost.append(REPORT)
    copy = backup.read(folder)
    if backup.RESULT not in copy or (_run_of(copy[backup.RESULT]) != result.get("run")):
        lost.append(backup.NAME)
    notes = folder / ".hydra"
    lost += [f".hydra/{name}" for name in NOTES if notes.is_dir() and not _is_yaml(notes / name)]
    return lost


def _run_of(content: bytes) -> Any:
    try:
        return parse_result(content).get("run")
    except ValueError:
        return None


def _whole_page(path: Path, run: str) -> bool:
    """Whether the page is complete and belongs to this run."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 64))
            tail = file.read()
    except OSError:
        return False
    named = re.search(rb'<meta name="run" content="(\w*)">', head)
    return tail.rstrip().endswith(b"</html>") and (
        not run or (named is not None and named[1].decode() == run)
    )


def _is_yaml(path: Path) -> bool:
    try:
        return yaml.safe_load(path.read_bytes()) is not None
    except (OSError, ValueError, yaml.YAMLError):
        return False
