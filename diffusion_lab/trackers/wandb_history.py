"""The history of a resumed run, logged to Weights & Biases again.

Offline, every session of a run writes its own log. All have the same id, and each counts W&B's own `_step`
from 0 again, so later uploads conflict with earlier ones. A resumed run therefore starts its log with the
whole history, from our own record, in the same order and thus with the same `_step`; the earlier logs are
moved to wandb/superseded/, which `wandb sync` ignores.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_lab.records import Summary
from diffusion_lab.system import atomic, folders
from diffusion_lab.system.images import png

if TYPE_CHECKING:
    import wandb

SUPERSEDED = "superseded"
TABLES = "tables"  # images and texts of the tables, stored in the run's folder for this purpose


def unsynced(folder: Path, run_id: str) -> list[Path]:
    """The folders of offline logs of this run that `wandb sync` would still upload."""
    return [
        path
        for path in sorted((folder / "wandb").glob(f"offline-run-*-{run_id}"))
        if not (path / f"run-{run_id}.wandb.synced").exists()
    ]


@contextlib.contextmanager
def put_aside(folder: Path, run_id: str) -> Iterator[None]:
    """Moves the run's offline logs to a folder that `wandb sync` ignores, and back if the new log fails."""
    moved: list[tuple[Path, Path]] = []
    for path in sorted((folder / "wandb").glob(f"offline-run-*-{run_id}")):
        target, number = folder / "wandb" / SUPERSEDED / path.name, 1
        target.parent.mkdir(exist_ok=True)
        while target.exists():  # W&B names a log by the second of its start
            number += 1
            target = target.with_name(f"{path.name}-{number}")
        atomic.move(path, target)
        moved.append((path, target))
    try:
        yield
    except BaseException:
        for path, target in moved:
            if not path.exists():
                atomic.move(target, path)
        raise


def keep_table(folder: Path, step: int, columns: list[str], rows: list[list[Any]]) -> None:
    """Stores the table of one evaluation: `rows` with uint8 pixels in the column `image`."""
    from PIL import Image

    image = columns.index("image")
    with folders.replace_folder(folder / "wandb" / TABLES / f"step-{step:06d}") as beside:
        for number, row in enumerate(rows):
            atomic.write_bytes(beside / f"{number:04d}.png", png(Image.fromarray(row[image])))
        plain = [[None if i == image else value for i, value in enumerate(row)] for row in rows]
        atomic.write_json(beside / "table.json", {"columns": columns, "rows": plain})


def kept_table(folder: Path, step: int) -> wandb.Table | None:
    """The table stored by `keep_table`, as a W&B table; None if missing or damaged."""
    import wandb
    from PIL import Image

    place = folder / "wandb" / TABLES / f"step-{step:06d}"
    try:
        found = json.loads((place / "table.json").read_text("utf-8"))
        image = found["columns"].index("image")
        table = wandb.Table(columns=found["columns"])
        for number, row in enumerate(found["rows"]):
            with Image.open(place / f"{number:04d}.png") as picture:
                row[image] = wandb.Image(picture.convert("RGB"))
            table.add_data(*row)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return table


def earlier_rows(folder: Path) -> Iterator[tuple[int, dict[str, float] | None, dict[str, Any] | None]]:
    """(step, scalars, None) or (step, None, evaluation as in result.json), in the record's order."""
    record = json.loads((folder / "result.json").read_text("utf-8"))
    evaluations = {entry["step"]: entry for entry in record.get("evaluations") or []}
    lines = (folder / "events.jsonl").read_bytes().splitlines()
    for line in lines:
        event: Any = None
        with contextlib.suppress(ValueError):
            event = json.loads(line)
        if not isinstance(event, dict) or "step" not in event:
            continue
        if event.get("event") == "scalars":
            values = {name: math.nan if value is None else value for name, value in event["values"].items()}
            yield event["step"], values, None
        elif event.get("event") == "evaluation" and event["step"] in evaluations:
            yield event["step"], None, evaluations[event["step"]]


def summaries(entry: Mapping[str, Any]) -> dict[str, Summary]:
    """An evaluation's summaries from its entry in result.json."""
    return {name: Summary(**values) for name, values in entry["metrics"].items()}
