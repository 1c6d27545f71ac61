"""Entries are whole or absent, whatever happens to the processes that write them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from diffusion_lab.records import UserError
from diffusion_lab.system import store as stores
from diffusion_lab.system.store import Store, key_of, limit_in_bytes, open_store

ROOT = Path(__file__).parents[2]
VALUES = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b": torch.tensor([[1.0, float("nan")]]),
    "n": torch.tensor([7]),
}


def same(found: dict[str, torch.Tensor] | None) -> bool:
    return found is not None and all(
        torch.equal(found[name].nan_to_num(-1.0), value.nan_to_num(-1.0)) and found[name].dtype == value.dtype
        for name, value in VALUES.items()
    )


def test_an_entry_is_read_as_it_was_written(tmp_path: Path) -> None:
    store = Store(tmp_path / "deep" / "folder", 10**6)
    assert store.read("k") is None
    store.write("k", VALUES)
    assert same(store.read("k"))
    assert same(Store(store.folder, 1).read("k"))


def test_tensors_are_aligned_as_torch_aligns_them(tmp_path: Path) -> None:
    store = Store(tmp_path, 10**6)
    store.write("k", {"a": torch.zeros(3, dtype=torch.uint8), "b": torch.zeros(5), "c": torch.zeros(7)})
    found = store.read("k")
    assert found is not None
    assert all(value.data_ptr() % 64 == 0 for value in found.values())


def test_keys() -> None:
    assert key_of({"a": 1, "b": [2.5, "x"]}) == key_of({"b": [2.5, "x"], "a": 1})
    others = [{"a": 1}, {"a": "1"}, {"a": [1]}, {"b": 1}, {"a": 1, "b": None}, [1], None]
    assert len({key_of(one) for one in others}) == len(others)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "header", "other names", "folder"])
def test_a_damaged_entry_is_missing_and_can_be_written_again(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path, 10**6)
    store.write("k", VALUES)
    path = store.path("k")
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[:-3])
    elif damage == "flipped":
        content[-1] ^= 1
        path.write_bytes(content)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "header":
        content[12] ^= 255
        path.write_bytes(content)
    elif damage == "other names":
        path.write_bytes(bytes(content).replace(b'"a"', b'"c"'))
    else:
        path.unlink()
        path.mkdir()
    assert store.read("k") is None
    assert damage == "folder" or "is damaged" in caplog.text
    store.write("k", VALUES)
    if damage == "folder":
        assert "cannot be written" in caplog.text  # and the run goes on
    else:
        assert same(store.read("k"))


def test_the_least_recently_used_entries_are_deleted(tmp_path: Path) -> None:
    big = {"a": torch.zeros(250)}  # 1,000 bytes and a header
    store = Store(tmp_path, 3600)
    for number, name in enumerate(("one", "two", "three")):
        store.write(name, big)
        os.utime(store.path(name), (1000 + number, 1000 + number))
    assert store.read("one") is not None  # used now
    store.write("four", big)
    assert {path.stem for path in tmp_path.iterdir()} == {"one", "three", "four"}
    store.write("large", {"a": torch.zeros(1000)})
    assert store.read("large") is None  # larger than the limit
    assert {path.stem for path in tmp_path.iterdir()} == {"one", "three", "four"}


def test_what_a_killed_process_left_is_removed_after_a_day(tmp_path: Path) -> None:
    store = Store(tmp_path, 10**6)
    old, new = tmp_path / ".a.safetensors.1.tmp", tmp_path / ".b.safetensors.2.tmp"
    for path in (old, new):
        path.write_bytes(b"part")
    os.utime(old, (time.time() - 90_000,) * 2)
    store.write("k", VALUES)
    assert not old.exists()
    assert new.exists()


def test_a_folder_that_cannot_be_written_costs_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("not a folder")
    store = Store(tmp_path / "file" / "deep", 10**6)
    store.write("k", VALUES)
    assert store.read("k") is None
    assert "cannot be written" in caplog.text


def test_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DIFFUSION_LAB_CACHE", str(tmp_path))
    for given, expected in (("", 4e9), ("0.5", 5e8), (" 12 ", 12e9), ("0", 0)):
        monkeypatch.setenv(stores.LIMIT, given)
        assert limit_in_bytes() == expected
        assert (open_store() is None) == (expected == 0)
    monkeypatch.delenv(stores.LIMIT)
    found = open_store()
    assert found is not None
    assert found.folder == tmp_path / "evaluations"
    for given in ("-1", "many", "inf", "nan", "4GB"):
        monkeypatch.setenv(stores.LIMIT, given)
        with pytest.raises(UserError, match=stores.LIMIT):
            limit_in_bytes()


WRITE = """
import sys, torch
from pathlib import Path
from diffusion_lab.system.store import Store
store, value = Store(Path(sys.argv[1]), 10**9), torch.arange(2_000_000.0)
print("ready", flush=True)
while True:
    store.write("k", {"a": value})
    found = store.read("k")
    assert found is not None and torch.equal(found["a"], value)
"""


def test_writers_that_are_killed_leave_a_whole_entry(tmp_path: Path) -> None:
    """Two processes replace one entry all the time; one after the other is killed while it is at work."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITE, str(tmp_path)],
            env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for _ in range(2)
    ]  # fmt: skip
    expected, store, reads = torch.arange(2_000_000.0), Store(tmp_path, 10**9), 0
    try:
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
        for writer in writers:
            end = time.monotonic() + 1.5
            while time.monotonic() < end:
                found = store.read("k")
                reads += found is not None
                assert found is None or torch.equal(found["a"], expected)
            assert writer.poll() is None
            writer.send_signal(signal.SIGKILL)
            writer.communicate(timeout=60)
    finally:
        for writer in writers:
            writer.kill()
    assert reads > 3
    last = store.read("k")
    assert last is not None
    assert torch.equal(last["a"], expected)
    store.write("k", {"a": expected})  # nobody holds a lock
