from __future__ import annotations

import io
import logging
import os
import re
import sys
import threading

import pytest

from diffusion_lab.records import UserError
from diffusion_lab.system.progress import Progress, format_interval, time_left

SHOW_CURSOR = "\x1b[?25h"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal:
    """The two ends of a real pseudo-terminal; what is drawn is read from its other side."""

    def __init__(self) -> None:
        self.master, slave = os.openpty()
        self.stream = os.fdopen(slave, "w", encoding="utf-8")
        self.drawn = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            while piece := os.read(self.master, 65536):
                self.drawn += piece
        except OSError:  # Linux says so when the writing end is closed
            pass

    def close(self) -> str:
        self.stream.close()
        self._reader.join(5)
        os.close(self.master)
        return self.drawn.decode()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    if not hasattr(os, "openpty"):
        pytest.skip("no pseudo-terminals here")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return Terminal()


@pytest.fixture
def no_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logging as it is in a program that never set it up (the test runner has handlers of its own)."""
    logger = logging.getLogger("diffusion_lab.system.progress")
    monkeypatch.setattr(logger, "hasHandlers", lambda: False)


def work(progress: Progress, clock: Clock) -> None:
    """Six training steps of 10 s, with an evaluation of 100 pictures in 40 s before the first and fourth."""
    with progress, progress.task("training", 6) as training:
        for step in range(6):
            if step % 3 == 0:
                with progress.task("sampling", 100) as sampling:
                    for _ in range(4):
                        clock.now += 10
                        sampling.advance(25)
            clock.now += 10
            training.advance()


def test_bars_on_a_terminal(terminal: Terminal) -> None:
    progress = Progress("auto", stream=terminal.stream)
    assert progress.mode == "bars"
    with progress, progress.task("training", 10) as training:
        training.advance(3)
        with progress.task("sampling", 100) as sampling:
            sampling.advance(50)
            assert progress._bars is not None
            progress._bars.refresh()
        training.advance(7)
    drawn = terminal.close()
    assert re.search(r"training .*3/10", drawn)
    assert re.search(r"sampling .*50/100", drawn)
    assert "left" in drawn
    assert drawn.rstrip().endswith(SHOW_CURSOR) or SHOW_CURSOR in drawn[drawn.rindex("sampling") :]


def test_an_error_gives_the_terminal_back(terminal: Terminal) -> None:
    handlers = [(handler, getattr(handler, "stream", None)) for handler in logging.getLogger().handlers]
    out, err = sys.stdout, sys.stderr
    with pytest.raises(KeyboardInterrupt), Progress("bars", stream=terminal.stream) as progress:
        progress.task("training", 10).advance()
        raise KeyboardInterrupt
    assert (sys.stdout, sys.stderr) == (out, err)
    assert [(h, getattr(h, "stream", None)) for h in logging.getLogger().handlers] == handlers
    assert SHOW_CURSOR in terminal.close()


def test_log_lines_do_not_write_into_the_bars(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler opened before the bars holds the bare stream; its lines must come out above them, whole."""
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    monkeypatch.setattr(sys, "__stderr__", terminal.stream)
    handler = logging.StreamHandler(terminal.stream)
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    with Progress("bars", stream=terminal.stream) as progress:
        progress.task("training", 10).advance()
        assert handler.stream is not terminal.stream
        logging.getLogger("diffusion_lab").warning("a message in between")
    assert handler.stream is terminal.stream
    drawn = terminal.close()
    line = next(line for line in drawn.splitlines() if "a message in between" in line)
    assert "training" not in line.partition("a message in between")[2]


def test_few_lines_where_there_is_no_terminal(no_handlers: None) -> None:
    stream, clock = io.StringIO(), Clock()
    progress = Progress("auto", stream=stream, interval=30, clock=clock)
    assert progress.mode == "lines"
    work(progress, clock)
    assert stream.getvalue().splitlines() == [
        "sampling 75/100, 0:30 gone, 0:10 left",
        "sampling 100/100 in 0:40",
        "training 1/6, 0:50 gone, 4:10 left",
        "sampling 75/100, 0:30 gone, 0:10 left",
        "sampling 100/100 in 0:40",
        "training 4/6, 2:00 gone, 1:00 left",
        "training 6/6 in 2:20",
    ]


def test_lines_go_to_the_log_where_there_is_one(caplog: pytest.LogCaptureFixture) -> None:
    stream, clock = io.StringIO(), Clock()
    with caplog.at_level(logging.INFO, logger="diffusion_lab"):
        work(Progress("lines", stream=stream, clock=clock), clock)
    assert stream.getvalue() == ""
    assert "training 6/6 in 2:20" in caplog.messages


def test_a_thousand_short_steps_make_few_lines(no_handlers: None) -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress("lines", stream=stream, clock=clock) as progress, progress.task("training", 1000) as task:
        for _ in range(1000):
            clock.now += 0.25
            task.advance()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 9  # 250 s: one every 30 s, and the last
    assert lines[0] == "training 120/1000, 0:30 gone, 3:40 left"


def test_short_tasks_say_nothing(no_handlers: None) -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress("lines", stream=stream, clock=clock) as progress, progress.task("scoring", 10) as task:
        clock.now += 1
        task.advance(10)
    assert stream.getvalue() == ""


def test_off_is_silent(capsys: pytest.CaptureFixture[str], no_handlers: None) -> None:
    stream, clock = io.StringIO(), Clock()
    work(Progress("off", stream=stream, clock=clock), clock)
    assert stream.getvalue() == ""
    assert capsys.readouterr() == ("", "")


def test_an_unknown_mode_is_named() -> None:
    with pytest.raises(UserError, match=r"tracker\.progress='loud'.*auto, bars, lines, off"):
        Progress("loud")


def test_a_dumb_terminal_gets_lines(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert Progress("auto", stream=terminal.stream).mode == "lines"
    terminal.close()


def test_arithmetic() -> None:
    assert time_left(10.0, 0, 5) is None
    assert time_left(10.0, 2, 6) == 20.0
    assert [format_interval(s) for s in (None, 0.4, 125, 3725)] == ["-:--", "0:00", "2:05", "1:02:05"]


def test_breaks_do_not_count_as_slow_steps() -> None:
    """10 of 100 steps took 1 s each after a break of 30 s; one more break of three is to come at the end."""
    assert time_left(40.0, 10, 100, paused=30.0, breaks=1, breaks_total=2) == 90.0 + 30.0
    assert time_left(40.0, 10, 100, paused=30.0, breaks=2, breaks_total=2) == 90.0
    assert time_left(30.0, 0, 100, paused=30.0, breaks=1, breaks_total=2) is None


def test_a_task_forecasts_from_its_own_speed_and_its_breaks() -> None:
    now = [0.0]
    with Progress("off", clock=lambda: now[0]) as progress, progress.task("training", 10, breaks=2) as task:
        with task.pause():
            now[0] += 60
        now[0] += 2
        task.advance(2)
        assert task.left(now[0]) == 8.0 + 60.0
