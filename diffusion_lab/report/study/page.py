"""The page of a study, with its tables and static charts beside it.

`_NAME/index.html`, `tables/*.csv`, `charts/*.svg` and `thumbnails/` in the folder of the runs; `_all/` for a folder
that is not a study. Made from files only, at any time, for one run to several hundred.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusion_lab.report.page import save
from diffusion_lab.report.study import texts
from diffusion_lab.report.study.data import page_data
from diffusion_lab.report.study.files import write_files
from diffusion_lab.report.study.index_page import write_answer
from diffusion_lab.report.study.keys import keys_of, metrics_of
from diffusion_lab.report.study.thumbnails import thumbnails
from diffusion_lab.studies.definition import ALL, CHARTS, Study
from diffusion_lab.studies.record import study_folder
from diffusion_lab.studies.table import Table, read_table

PARTS = ("state", "bootstrap", "look", "controls", "dynamics", "images", "averages", "stop", "versus", "main")
ALSO = "values"  # a section of every page whose runs differ in another setting


def write_study(folder: Path, study: Study | None = None, table: Table | None = None) -> Path:
    """Writes the page of a study, or of all runs at or below `folder`, and returns its path.

    ``table``: `read_table` of the same, if it has been read already.

    Raises:
        UserError: (job.runs) if the folder has no run or cannot be written, (job.study) if the study has no list
            of runs.
    """
    folder = Path(folder)
    table = read_table(folder, study) if table is None else table
    return write_page(study_folder(folder, ALL if study is None else study.name), table, study)


def write_page(place: Path, table: Table, study: Study | None) -> Path:
    """Writes the page of a table into the folder `place`."""
    page = place / "index.html"
    layout, thumbs = thumbnails(table.runs, place / "thumbnails")
    write_files(place, table, sections(table, study))
    data = page_data(place.name.removeprefix("_"), table, page, layout, thumbs)
    view = _view(place, table, study, data)
    write_answer(place, table, [view["answer"], *view["more"]])
    return save(page, "study", view, scripts_of=[f"study/{part}" for part in PARTS], images_beside=True)


def _view(place: Path, table: Table, study: Study | None, data: dict[str, Any]) -> dict[str, Any]:
    wanted = sections(table, study)
    claims = texts.claims(table, study)
    answer, *more = texts.answer(table, study)
    return {
        "title": texts.title(place, study),
        "facts": texts.facts(table),
        "answer": answer,
        "more": more,
        "question": study.question if study else "",
        "expected": study.expected if study else "",
        "cost": study.cost if study else "",
        "source": texts.source(table),
        "cautions": texts.cautions(table),
        "claims": claims,
        "tally": texts.tally(claims),
        "intervals": texts.intervals(table),
        "sections": wanted,
        "places": [texts.place(name) for name in ("words", "negative") if study and name in study.charts],
        "columns": [key["label"] for key in data["keys"] if key["name"] in data["columns"]],
        "missing": table.pending,
        "repeated": table.repeated,
        "unreadable": table.unreadable,
        "files": _files(place),
        "data": data,
    }


def sections(table: Table, study: Study | None) -> list[str]:
    """The sections of the page, in order: those that the study names, else all that the runs have data for."""
    if not table.runs or not metrics_of(table):
        return []
    keys = keys_of(table.runs)
    several = {key.name for key in keys if len(set(key.values)) > 1}
    if study is not None and study.charts:
        found = [name for name in study.charts if name not in ("words", "negative")]
    else:
        shows = {"models": "model" in several, "methods": bool(several & {"method", "settings"})}
        shows |= dict.fromkeys(("counts", "optimum"), "n" in several)
        found = [name for name in CHARTS if name not in ("words", "negative") and shows.get(name, True)]
    if any(key.extra and key.name in several for key in keys):
        found.append(ALSO)
    return list(dict.fromkeys(found))


def _files(place: Path) -> Sequence[str]:
    """The tables and charts beside the page, relative to it."""
    found = [path for kind in ("tables", "charts") for path in sorted((place / kind).glob("*.*"))]
    return [os.path.relpath(path, place).replace(os.sep, "/") for path in found]
