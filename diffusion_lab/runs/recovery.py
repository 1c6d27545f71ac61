"""What a run recorded before it was stopped, up to the step from which it is resumed.

All measurements of a run are stored in more than one file: result.json contains every evaluation's summaries,
scores.parquet its rows, events.jsonl the training curve, and record.zip a second copy of all three. This
module reads, compares and joins them, so that no result is lost with a single lost or damaged file.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusion_lab.records import ScoreRow, UserError
from diffusion_lab.runs import backup, checksums, scores

log = logging.getLogger(__name__)

ANOTHER = "it belongs to another run"


@dataclass(frozen=True, slots=True)
class RecoveredRecord:
    """Evaluations, their rows and events up to one step."""

    evaluations: list[dict[str, Any]]  # as in result.json
    rows: list[ScoreRow]
    events: list[dict[str, Any]]
    result: dict[str, Any]  # the rest of the record: started, provenance, prompts, files, ...
    copied_files: dict[str, bytes]  # prompts.json and base_features.safetensors, as in record.zip


@dataclass(slots=True)
class _Copy:
    """One copy of the record: the run folder's files, or record.zip."""

    result: dict[str, Any] = field(default_factory=dict)
    entries: dict[int, dict[str, Any]] = field(default_factory=dict)  # by step
    rows: dict[int, list[ScoreRow]] = field(default_factory=dict)  # by step
    events: list[dict[str, Any]] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)  # by file
    members: dict[str, bytes] = field(default_factory=dict)


def recover_record(folder: Path, step: int, *, run: str = "", due: Collection[int] = ()) -> RecoveredRecord:
    """The record in `folder` up to `step`, from all files that contain parts of it.

    `run`: the run's id; files with another id are ignored. `due`: the evaluations before `step`, which the
    run has made. An evaluation at `step` itself may be missing: it is made again.

    Raises UserError if a due evaluation is in no file; the message names the files and the remedy.
    """
    main, spare = _main(folder, run), _spare(folder, run)
    if _other_scores(folder, main, spare):
        main.rows, main.problems[backup.SCORES] = {}, f"it cannot be used ({ANOTHER}, or was changed)"
    rows = {at: some for at, some in {**spare.rows, **main.rows}.items() if at <= step}
    entries = {at: entry for at, entry in {**spare.entries, **main.entries}.items() if at <= step}
    whole = {at for at, entry in entries.items() if at in rows or not _has_rows(entry)}
    lost = sorted(set(due) - whole)
    if lost:
        raise UserError(_refusal(folder, lost, entries, rows, main.problems))
    events = _joined(main.events, spare.events, {at: entries[at] for at in whole}, step)
    known = {_key(event) for event in main.events}
    _tell(folder, main, spare, sum(_key(event) not in known for event in events))
    return RecoveredRecord(
        evaluations=[entries[at] for at in sorted(whole)],
        rows=[row for at in sorted(whole) for row in rows.get(at, ())],
        events=events,
        result=main.result or spare.result,
        copied_files={
            name: spare.members[name] for name in (backup.PROMPTS, backup.BASE) if name in spare.members
        },
    )


def _refusal(
    folder: Path,
    lost: list[int],
    entries: Mapping[int, Any],
    rows: Mapping[int, Any],
    problems: Mapping[str, str],
) -> str:
    where = {
        backup.RESULT: [at for at in lost if at not in entries],
        backup.SCORES: [at for at in lost if at not in rows],
    }
    lost_files = [
        f"{name} ({problems[name]})" if name in problems else f"{name} (steps {', '.join(map(str, steps))})"
        for name, steps in where.items()
        if steps
    ]
    return (
        f"{folder}: evaluations that were made are missing in {' and '.join(lost_files)}, and no other file holds them; "
        f"put the file back from a copy, or begin again: in another folder with hydra.run.dir=FOLDER, or in this "
        f"one after removing {folder / 'checkpoints'}"
    )


def _tell(folder: Path, main: _Copy, spare: _Copy, told_anew: int) -> None:
    """Logs what was wrong, and where the results came from. `told_anew`: events missing in events.jsonl."""
    problems = dict(main.problems)
    if told_anew and backup.EVENTS not in problems:
        problems[backup.EVENTS] = f"{told_anew} of its lines are missing"
    for name, problem in problems.items():
        if name == backup.EVENTS and not spare.events:
            log.warning("%s: %s; the training curve up to here is lost", folder / name, problem)
        else:
            log.warning("%s: %s; what it held is taken from the other files", folder / name, problem)


# --- one copy -----------------------------------------------------------------------------------------


def _main(folder: Path, run: str) -> _Copy:
    files: dict[str, bytes] = {}
    problems: dict[str, str] = {}
    for name in (backup.RESULT, backup.SCORES, backup.EVENTS):
        try:
            files[name] = (folder / name).read_bytes()
        except FileNotFoundError:
            problems[name] = "it is missing"
        except OSError as error:
            problems[name] = f"cannot be read ({error.strerror})"
    copy = _copy(files, run)
    copy.problems = problems | copy.problems
    if not copy.entries and problems.get(backup.SCORES) == "it is missing":
        del copy.problems[backup.SCORES]  # nothing was measured before the run stopped
    return copy


def _spare(folder: Path, run: str) -> _Copy:
    members = backup.read(folder)
    copy = _copy(members, run)
    if backup.RESULT in copy.problems:  # of another run, or unreadable: the whole archive is ignored
        return _Copy()
    copy.members = members
    return copy


