"""Errors of a full disk and of full memory, as the system and each library report them: one line with a remedy."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError

from diffusion_lab.jobs import outcome_of
from diffusion_lab.records import UserError
from diffusion_lab.system import atomic, disk_errors, failures, streams

ROOT = Path(__file__).parents[1]


def system(number: int, name: str | None = "/run/result.json") -> OSError:
    return OSError(number, os.strerror(number), name)


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


DISK = [
    *(system(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)),
    system(errno.ENOSPC, None),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    Exception("No space left on device (os error 28)"),  # as tokenizers has it
    caused(RuntimeError("the library's own words"), system(errno.ENOSPC)),
]
PLACE = [*(system(number) for number in (errno.EACCES, errno.EROFS, errno.ENOENT, errno.ENOTDIR))]
MEMORY = [
    MemoryError(),
    MemoryError("Unable to allocate 8.00 GiB for an array with shape (1,) and data type float64"),
    system(errno.ENOMEM, None),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 8 bytes. Error code 12 (Cannot allocate memory)\nframe #0: c10::something"
    ),
    RuntimeError("std::bad_alloc"),
    RuntimeError("could not create a primitive"),
    RuntimeError("can't start new thread"),
    ImportError("libx.so: failed to map segment from shared object"),
    SafetensorError("Error while opening: Cannot allocate memory (os error 12)"),
    caused(UserError("model.path=x: the folder cannot be loaded; copy or download it again"), MemoryError()),
]
NEITHER = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    ZeroDivisionError(),
    system(errno.EIO),
    RuntimeError("could not create a primitive descriptor for a convolution"),
]


@pytest.mark.parametrize("error", [*DISK, *PLACE], ids=repr)
def test_a_disk_is_named_with_its_remedy(error: Exception) -> None:
    outcome = outcome_of(error)
    assert outcome.exit_status == 2
    assert "hydra.run.dir=FOLDER" in outcome.message
    assert ("free some space" in outcome.message) == (error in DISK)
    assert "\n" not in outcome.message


@pytest.mark.parametrize("error", MEMORY, ids=repr)
def test_memory_is_named_with_its_remedy(error: Exception) -> None:
    outcome = outcome_of(error)
    assert outcome.exit_status == 2
    assert "memory is full" in outcome.message
    assert "steps.batch_size" in outcome.message
    assert "\n" not in outcome.message
    assert "download" not in outcome.message  # not the advice of what took it for a damaged file


@pytest.mark.parametrize("error", NEITHER, ids=repr)
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    assert failures.failure_message(error) is None
    assert outcome_of(error).exit_status == 1


def test_real_errors_of_the_libraries(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as memory:
        torch.empty(1 << 60)
    assert failures.is_memory(memory.value)
    (tmp_path / "file").write_text("")
    with pytest.raises(SafetensorError) as place:
        safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "file" / "x")
    assert disk_errors.os_error(place.value) is not None
    with (
        pytest.raises(UserError, match=r"something else is in its place"),
        disk_errors.recoverable(tmp_path / "file"),
    ):
        raise place.value


def test_a_dead_link_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").symlink_to("/nowhere/at/all")
    with (
        pytest.raises(
            UserError, match=r"symbolic link to /nowhere/at/all, which does not exist; remove the link"
        ),
        disk_errors.recoverable(tmp_path / "config.yaml"),
    ):
        (tmp_path / "config.yaml").write_text("")


def test_a_librarys_error_does_not_hide_the_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's writer says `unexpected pos 704 vs 598` where the disk is full."""

    def full(*_: Any) -> int:
        raise system(errno.ENOSPC)

    with pytest.raises(UserError, match="no room to write"), atomic.writing(tmp_path / "state.pt") as sink:
        sink.write(b"first")
        monkeypatch.setattr(os, "write", full)
        torch.save({"a": torch.zeros(100_000)}, sink)  # type: ignore[arg-type]
    monkeypatch.undo()
    with pytest.raises(ZeroDivisionError), atomic.writing(tmp_path / "state.pt") as sink:
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


# --- standard output and logs -------------------------------------------------------------------------

needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")


def run(*words: str, out: str = os.devnull, err: str | None = None) -> subprocess.CompletedProcess[str]:
    with open(out, "w") as stdout, open(err or os.devnull, "w") as stderr:
        return subprocess.run(
            [sys.executable, "-m", "diffusion_lab", *words], cwd=ROOT, text=True, timeout=300, check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=stdout, stderr=stderr if err else subprocess.PIPE,
        )  # fmt: skip


@needs_full
@pytest.mark.parametrize("words", [["--help"], ["experiment=debug", "--dry-run"]], ids=["help", "plan"])
def test_what_cannot_be_printed_is_one_line(words: list[str]) -> None:
    done = run(*words, out="/dev/full")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: standard output cannot be written (No space left on device)")


@needs_full
def test_nowhere_to_say_anything() -> None:
    assert run("--help", out="/dev/full", err="/dev/full").returncode == 2
    assert run("steps.total=-1", out="/dev/full", err="/dev/full").returncode == 2


@pytest.mark.skipif(os.name != "posix", reason="a POSIX shell closes descriptors")
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_descriptors_that_were_closed_are_no_error(closed: str, tmp_path: Path) -> None:
    command = f'"{sys.executable}" -m diffusion_lab --help {closed}; echo $? >"{tmp_path}/status"'
    done = subprocess.run(
        ["/bin/sh", "-c", command], cwd=ROOT, text=True, timeout=300, check=False, capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (tmp_path / "status").read_text().strip() == "0"
    assert done.stderr == ""


@pytest.mark.skipif(os.name != "posix", reason="a POSIX shell closes descriptors")
def test_no_file_takes_a_closed_descriptors_number(tmp_path: Path) -> None:
    """A library that writes to descriptor 1 would otherwise write into whichever file has the number now."""
    program = (
        "import os; from diffusion_lab.system.streams import guarded\n"
        f"with guarded():\n    with open({str(tmp_path / 'file')!r}, 'w') as file: os.write(1, b'stray'); print(file.fileno() > 2, file=file)\n"
    )
    subprocess.run(
        ["/bin/sh", "-c", f'"{sys.executable}" -c "$PROGRAM" <&- >&-'], cwd=ROOT, timeout=300, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PROGRAM": program},
    )  # fmt: skip
    assert (tmp_path / "file").read_text() == "True\n"


def test_a_reader_that_goes_away_is_no_error() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "diffusion_lab", "--help"], cwd=ROOT, text=True, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.close()
    assert process.communicate(timeout=300)[1] == ""
    assert process.returncode == 0


@needs_full
@pytest.mark.parametrize("path", ["/dev/full", "gone/run.log"])
def test_a_log_that_cannot_be_written_says_so_once(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    handler = streams.LogFile(path, encoding="utf-8", delay=True)
    logger = logging.getLogger("test of a full log")
    logger.propagate = False
    logger.addHandler(handler)
    try:
        for number in range(5):
            logger.warning("line %d", number)
    finally:
        logger.removeHandler(handler)
        handler.close()
    told = capsys.readouterr().err
    assert told.count("cannot be written") == 1
    assert "Traceback" not in told


def test_a_wrong_log_call_is_still_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    handler = streams.LogFile(tmp_path / "run.log")
    handler.handle(logging.LogRecord("x", logging.INFO, "x.py", 1, "%d numbers", ("no",), None))
    handler.close()
    assert "Logging error" in capsys.readouterr().err
