"""What a person can get wrong: each ends with a message that names the key, a status other than 0, and nothing
half-written taken for whole."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from diffusion_lab.__main__ import main

PICTURES = 6


@pytest.fixture(autouse=True)
def _loggers() -> Iterator[None]:
    """Hydra's handlers write to the stderr of this test; they must not outlive it."""
    root = logging.getLogger()
    before = list(root.handlers)
    yield
    root.handlers[:] = before


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    import numpy as np
    from PIL import Image

    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(PICTURES):
        Image.fromarray(np.full((40, 40, 3), 30 * i, np.uint8)).save(folder / f"{i}.png")
    return folder


def empty(folder: Path) -> list[str]:
    for path in folder.iterdir():
        path.unlink()
    return own(folder)


def text_named_jpg(folder: Path) -> list[str]:
    (folder / "notes.jpg").write_text("not a picture")
    return own(folder)


def own(folder: Path) -> list[str]:
    return ["data=folder", f"data.folder={folder}", "data.class_noun=ball", "data.n_images=4"]


def long_prompt(folder: Path) -> list[str]:
    path = folder.parent / "prompts.txt"
    path.write_text("a photo of {subject} " + "very " * 100 + "far away\n")
    return [*own(folder), "prompts=file", f"prompts.path={path}"]


def without_unet(folder: Path) -> list[str]:
    from diffusion_lab.miniature.shipped import shipped_folder

    copy = folder.parent / "model"
    shutil.copytree(shipped_folder("miniature"), copy, ignore=shutil.ignore_patterns("unet"))
    return [*own(folder), "model=folder", f"model.path={copy}"]


CASES: dict[str, tuple[Callable[[Path], list[str]], tuple[str, ...]]] = {
    "unknown subject": (lambda _: ["data.subject=anan"], ("data.subject", "anna")),
    "empty folder": (empty, ("data.folder",)),
    "missing folder": (lambda folder: own(folder / "nowhere"), ("nowhere", "data.folder")),
    "text named .jpg": (text_named_jpg, ("notes.jpg", "data.on_corrupt=skip")),
    "no pictures asked": (lambda folder: [*own(folder), "data.n_images=0"], ("data.n_images", "0")),
    "more than there are": (lambda folder: [*own(folder), "data.n_images=28"], ("28", str(PICTURES))),
    "prompt over 77 tokens": (long_prompt, ("77", "prompts")),
    "model lacks a part": (without_unet, ("unet", "model.path")),
    "no such model": (lambda folder: [*own(folder), "model=folder", "model.path=./nowhere"], ("model.path",)),
    "folder under a file": (lambda folder: [f"hydra.run.dir={folder / '0.png' / 'run'}"], ("hydra.run.dir",)),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_named_and_refused(
    case: str,
    pictures: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    words, expected = CASES[case]
    overrides = words(pictures)
    if not any(word.startswith("hydra.run.dir") for word in overrides):
        overrides.append(f"hydra.run.dir={tmp_path / 'run'}")
    status = main(["experiment=debug", *overrides])
    message = capsys.readouterr().err
    assert status == 2, message
    for part in expected:
        assert part in message
    assert "Traceback" not in message
    record = tmp_path / "run" / "result.json"
    if record.exists():
        assert json.loads(record.read_text())["status"] == "failed"
    assert not (tmp_path / "run" / "artefact").exists()


def test_a_full_disk_is_said_and_leaves_whole_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The disk fills up with the second evaluation: what the first one wrote stays readable."""
    import pyarrow.parquet as pq

    from diffusion_lab.system import atomic

    folder = tmp_path / "run"
    write = os.write

    def full(descriptor: int, content: bytes) -> int:
        if (folder / "samples" / "step-000000.png").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, content)

    monkeypatch.setattr(atomic.os, "write", full)
    status = main(["experiment=debug", f"hydra.run.dir={folder}"])
    message = capsys.readouterr().err
    assert status == 2, message
    assert "hydra.run.dir" in message
    assert json.loads((folder / "result.json").read_text())["status"] in ("running", "failed")
    assert set(pq.read_table(folder / "scores.parquet").column("step").to_pylist()) == {0}
    assert not (folder / "artefact").exists()
