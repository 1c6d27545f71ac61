"""Subjects from the miniature and from a user's folder, through one loader."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_lab.config.schema import Data
from diffusion_lab.data.pictures import read_folder
from diffusion_lab.data.subjects import check_subject, load_subject, renderer_version
from diffusion_lab.miniature.subjects import N_PORTRAITS, SUBJECTS
from diffusion_lab.records import UserError
from diffusion_lab.system.cache import default_cache


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def write(folder: Path, n: int, start: int = 0) -> Path:
    """n different small pictures; `start` keeps the folders' pictures apart."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        pixels = np.random.default_rng(start + i).integers(0, 255, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def folder_data(folder: Path, **options: object) -> Data:
    given = {"class_noun": "dog", "n_images": 3, "subject": "", **options}
    return Data(source="folder", folder=str(folder), **given)  # type: ignore[arg-type]


def test_miniature(cache: Path) -> None:
    subject = load_subject(Data(subject="anna"), cache)
    assert (subject.name, subject.class_noun, subject.identifier) == ("anna", "woman", "customcls")
    assert subject.instance_prompt == "a photo of customcls woman"
    assert len(subject.train) == 14
    assert len(subject.heldout) == 8
    assert subject.train[0].pixels.shape == (64, 64, 3)
    assert len({p.sha256 for p in (*subject.train, *subject.heldout)}) == 22
    others = sorted(name for name, spec in SUBJECTS.items() if spec.noun == "woman" and name != "anna")
    assert sorted({p.path.parent.name for p in subject.impostors}) == others
    assert len(subject.impostors) == 4 * len(others)
    smaller = load_subject(Data(subject="anna", n_images=4), cache)
    assert [p.sha256 for p in smaller.train] == [p.sha256 for p in subject.train[:4]]
    assert [p.sha256 for p in smaller.heldout] == [p.sha256 for p in subject.heldout]
    assert [p.sha256 for p in smaller.impostors] == [p.sha256 for p in subject.impostors]


def test_miniature_and_its_folder_are_read_alike(cache: Path) -> None:
    subject = load_subject(Data(subject="anna"), cache)
    folder = subject.train[0].path.parent
    assert len(read_folder(folder)) == N_PORTRAITS
    same = load_subject(folder_data(folder, class_noun=None, subject="anna", n_images=14), cache)
    assert same.class_noun == "woman"  # of the file beside the pictures
    assert [p.sha256 for p in same.train] == [p.sha256 for p in subject.train]
    assert [p.sha256 for p in same.heldout] == [p.sha256 for p in subject.heldout]


def test_cache_is_mended_and_kept(cache: Path) -> None:
    folder = load_subject(Data(subject="anna"), cache).train[0].path.parent
    assert renderer_version() in str(folder)
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.glob("*.png")}
    load_subject(Data(subject="anna"), cache)
    assert {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.glob("*.png")} == before
    (folder / "03.png").unlink()
    load_subject(Data(subject="anna"), cache)
    assert {p.name: p.read_bytes() for p in folder.glob("*.png")} == {n: c for n, (c, _) in before.items()}


def test_two_processes_may_write_at_once(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from diffusion_lab.config.schema import Data\n"
        "from diffusion_lab.data.subjects import _miniature_folder\n"
        "from diffusion_lab.data.pictures import read_folder\n"
        "print([p.sha256 for p in read_folder(_miniature_folder('anna', Path(sys.argv[1])))])"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    outputs = [process.communicate() for process in running]
    assert [process.returncode for process in running] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    left = [path.name for path in next(tmp_path.iterdir()).iterdir()]
    assert left == ["anna"]


def test_unknown_subject(cache: Path) -> None:
    for call in (check_subject, lambda data: load_subject(data, cache)):
        with pytest.raises(UserError) as caught:
            call(Data(subject="ana"))
        assert all(name in str(caught.value) for name in SUBJECTS)
        assert "did you mean 'anna'" in str(caught.value)
        assert "data.subject=ana" in str(caught.value)


def test_too_many_images_of_the_miniature(cache: Path) -> None:
    for call in (check_subject, lambda data: load_subject(data, cache)):
        with pytest.raises(UserError, match=r"data\.n_images=21, but there are 28 pictures, 8"):
            call(Data(n_images=21))


def test_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="DIFFUSION_LAB_CACHE"):
        load_subject(Data(), tmp_path / "file")


def test_default_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DIFFUSION_LAB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/someone")
    assert default_cache() == Path("/home/someone/.cache/diffusion_lab")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert default_cache() == Path("/home/someone/.cache/diffusion_lab")
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert default_cache() == Path("/elsewhere/diffusion_lab")
    monkeypatch.setenv("DIFFUSION_LAB_CACHE", "~/mine")
    assert default_cache() == Path("/home/someone/mine")


