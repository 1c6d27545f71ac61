"""Progress and remaining time: bars on a terminal, a few lines in a log.

::

    with Progress(config.tracker.progress) as progress:
        with progress.task("training", 300) as training:
            with progress.task("sampling", 100) as sampling:
                sample(..., progress=sampling.advance)
            training.advance()
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

from diffusion_lab.records import UserError

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

MODES = ("auto", "bars", "lines", "off")
INTERVAL = 30.0  # seconds between two lines of a task
TASKS_SHORTER = 5.0  # seconds: shorter tasks have no final line

headline: Callable[[], str] | None = (
    None  # a line above all bars: how far the sweep is that the job belongs to
)

log = logging.getLogger(__name__)


def time_left(
    elapsed: float, done: int, total: int, *, paused: float = 0.0, breaks: int = 0, breaks_total: int = 0
) -> float | None:
    """Remaining seconds at the mean speed so far; None before the first step.

    `paused` of the `elapsed` seconds were spent in `breaks` of `breaks_total` breaks, without any steps; the
    remaining breaks are assumed to take as long.
    """
    if done <= 0:
        return None
    to_come = paused / breaks * max(0, breaks_total - breaks) if breaks else 0.0
    return (elapsed - paused) * (total - done) / done + to_come


def format_interval(seconds: float | None) -> str:
    """Formats a duration, such as "2:05" or "1:02:05"; "-:--" if unknown."""
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Task:
    """A task of `total` steps; it ends with its `with` block or with `close`."""

    def __init__(self, progress: Progress, name: str, total: int, breaks: int = 0) -> None:
        self.name, self.total, self.done = name, total, 0
        self._breaks_total, self._breaks, self._paused = breaks, 0, 0.0
        self._progress = progress
        self._started = self._spoke = progress.clock()
        self._closed = False
        self._bar: TaskID | None = progress.bar(name, total, self.left)

    def left(self, elapsed: float) -> float | None:
        """The remaining seconds."""
        return time_left(
            elapsed, self.done, self.total,
            paused=self._paused, breaks=self._breaks, breaks_total=self._breaks_total,
        )  # fmt: skip

    @contextmanager
    def pause(self) -> Iterator[None]:
        """One of the task's breaks: other work, which does not count towards the task's speed."""
        started = self._progress.clock()
        try:
            yield
        finally:
            self._paused += self._progress.clock() - started
            self._breaks += 1

    def advance(self, n: int = 1) -> None:
        """Advances by `n` steps. Can be passed as a callback `progress: Callable[[int], None]`."""
        self.done += n
        if self._bar is not None:
            self._progress.move(self._bar, self.done)
        elif self._progress.mode == "lines":
            now = self._progress.clock()
            if now - self._spoke >= self._progress.interval and self.done < self.total:
                self._spoke = now
                elapsed = now - self._started
                left = format_interval(self.left(elapsed))
                self._progress.say(
                    f"{self.name} {self.done}/{self.total}, {format_interval(elapsed)} gone, {left} left"
                )

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._bar is not None:
            self._progress.remove(self._bar)
        elapsed = self._progress.clock() - self._started
        if self._progress.mode != "off" and elapsed >= self._progress.shortest:
            self._progress.say(f"{self.name} {self.done}/{self.total} in {format_interval(elapsed)}")

    def __enter__(self) -> Task:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Progress:
    """One display for all tasks. The terminal is restored on exit, including by an error or Ctrl-C.

    mode: auto (bars on a terminal, lines elsewhere), bars, lines, off. Lines are written to the logger
    `diffusion_lab.system.progress` at level INFO, or to `stream` if logging is not configured.
    """

    def __init__(
        self,
        mode: str = "auto",
        *,
        stream: TextIO | None = None,
        interval: float = INTERVAL,
        shortest: float = TASKS_SHORTER,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if mode not in MODES:
            raise UserError(f"tracker.progress={mode!r}: choose one of {', '.join(MODES)}")
        self.stream = stream if stream is not None else sys.stderr
        self.interval, self.shortest, self.clock = interval, shortest, clock
        self.mode = resolved(mode, self.stream)
        self._bars: Bars | None = None
        self._moved: list[tuple[logging.StreamHandler[TextIO], TextIO]] = []

    def __enter__(self) -> Progress:
        if self.mode == "bars":
            self._bars = _bars(self.stream)
            self._bars.start()
            self._lift_log_lines()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            for handler, stream in self._moved:
                handler.setStream(stream)
            self._moved.clear()
            self._bars.stop()
            self._bars = None

    def task(self, name: str, total: int, breaks: int = 0) -> Task:
        """A new task, shown below the open ones; `breaks`: how often `Task.pause` will be used."""
        return Task(self, name, total, breaks)

    # --- for Task -----------------------------------------------------------------------------------

    def bar(self, name: str, total: int, left: Callable[[float], float | None]) -> TaskID | None:
        return self._bars.add_task(name, total=total, left=left) if self._bars is not None else None

    def move(self, bar: TaskID, done: int) -> None:
        if self._bars is not None:
            self._bars.update(bar, completed=done)

    def remove(self, bar: TaskID) -> None:
        if self._bars is not None:
            self._bars.remove_task(bar)

    def say(self, line: str) -> None:
        if log.hasHandlers():
            log.info(line)
        elif self.mode == "lines":
            print(line, file=self.stream, flush=True)

    def _lift_log_lines(self) -> None:
        """Makes existing log handlers print above the bars.

        They refer to the original stream and would write into the bars. While the bars are shown, they use
        rich's stream instead.
        """
        proxies: dict[object, TextIO] = {sys.__stdout__: sys.stdout, sys.__stderr__: sys.stderr}
        for stream in (sys.stdout, sys.stderr):  # the stream that rich replaces may itself wrap another one
            bare = getattr(stream, "rich_proxied_file", None)
            if bare is not None:
                proxies[bare] = stream
        for handler in logging.getLogger().handlers:
            own = getattr(handler, "stream", None)
            proxy = proxies.get(own)
            if isinstance(handler, logging.StreamHandler) and proxy is not None and proxy is not own:
                self._moved.append((handler, handler.stream))
                handler.setStream(proxy)


def resolved(mode: str, stream: TextIO) -> str:
    """bars, lines or off, for tracker.progress."""
    return ("bars" if _draws_bars(stream) else "lines") if mode == "auto" else mode


def _draws_bars(stream: TextIO) -> bool:
    from rich.console import Console

    console = Console(file=stream)
    return (console.is_terminal and not console.is_dumb_terminal) or console.is_jupyter


def _bars(stream: TextIO) -> Bars:
    from rich.console import Console, RenderableType
    from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn
    from rich.progress import Progress as RichProgress
    from rich.progress import Task as RichTask
    from rich.text import Text

    class Left(ProgressColumn):
        """Elapsed and remaining time; rich's own estimate ignores the pauses of an outer task."""

        def render(self, task: RichTask) -> Text:
            gone = task.elapsed or 0.0
            left = task.fields["left"](gone)
            return Text(
                f"{format_interval(gone)} gone, {format_interval(left)} left", style="progress.remaining"
            )

    class Headed(RichProgress):
        def get_renderables(self) -> Iterable[RenderableType]:
            if headline is not None:
                yield Text(headline(), style="progress.remaining")
            yield from super().get_renderables()

    # Draw bars even if the stream is not a terminal ("bars" into a file).
    console = Console(file=stream, force_terminal=True)
    return Headed(
        TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), Left(),
        console=console, transient=True, refresh_per_second=4,
    )  # fmt: skip
