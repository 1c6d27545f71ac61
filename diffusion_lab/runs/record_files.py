"""The record of a run in memory, and its files, each written atomically. `files.py` decides the content."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from diffusion_lab.records import ScoreRow
from diffusion_lab.runs import backup, checksums, resumed_record, scores
from diffusion_lab.runs.recovery import RecoveredRecord
from diffusion_lab.runs.run_log import RunLog
from diffusion_lab.system import atomic
from diffusion_lab.values import jsonable

SCHEMA = 1  # of result.json

log = logging.getLogger(__name__)


def empty_result() -> dict[str, Any]:
    """The initial content of result.json."""
    return {
        "schema": SCHEMA,
        "run": "",  # the run's id, which its other files contain too: resume.run_id
        "status": "running",
        "error": None,
        "config": {},
        "provenance": {},
        "evaluations": [],
        "references": {},
        "recommendation": None,
        "cost": {},
        "metrics": {},
        "encoders": {},
        "prompts": {},
        "started": None,
        "finished": None,
        "steps_done": 0,
        "ended": None,  # why a run ended before steps.total: step, kind, reason
        "files": {},  # checksums of the files that belong to the record, see checksums.py
    }


class RecordFiles:
    """result.json, events.jsonl, scores.parquet, run.log and the copy of them all, record.zip."""

    def __init__(self, run_folder: Path | str) -> None:
        self.folder = Path(run_folder).absolute()
        self.result = empty_result()
        self._rows: list[ScoreRow] = []
        self._lines: list[str] = []  # of events.jsonl
        self._copies: dict[str, bytes] = {}  # files that record.zip contains unchanged
        self._log = RunLog(self.folder / "run.log")

    def _resume_from(self, before: RecoveredRecord, step: int) -> None:
        """Keeps what was recorded up to `step`, in all files alike; later steps are recorded again."""
        self._rows = before.rows
        self._copies = before.copied_files
        self.result |= {"evaluations": before.evaluations, "steps_done": max(step, 0)}
        self.result["started"] = before.result.get("started") or self.result["started"]
        self.result["prompts"] = before.result.get("prompts") or {}
        self.result["files"] = resumed_record.files_of_steps(
            before.result.get("files") or {}, [entry["step"] for entry in before.evaluations]
        )
        code = before.result.get("provenance") or {}
        if code and _code(code) != _code(self.result["provenance"]):
            log.warning("the run is resumed with other code or libraries than it was begun with")
            self.result["provenance"] = {**code, "resumed_with": self.result["provenance"]}
        if self._rows or (self.folder / backup.SCORES).exists():
            scores.write(self.folder / backup.SCORES, self._rows)
            self.record_checksums(backup.SCORES)
        base = self.folder / backup.BASE
        if backup.BASE in self._copies and self._copies[backup.BASE] != content_of(base):
            log.warning("%s: it is missing or damaged, and is restored from %s", base, backup.NAME)
            atomic.write_bytes(base, self._copies[backup.BASE])
        run = {"run": self.result["run"]}  # another one if the run is extended
        self._write_events([{**event, **run} if "run" in event else event for event in before.events])

    def _write_events(self, events: Iterable[Mapping[str, Any]]) -> None:
        self._lines = [jsonable.dumps({"time": now(), **event}) + "\n" for event in events]
        atomic.write_text(self.folder / backup.EVENTS, "".join(self._lines))

    def reopen(self, before: RecoveredRecord) -> None:
        """Reopens, unchanged, a record that was closed or whose end was lost."""
        known = {name: value for name, value in before.result.items() if name != "traceback"}
        self.result |= known | {"evaluations": before.evaluations}
        self._rows, self._copies = before.rows, dict(before.copied_files)
        self._lines = [jsonable.dumps(event) + "\n" for event in before.events]
        self._log.open()

    @property
    def copies(self) -> Mapping[str, bytes]:
        """Files that record.zip contains unchanged."""
        return self._copies

    def restore(self, config: Mapping[str, Any]) -> None:
        """Rewrites the files of a reopened record that differ from it."""
        self._copies[backup.CONFIG] = as_yaml(config)
        wanted = {backup.EVENTS: "".join(self._lines).encode(), **self._copies}
        if self._rows:
            wanted[backup.SCORES] = scores.parquet_bytes(self._rows)
        for name, content in wanted.items():
            path = self.folder / name
            known = self.result["files"].get(name)
            whole = path.is_file() and checksums.file_checksum(path) == known
            if not whole and content_of(path) != content:
                log.warning("%s: it was missing or damaged, and is restored", path)
                atomic.write_bytes(path, content)

    def event(self, event: str, **values: Any) -> None:
        """Appends time, event and values to events.jsonl; flushes all but the training curve to disk."""
        line = jsonable.dumps({"time": now(), "event": event, **values}) + "\n"
        atomic.append_line(self.folder / backup.EVENTS, line, flush=event != "scalars")
        self._lines.append(line)

    def record_checksums(self, *names: str) -> None:
        """Records the current checksums of the files at or below `names`."""
        known = self.result["files"]
        kept = {
            name: value
            for name, value in known.items()
            if not any(name == given or name.startswith(f"{given}/") for given in names)
        }
        self.result["files"] = kept | checksums.checksums_of(self.folder, names)

    def back_up(self) -> None:
        """Writes record.zip: the current record, from memory, regardless of the state of the files."""
        members = {
            backup.RESULT: (jsonable.dumps(self.result, indent=2) + "\n").encode(),
            backup.EVENTS: "".join(self._lines).encode(),
            **self._copies,
        }
        if self._rows:
            members[backup.SCORES] = scores.parquet_bytes(self._rows)
        backup.write(self.folder, members)

    def _write_copied(self, name: str, content: bytes) -> None:
        atomic.write_bytes(self.folder / name, content)
        self._copies[name] = content

    def _save(self) -> None:
        atomic.write_json(self.folder / backup.RESULT, self.result)


def _code(provenance: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(provenance.get(name) for name in ("commit", "versions", "python"))


def as_yaml(config: Mapping[str, Any]) -> bytes:
    return str(yaml.safe_dump(jsonable.plain(config), sort_keys=False, allow_unicode=True)).encode()


def content_of(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