def _other_scores(folder: Path, main: _Copy, spare: _Copy) -> bool:
    """Whether scores.parquet has values other than this run's.

    It is written before result.json, which contains its checksum: a kill between the two leaves a file of the
    same run with another checksum. The test is therefore whether it contains the rows of the second copy.
    """
    known = (main.result.get("files") or {}).get(backup.SCORES)
    if not main.rows or known is None or checksums.file_checksum(folder / backup.SCORES) == known:
        return False
    return not spare.rows or any(main.rows.get(at) != rows for at, rows in spare.rows.items())


def _copy(files: Mapping[str, bytes], run: str) -> _Copy:
    copy = _Copy()
    for name, content in files.items():
        try:
            if name == backup.RESULT:
                copy.result = parse_result(content, run)
                copy.entries = {int(entry["step"]): entry for entry in copy.result.get("evaluations") or []}
            elif name == backup.SCORES:
                for row in scores.decoded(content):
                    copy.rows.setdefault(row.step, []).append(row)
            elif name == backup.EVENTS:
                copy.events, torn = parse_events(content, run)
                if torn:
                    copy.problems[name] = f"{torn} of its lines cannot be read"
        except ValueError as error:
            copy.problems[name] = f"it cannot be used ({error})"
    return copy


def parse_result(content: bytes | str, run: str = "") -> dict[str, Any]:
    """result.json's content, unchanged. Raises ValueError if it is not a record or is another run's."""
    try:
        result = json.loads(content)
    except ValueError as error:  # includes UnicodeDecodeError
        raise ValueError(f"no JSON: {error}") from error
    if not isinstance(result, dict):
        raise ValueError("not a JSON object")
    if not isinstance(result.get("config") or {}, dict):
        raise ValueError("its config is not a JSON object")
    entries = result.get("evaluations") or []
    if not isinstance(entries, list) or not all(map(_is_entry, entries)):
        raise ValueError("its evaluations are not what a run writes")
    if run and result.get("run", run) != run:
        raise ValueError(ANOTHER)
    return result


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("step"), int)
        and isinstance(entry.get("metrics"), dict)
        and all(isinstance(values, dict) for values in entry["metrics"].values())
        and isinstance(entry.get("seconds") or {}, dict)
    )


def parse_events(content: bytes, run: str = "") -> tuple[list[dict[str, Any]], int]:
    """The events, and the number of unreadable lines; a last line that was cut off by a kill is not counted.

    Raises ValueError if the log has the id of another run.
    """
    lines = content.split(b"\n")
    torn_end = lines.pop()  # b"" if the last line is complete
    events, torn = [], 0
    for line in lines:
        event = _event(line)
        if event is None:
            torn += 1
            continue
        if run and event.get("run", run) != run:
            raise ValueError(ANOTHER)
        events.append(event)
    if torn_end and (event := _event(torn_end)) is not None:
        events.append(event)
    if not events or events[0]["event"] != "start":
        torn = max(torn, 1)  # its beginning is missing
    return events, torn


def _event(line: bytes) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):
        return None
    if not isinstance(event.get("step", 0), int) or not isinstance(event.get("values") or {}, dict):
        return None
    if event["event"] in ("scalars", "evaluation") and "step" not in event:
        return None
    return event


def _has_rows(entry: Mapping[str, Any]) -> bool:
    """Whether an evaluation has rows in scores.parquet: metrics of a whole set of images have none."""
    from diffusion_lab.evaluation.metrics import METRICS
    from diffusion_lab.records import Metric

    known = [METRICS.get(name) for name in entry["metrics"]]
    return any(metric is None or isinstance(metric, Metric) for metric in known)


# --- joining ------------------------------------------------------------------------------------------


def _joined(
    main: list[dict[str, Any]], spare: list[dict[str, Any]], whole: Mapping[int, dict[str, Any]], step: int
) -> list[dict[str, Any]]:
    """Both logs up to `step`, each event once, in order; evaluations that are in neither log are added."""
    events = [event for event in main if _belongs(event, whole, step)]
    seen = {_key(event) for event in events}
    for event in spare:
        if _belongs(event, whole, step) and _key(event) not in seen:
            _insert(events, event)
            seen.add(_key(event))
    for at, entry in sorted(whole.items()):
        if ("evaluation", at) not in seen:
            means = {name: values.get("mean") for name, values in entry["metrics"].items()}
            restored = {
                "event": "evaluation",
                "step": at,
                "values": means,
                "seconds": entry.get("seconds") or {},
            }
            _insert(events, restored)
    return events


def _belongs(event: Mapping[str, Any], whole: Collection[int], step: int) -> bool:
    at = event.get("step", -1)
    return bool(at <= step) and (event["event"] != "evaluation" or at in whole)


def _key(event: Mapping[str, Any]) -> tuple[Any, ...]:
    """The key by which an event is recognised in both logs."""
    return (event["event"], event["step"]) if "step" in event else (event["event"], event.get("time"))


def _insert(events: list[dict[str, Any]], event: dict[str, Any]) -> None:
    """Inserts `event` before the first one of a later step, or of a later time if it has no step."""

    def later(other: Mapping[str, Any]) -> bool:
        if "step" in event:
            return bool(other.get("step", -1) > event["step"])
        return str(other.get("time", "")) > str(event.get("time", ""))

    place = next((i for i, other in enumerate(events) if later(other)), len(events))
    events.insert(place, event)
