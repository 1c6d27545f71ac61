"""How far the jobs of a sweep are, from their folders: counts and the time left, whichever processes run them.

Only files that have changed are read again, so it can be asked every second.
"""

from __future__ import annotations

import heapq
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusion_lab.records import UserError
from diffusion_lab.runs.backup import RESULT
from diffusion_lab.runs.folder_record import read_folder_record

ENDED = "jobs.jsonl"  # in a sweep's folder: one line per job that has ended
DONE, FAILED, INTERRUPTED = ("completed",), ("failed", "diverged"), ("interrupted",)


@dataclass(slots=True)
class Watched:
    """A job that the sweep is to run."""

    folder: Path
    kind: str = ""  # jobs of the same kind are expected to take equally long
    evaluations: int = 1  # planned for the whole run

    state: str = "to come"  # or "running", or a status of records.Status
    error: str = ""
    began: float = 0.0  # when it was first seen at work, in seconds
    ended: float = 0.0
    at_first: float = 0.0  # fraction that was done by then: a resumed run
    fraction: float = 0.0  # of its evaluations
    changed: float = 0.0  # when the fraction changed last
    stamps: tuple[int, ...] = ()  # modification times of its files, in ns

    @property
    def whole(self) -> float | None:
        """Seconds that the whole run takes, as far as seen; None if nothing was seen."""
        until = self.ended if self.state in DONE else self.changed
        share = (1.0 if self.state in DONE else self.fraction) - self.at_first
        return (until - self.began) / share if share > 0 and until > self.began else None


@dataclass(frozen=True, slots=True)
class Counts:
    """The state of a sweep at one moment."""

    total: int
    done: int
    running: int
    failed: int
    left: float | None  # seconds; None if unknown

    @property
    def to_come(self) -> int:
        return self.total - self.done - self.running - self.failed

    def __str__(self) -> str:
        parts = [f"{self.done} of {self.total} done", f"{self.running} running", f"{self.failed} failed"]
        parts.append(f"{self.to_come} to come")
        if self.left is not None and self.running + self.to_come:
            parts.append(f"about {rounded(self.left)} left")
        return ", ".join(parts)


@dataclass(slots=True)
class Watch:
    """The jobs of a sweep. `done` and `failed`: jobs that need not run, since they have ended already.

    `guess`: seconds of a run of each kind, from earlier runs; used until one of this sweep has ended.
    """

    jobs: Sequence[Watched]
    sweep: Path
    done: int = 0
    failed: int = 0
    guess: dict[str, float] = field(default_factory=dict)
    clock: Callable[[], float] = time.monotonic
    _at_once: int = 1  # the most jobs seen at work at the same time
    _read: int = 0  # bytes of ENDED read so far
    _torn: bytes = b""

    def __post_init__(self) -> None:
        with_lines = self.sweep / ENDED
        self._read = with_lines.stat().st_size if with_lines.is_file() else 0
        for job in self.jobs:
            job.stamps = _stamps(job.folder)
            job.at_first = job.fraction = _fraction(_record(job.folder), job.evaluations)

    def look(self) -> Counts:
        """Reads what has changed."""
        by_name = {job.folder.name: job for job in self.jobs}
        now = self.clock()
        for job in self.jobs:
            if job.state in ("to come", "running"):
                _follow(job, now)
        for line in self._lines():
            ended = by_name.get(str(line.get("job", line.get("name"))))
            if ended is not None:
                _end(ended, str(line["status"]), str(line.get("error") or ""), now)
        running = sum(job.state == "running" for job in self.jobs)
        self._at_once = max(self._at_once, running)
        return Counts(
            total=len(self.jobs) + self.done + self.failed,
            done=self.done + sum(job.state in DONE for job in self.jobs),
            running=running,
            failed=self.failed + sum(job.state in FAILED + INTERRUPTED for job in self.jobs),
            left=self._left(now),
        )

    def _lines(self) -> Iterator[dict[str, Any]]:
        """New whole lines of ENDED; unreadable ones are skipped."""
        try:
            with (self.sweep / ENDED).open("rb") as file:
                file.seek(self._read)
                content = file.read()
        except OSError:
            return
        self._read += len(content)
        *lines, self._torn = (self._torn + content).split(b"\n")
        for line in lines:
            try:
                found = json.loads(line)
            except ValueError:
                continue
            if isinstance(found, dict) and "status" in found:
                yield found

    def _left(self, now: float) -> float | None:
        """Seconds until all jobs have ended: those to come are given to whoever is free first."""
        seen: dict[str, list[float]] = {}
        rough: list[float] = []
        for job in self.jobs:
            if (whole := job.whole) is not None:
                (seen.setdefault(job.kind, []) if job.state in DONE else rough).append(whole)
        known = self.guess | {kind: statistics.mean(found) for kind, found in seen.items()}
        every = (
            [seconds for found in seen.values() for seconds in found] or rough or list(self.guess.values())
        )
        if not every:
            return None
        usual = statistics.mean(every)
        free = [
            _remaining(job, known.get(job.kind, usual), now) for job in self.jobs if job.state == "running"
        ]
        free += [0.0] * (self._at_once - len(free))
        heapq.heapify(free)
        for job in self.jobs:
            if job.state == "to come":
                heapq.heappush(free, heapq.heappop(free) + known.get(job.kind, usual) * (1 - job.at_first))
        return max(free)


def _remaining(job: Watched, usual: float, now: float) -> float:
    whole = job.whole
    if whole is None:
        return max(0.0, usual * (1 - job.at_first) - (now - job.began))
    return max(0.0, whole * (1 - job.fraction) - (now - job.changed))


def _follow(job: Watched, now: float) -> None:
    """What the job's own folder says: that it has begun, how far it is, and how it ended."""
    stamps = _stamps(job.folder)
    if stamps == job.stamps:
        return
    job.stamps = stamps
    if job.state == "to come":
        job.state, job.began, job.changed = "running", now, now
    record = _record(job.folder)
    fraction = _fraction(record, job.evaluations)
    if fraction > job.fraction:
        job.fraction, job.changed = fraction, now
    if record.get("status") in DONE:
        _end(job, "completed", "", now)


def _end(job: Watched, status: str, error: str, now: float) -> None:
    if job.state in ("to come", "running") or status not in DONE:
        job.state, job.error, job.ended = status, error, job.ended or now


def _stamps(folder: Path) -> tuple[int, ...]:
    found = []
    for name in (RESULT, ".hydra/overrides.yaml"):
        try:
            found.append((folder / name).stat().st_mtime_ns)
        except OSError:
            found.append(0)
    return tuple(found)


def _record(folder: Path) -> dict[str, Any]:
    try:
        record = read_folder_record(folder, lambda config: True)
    except UserError:
        return {}
    return record.result if record is not None else {}


def _fraction(record: dict[str, Any], planned: int) -> float:
    return min(1.0, len(record.get("evaluations") or []) / max(1, planned))


def seconds_of(folder: Path) -> float | None:
    """How long the finished run in a folder took, without pauses; None if its record does not say."""
    cost = _record(folder).get("cost") or {}
    parts = [part["seconds"] for part in cost.values() if isinstance(part, dict) and part.get("seconds")]
    return float(sum(parts)) if parts else None


def rounded(seconds: float) -> str:
    """ "45 s", "8 min", "1 h 20 min"."""
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
