"""study.json: written and read back, and extended by the points of another command."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffusion_lab.records import UserError
from diffusion_lab.studies.definition import Point, Study
from diffusion_lab.studies.record import find_studies, read_study, study_folder, united, write_study


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
