from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from diffusion_lab.records import UserError
from diffusion_lab.system import atomic, folders
from diffusion_lab.values import jsonable

REAL_WRITE = os.write


def full_disk(descriptor: int, content: bytes) -> int:
    """A disk with room for ten more bytes, as the system reports it: a short write, then ENOSPC."""
    if len(content) <= 10:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return REAL_WRITE(descriptor, bytes(content)[:10])


def failing(number: int):  # type: ignore[no-untyped-def]
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_writes_and_replaces_in_a_folder_that_was_not_there(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.json"
    atomic.write_json(path, {"x": 1})
    atomic.write_json(path, {"x": 2})
    assert json.loads(path.read_text()) == {"x": 2}
    assert names(path.parent) == ["file.json"]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask  # readable like any other file of this person


@pytest.mark.parametrize("patch", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patch: str
) -> None:
    path = tmp_path / "result.json"
    atomic.write_text(path, "the old content")
    monkeypatch.setattr(os, patch, full_disk if patch == "write" else failing(errno.ENOSPC))
    with pytest.raises(UserError) as caught:
        atomic.write_text(path, "new " * 1000)
    monkeypatch.undo()
    assert str(path) in str(caught.value)
    assert "hydra.run.dir" in str(caught.value)
    assert "free some space" in str(caught.value)
    assert path.read_text() == "the old content"
    assert names(tmp_path) == ["result.json"]


def test_a_full_disk_leaves_no_first_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "write", full_disk)
    with pytest.raises(UserError):
        atomic.write_text(tmp_path / "result.json", "new " * 1000)
    assert names(tmp_path) == []


def test_a_real_limit_on_the_size_of_files(tmp_path: Path) -> None:
    """No patch here: the system itself stops the write halfway."""
    pytest.importorskip("resource")
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from diffusion_lab.system import atomic; from diffusion_lab.records import UserError\n"
        "path = Path(sys.argv[1]); atomic.write_bytes(path, b'old')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "atomic.append_line(path.with_name('log'), 'x' * 40_000)\n"
        "for call in (lambda: atomic.write_bytes(path, b'n' * 200_000),\n"
        "             lambda: atomic.append_line(path.with_name('log'), 'y' * 40_000)):\n"
        "    try: call()\n"
        "    except UserError as error: print('told:', error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "file")], capture_output=True, text=True, check=True
    )
    assert done.stdout.count("told:") == 2
    assert (tmp_path / "file").read_bytes() == b"old"
    assert (tmp_path / "log").read_text() == "x" * 40_000 + "\n"
    assert names(tmp_path) == ["file", "log"]


def test_an_error_that_nobody_can_mend_is_not_disguised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        atomic.write_text(tmp_path / "file", "text")
    assert names(tmp_path) == []


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "outputs").write_text("I am a file")
    with pytest.raises(UserError, match="hydra.run.dir"):
        folders.check_writable(tmp_path / "outputs" / "run")
    with pytest.raises(UserError, match="hydra.run.dir"):
        folders.check_writable(tmp_path / "outputs")


@contextmanager
def without_rights() -> Iterator[None]:
    """The superuser may write anywhere; for a moment this process is somebody else."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="rights of this kind are Unix's")
def test_a_folder_without_the_right_to_write(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    with without_rights(), pytest.raises(UserError) as caught:
        folders.check_writable(folder / "run")
    assert str(folder) in str(caught.value)
    assert "hydra.run.dir" in str(caught.value)
    assert names(folder) == []


def test_check_writable_leaves_nothing_and_compares_the_room(tmp_path: Path) -> None:
    folders.check_writable(tmp_path / "run", needed_bytes=1)
    assert names(tmp_path / "run") == []
    with pytest.raises(UserError, match="MB free and the run needs"):
        folders.check_writable(tmp_path / "run", needed_bytes=10**18)


def test_a_line_that_does_not_fit_is_cut_off_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "events.jsonl"
    atomic.append_line(path, '{"a": 1}')
    monkeypatch.setattr(os, "write", full_disk)
    with pytest.raises(UserError):
        atomic.append_line(path, '{"b": "' + "x" * 100 + '"}')
    monkeypatch.undo()
    atomic.append_line(path, '{"c": 3}')
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"a": 1}, {"c": 3}]


def test_a_folder_is_whole_or_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "artefact"
    with folders.replace_folder(target) as folder:
        (folder / "weights").write_text("one")
        assert not target.exists()
    with pytest.raises(ValueError, match="halfway"), folders.replace_folder(target) as folder:
        (folder / "weights").write_text("tw")
        raise ValueError("halfway")
    assert (target / "weights").read_text() == "one"
    with folders.replace_folder(target) as folder:
        (folder / "other").write_text("three")
    assert names(target) == ["other"]
    assert names(tmp_path) == ["artefact"]


def test_json_is_strict() -> None:
    value = {
        "nan": float("nan"), "inf": np.float32("inf"), "int": np.int64(7), "path": Path("a/b"),
        "tuple": (1, None, True), 3: {"b", "a"},
    }  # fmt: skip
    assert json.loads(jsonable.dumps(value)) == {
        "nan": None, "inf": None, "int": 7, "path": str(Path("a/b")), "tuple": [1, None, True], "3": ["a", "b"],
    }  # fmt: skip


def test_a_fresh_folder_leaves_a_whole_one_of_another_process(tmp_path: Path) -> None:
    target = tmp_path / "cache"

    def whole(folder: Path) -> bool:
        return (folder / "end").is_file()

    for content, expected in (("first", "first"), ("second", "first")):
        with folders.fresh_folder(target, keep=whole) as beside:
            atomic.write_text(beside / "end", content)
        assert (target / "end").read_text() == expected
    (target / "end").unlink()  # damaged: replaced
    with folders.fresh_folder(target, keep=whole) as beside:
        atomic.write_text(beside / "end", "third")
    assert (target / "end").read_text() == "third"
    assert list(tmp_path.iterdir()) == [target]


def test_errors_of_caches_stay_the_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "write", full_disk)
    with (
        pytest.raises(OSError, match="No space left") as caught,
        atomic.fresh_file(tmp_path / "file") as sink,
    ):
        sink.write(b"a")
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(tmp_path / "file")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyError), folders.fresh_folder(tmp_path / "folder"):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_finished_file_is_moved_into_its_place(tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_text("new")
    target.write_text("old")
    atomic.move(source, target)
    assert not source.exists()
    assert target.read_text() == "new"
