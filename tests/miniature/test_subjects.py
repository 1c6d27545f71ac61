"""The ten people one can fine-tune on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_lab.miniature.identity import vector
from diffusion_lab.miniature.subjects import (
    N_PORTRAITS,
    SUBJECTS,
    is_complete,
    subject_portrait,
    write_subjects,
)
from diffusion_lab.miniature.world import SUBJECT_SEEDS, identity_from_seed


def test_five_women_and_five_men_from_their_own_range_of_seeds() -> None:
    assert Counter(s.noun for s in SUBJECTS.values()) == {"woman": 5, "man": 5}
    seeds = [s.seed for s in SUBJECTS.values()]
    assert len(set(seeds)) == 10
    assert min(seeds) >= SUBJECT_SEEDS
    assert all(name == spec.name for name, spec in SUBJECTS.items())


def test_subjects_are_far_apart() -> None:
    v = np.stack([vector(identity_from_seed(s.seed, s.noun)) for s in SUBJECTS.values()])
    distances = np.linalg.norm(v[:, None] - v[None], axis=-1) + 9 * np.eye(len(v))
    assert distances.min() > 2.0


def test_all_portraits_differ_and_show_the_same_person_in_varied_scenes() -> None:
    pictures = set()
    for name, spec in SUBJECTS.items():
        portraits = [subject_portrait(name, i) for i in range(N_PORTRAITS)]
        pictures |= {p.image.tobytes() for p in portraits}
        assert {p.identity for p in portraits} == {identity_from_seed(spec.seed, spec.noun)}
        assert {p.noun for p in portraits} == {spec.noun}
        assert {p.scene.style for p in portraits} == {"photo"}
        assert min(p.scene.quality for p in portraits) > 0.5
        assert sum(p.scene.accessory == "sunglasses" for p in portraits) <= 1
        for slot, least in {"expression": 7, "pose": 5, "attire": 8, "place": 8, "lighting": 6}.items():
            assert len({getattr(p.scene, slot) for p in portraits}) == least
    assert len(pictures) == 10 * N_PORTRAITS


def test_a_written_folder_is_complete_and_left_alone_the_second_time(tmp_path: Path) -> None:
    folder = write_subjects(tmp_path / "subjects", ["anna", "ben"])
    assert sorted(p.name for p in folder.iterdir()) == ["anna", "ben"]
    assert is_complete(folder / "anna")
    assert (folder / "ben" / "class_noun.txt").read_text().strip() == "man"
    files = sorted((folder / "anna").glob("*.png"))
    assert [f.name for f in files] == [f"{i:02d}.png" for i in range(N_PORTRAITS)]
    with Image.open(files[3]) as image:
        assert image.mode == "RGB"
        assert np.array_equal(np.asarray(image), subject_portrait("anna", 3).image)

    for file in files:
        os.utime(file, (1, 1))
    write_subjects(folder, ["anna"])
    assert {f.stat().st_mtime for f in files} == {1.0}


def test_an_incomplete_folder_is_written_anew(tmp_path: Path) -> None:
    write_subjects(tmp_path, ["emma"])
    (tmp_path / "emma" / "05.png").unlink()
    write_subjects(tmp_path, ["emma"])
    assert is_complete(tmp_path / "emma")
    assert [p.name for p in tmp_path.iterdir()] == ["emma"]


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="zoe"):
        write_subjects(tmp_path, ["zoe"])
    with pytest.raises(KeyError, match="zoe"):
        subject_portrait("zoe", 0)
    with pytest.raises(IndexError):
        subject_portrait("anna", N_PORTRAITS)


def test_command_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "diffusion_lab.miniature.subjects", str(tmp_path), "--names", "dan"]
    subprocess.run(command, check=True, capture_output=True)
    assert is_complete(tmp_path / "dan")
