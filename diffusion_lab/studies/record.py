"""A study's own folder, `_NAME`, beside the runs: study.json says which runs belong to it.

All studies share one folder of runs, so that a run that answers several questions is trained once.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from diffusion_lab.records import UserError
from diffusion_lab.studies.definition import Point, Study
from diffusion_lab.system import atomic

SCHEMA = 1  # of study.json
NAME = "study.json"


def study_folder(runs: Path, name: str) -> Path:
    """Where a study's definition, page, tables and charts are. `runs`: the folder of all runs."""
    return runs / f"_{name}"


def write_study(runs: Path, study: Study) -> Path:
    """Writes study.json and returns its path."""
    path = study_folder(runs, study.name) / NAME
    atomic.write_json(path, {"schema": SCHEMA, **asdict(study)})
    return path


def united(runs: Path, study: Study) -> Study:
    """The study with its points added to those that its study.json has already; a new point replaces an old one.

    A point is replaced by one of the same run, or with the same folder (a run that was extended).
    """
    path = study_folder(runs, study.name) / NAME
    if not path.is_file():
        return study
    try:
        before = read_study(path).points
    except UserError:  # it is written again
        return study
    by_run = {point.run: point for point in study.points}
    folders = {point.folder for point in study.points} - {""}
    kept = [
        by_run.pop(point.run, point) for point in before if point.run in by_run or point.folder not in folders
    ]
    return replace(study, points=(*kept, *by_run.values()))


def read_study(path: Path) -> Study:
    """The study in a study.json. Raises UserError if it cannot be read."""
    try:
        found = json.loads(path.read_text("utf-8"))
        return Study(
            name=str(found["name"]),
            question=str(found["question"]),
            cost=str(found["cost"]),
            expected=str(found["expected"]),
            charts=tuple(map(str, found["charts"])),
            points=tuple(_point(point) for point in found["points"]),
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: cannot be read as a study ({error}); --sweep NAME with the same folder writes it again"
        ) from error


def _point(found: dict[str, Any]) -> Point:
    return Point(tuple(map(str, found["overrides"])), str(found["run"]), str(found["folder"]))


def find_studies(runs: Path) -> list[Study]:
    """The studies whose runs are in `runs`, by name. Raises UserError if a study.json cannot be read."""
    return [read_study(path) for path in sorted(runs.glob(f"_*/{NAME}"))]
