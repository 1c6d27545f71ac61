"""study.json: written and read back; which folders belong to a study."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from diffusion_lab.cli.compose_jobs import compose_jobs
from diffusion_lab.config.schema import as_plain_dict
from diffusion_lab.records import UserError
from diffusion_lab.runs.resume import run_id
from diffusion_lab.studies.definition import Point, Study
from diffusion_lab.studies.record import find_studies, members, read_study, study_folder, united, write_study
from diffusion_lab.values.jsonable import plain


def put(folder: Path, *words: str) -> str:
    """A record of the run with these words; returns its id."""
    [(config, _)] = compose_jobs([words])
    recorded = plain(as_plain_dict(config))
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({"status": "running", "config": recorded}))
    return run_id(recorded)


def test_written_and_read_back(tmp_path: Path) -> None:
    study = Study(
        "mine", "é?", "c", "e", ("stop",), (Point(("seed=0", "data.subject='a b'"), "ab12", "seed=0"),)
    )
    path = write_study(tmp_path, study)
    assert path == study_folder(tmp_path, "mine") / "study.json"
    assert find_studies(tmp_path) == [study] == [read_study(path)]
    path.write_text('{"name": "mine"}')
    with pytest.raises(UserError, match=r"study.json: cannot be read as a study .*writes it again"):
        find_studies(tmp_path)


def test_members_are_known_by_folder_or_by_id(tmp_path: Path) -> None:
    first, second = put(tmp_path / "here", "seed=0"), put(tmp_path / "moved", "seed=1")
    put(tmp_path / "other", "seed=2")
    points = (
        Point((), first, "here"), Point((), second, "elsewhere"), Point((), "0123", "to_come"), Point((), first, "here"),
    )  # fmt: skip
    study = Study("mine", "", "", "", (), points)
    assert members(tmp_path, study) == [tmp_path / "here", tmp_path / "moved"]


def test_points_are_united_by_run_and_folder(tmp_path: Path) -> None:
    def of(*points: tuple[str, str, str]) -> Study:
        return Study(
            "mine", "", "", "", (), tuple(Point((word,), run, folder) for word, run, folder in points)
        )

    new = of(("seed=1", "b", "b2"), ("seed=3", "d", "c"))
    assert united(tmp_path, new) == new
    path = write_study(
        tmp_path, of(("seed=0", "a", "a"), ("seed=1", "b", "b"), ("seed=2", "c", "c"), ("seed=9", "", ""))
    )
    found = united(tmp_path, new)
    assert [(p.run, p.folder) for p in found.points] == [("a", "a"), ("b", "b2"), ("", ""), ("d", "c")]
    path.write_text("{")
    assert united(tmp_path, new) == new