def test_folder(tmp_path: Path) -> None:
    folder = write(tmp_path / "rex", 6)
    data = folder_data(folder)
    assert check_subject(data) == "dog"
    subject = load_subject(data)
    assert (subject.name, subject.class_noun, len(subject.train), len(subject.heldout)) == (
        "rex",
        "dog",
        3,
        1,
    )
    assert subject.impostors == ()
    assert load_subject(folder_data(folder, subject="fido")).name == "fido"
    for call in (check_subject, load_subject):
        with pytest.raises(UserError, match=r"data\.n_images=14, but there are 6 pictures, 1 of them"):
            call(folder_data(folder, n_images=14))


def test_order_is_of_the_subject_not_of_the_place(tmp_path: Path) -> None:
    one = load_subject(folder_data(write(tmp_path / "here" / "rex", 12)))
    two = load_subject(folder_data(write(tmp_path / "there" / "rex", 12)))
    assert [p.sha256 for p in one.train] == [p.sha256 for p in two.train]
    seeds = {
        tuple(p.path.name for p in load_subject(folder_data(tmp_path / "here" / "rex", subset_seed=s)).train)
        for s in range(4)
    }
    assert len(seeds) > 1


def test_class_noun(tmp_path: Path) -> None:
    folder = write(tmp_path / "rex", 6)
    with pytest.raises(UserError, match=r"data\.class_noun"):
        load_subject(folder_data(folder, class_noun=None))
    (folder / "class_noun.txt").write_text("\ufeffhound \n")
    assert load_subject(folder_data(folder, class_noun=None)).class_noun == "hound"
    assert load_subject(folder_data(folder)).class_noun == "dog"  # what was said wins
    (folder / "class_noun.txt").write_text("\n")
    with pytest.raises(UserError, match=r"data\.class_noun is not set"):
        load_subject(folder_data(folder, class_noun=None))
    (folder / "class_noun.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError, match=r"class_noun\.txt cannot be read"):
        load_subject(folder_data(folder, class_noun=None))


def test_empty_missing_and_corrupt_folders(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for call in (check_subject, load_subject):
        with pytest.raises(UserError, match="no pictures in"):
            call(folder_data(tmp_path / "empty"))
        with pytest.raises(UserError, match="does not exist"):
            call(folder_data(tmp_path / "missing"))
    folder = write(tmp_path / "rex", 6)
    (folder / "text.jpg").write_text("text")
    with pytest.raises(UserError, match=r"text\.jpg"):
        load_subject(folder_data(folder))
    skipped = load_subject(folder_data(folder, on_corrupt="skip"))
    (folder / "text.jpg").unlink()
    whole = load_subject(folder_data(folder))
    assert [p.path for p in skipped.train + skipped.heldout] == [p.path for p in whole.train + whole.heldout]


def test_impostors_of_a_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rex = write(tmp_path / "dogs" / "rex", 6)
    write(tmp_path / "dogs" / "bello", 9, 100)
    write(tmp_path / "dogs" / "waldi", 2, 200)
    write(tmp_path / "dogs" / "tom", 5, 300)
    (tmp_path / "dogs" / "tom" / "class_noun.txt").write_text("cat\n")
    (tmp_path / "dogs" / "nothing").mkdir()
    (tmp_path / "dogs" / ".hidden").mkdir()
    (tmp_path / "dogs" / "readme.txt").touch()
    os.symlink(rex, tmp_path / "dogs" / "also_rex")
    data = folder_data(rex, impostors=str(tmp_path / "dogs"))
    subject = load_subject(data)
    names = [p.path.parent.name for p in subject.impostors]
    assert names == ["bello"] * 4 + ["waldi"] * 2
    assert "nothing is skipped" in caplog.text
    again = load_subject(folder_data(rex, impostors=str(tmp_path / "dogs"), subset_seed=5, n_images=1))
    assert [p.path for p in again.impostors] == [p.path for p in subject.impostors]
    with pytest.raises(UserError, match=r"data\.impostors"):
        load_subject(folder_data(rex, impostors=str(tmp_path / "missing")))
    shutil.rmtree(tmp_path / "dogs" / "bello")
    shutil.rmtree(tmp_path / "dogs" / "waldi")
    with pytest.raises(UserError, match=r"data\.impostors: no folder"):
        load_subject(data)


PHOTOS = os.environ.get("DIFFUSION_LAB_PHOTOS", "")


@pytest.mark.skipif(not PHOTOS, reason="DIFFUSION_LAB_PHOTOS names no folder of subjects' folders")
def test_real_photographs() -> None:
    data = folder_data(Path(PHOTOS) / "dog", n_images=4, impostors=PHOTOS)
    subject = load_subject(data)
    assert (subject.name, len(subject.train), len(subject.heldout)) == ("dog", 4, 1)
    assert len(subject.impostors) >= 8
