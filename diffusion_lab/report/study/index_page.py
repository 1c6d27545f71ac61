"""The index of a folder of studies, `index.html`: each study with its question, its answer and how far its runs are.

It is made from `study.json` and `answer.json` of each study, which its page leaves, so that no run is read again.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusion_lab.report.page import save
from diffusion_lab.studies.definition import CLAIMS, Study
from diffusion_lab.studies.record import find_studies, study_folder
from diffusion_lab.studies.table import Table
from diffusion_lab.studies.watch import DONE, FAILED, INTERRUPTED
from diffusion_lab.system import atomic

ANSWER = "answer.json"  # beside a study's page


def write_answer(place: Path, table: Table, sentences: Sequence[str]) -> None:
    """Writes what the index says of a study. `place`: the study's own folder."""
    atomic.write_json(place / ANSWER, {"schema": 1, "answer": list(sentences), "runs": states(table)})


def states(table: Table) -> dict[str, int]:
    """Number of runs that are "done", "failed", "unfinished" (begun, not ended) and "to come"."""
    counts = Counter(run.status for run in table.runs)
    counts.update(why.partition(":")[0] for _, why in table.pending)
    found = {"done": DONE, "failed": (*FAILED, *INTERRUPTED), "to come": ("not begun",)}
    told = {name: sum(counts[status] for status in some) for name, some in found.items()}
    return {**told, "unfinished": counts.total() - sum(told.values())}


def write_index(folder: Path) -> Path:
    """Writes the index of the studies in `folder` and returns its path. UserError if a study.json cannot be read."""
    studies = [_study(folder, study) for study in find_studies(folder)]
    claims = study_folder(folder, CLAIMS) / "index.html"
    view = {
        "title": "Studies",
        "folder": folder.resolve().name,
        "studies": studies,
        "claims": claims.relative_to(folder).as_posix() if claims.is_file() else "",
        "data": {},
    }
    return save(folder / "index.html", "studies", view, charts=False)


def _study(folder: Path, study: Study) -> dict[str, Any]:
    place = study_folder(folder, study.name)
    known = _answer(place)
    sentences = known.get("answer") or ["There is no page of it yet."]
    counts: Mapping[str, int] = known.get("runs") or {"to come": len(study.points)}
    return {
        "name": study.name,
        "question": study.question,
        "answer": str(sentences[0]),
        "more": " ".join(map(str, sentences[1:])),
        "link": f"{place.name}/index.html" if (place / "index.html").is_file() else "",
        "facts": [f"{counts[name]} {name}" for name in ("done", "failed", "unfinished", "to come") if counts.get(name)],
    }  # fmt: skip


def _answer(place: Path) -> dict[str, Any]:
    """Empty if it is missing or damaged: the next page writes it again."""
    try:
        found = json.loads((place / ANSWER).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
