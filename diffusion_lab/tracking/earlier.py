"""What a run has recorded before it was stopped, cut to the step from which it goes on."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion_lab.interfaces import ScoreRow
from diffusion_lab.tracking import scores


@dataclass(frozen=True, slots=True)
class Earlier:
    """Evaluations, their rows and events up to one step: each is in all three or in none."""

    evaluations: list[dict[str, Any]]  # as result.json has them
    rows: list[ScoreRow]
    events: list[dict[str, Any]]
    started: str | None
    provenance: dict[str, Any]


def earlier(folder: Path, step: int) -> Earlier:
    """Reads the record in `folder`. A kill may have come between its files, or torn the last event."""
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    path = folder / "scores.parquet"
    rows = scores.read(path) if path.exists() else []
    events = [event for event in _events(folder / "events.jsonl") if event.get("step", -1) <= step]
    whole = {event["step"] for event in events if event["event"] == "evaluation"}
    whole &= {row.step for row in rows}
    whole &= {entry["step"] for entry in result.get("evaluations") or []}
    return Earlier(
        evaluations=[entry for entry in result.get("evaluations") or [] if entry["step"] in whole],
        rows=[row for row in rows if row.step in whole],
        events=[event for event in events if event["event"] != "evaluation" or event["step"] in whole],
        started=result.get("started"),
        provenance=result.get("provenance") or {},
    )


def _events(path: Path) -> list[dict[str, Any]]:
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found
