"""The line that says how far a sweep is: live on a terminal, else at each change and every minute."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import Any

from diffusion_lab.studies.watch import FAILED, Counts, Watch
from diffusion_lab.system import progress

EVERY = 60.0  # seconds between two plain lines without a change
LOOK = 1.0  # seconds between two looks at the folders


@contextlib.contextmanager
def told(watch: Watch, mode: str, *, in_process: bool) -> Iterator[None]:
    """Shows the state of the sweep while the block runs. `mode`: bars, lines, off.

    `in_process`: the jobs run in this process and draw their own bars; then the line is shown above them.
    """
    if mode == "off":
        yield
        return
    teller = _Teller(watch, bars=mode == "bars" and not in_process)
    if in_process and mode == "bars":
        progress.headline = lambda: str(teller.counts)
    stop = threading.Event()
    thread = threading.Thread(target=_follow, args=(teller, stop), name="sweep", daemon=True)
    with teller:
        thread.start()
        try:
            yield
        finally:
            progress.headline = None
            stop.set()
            thread.join(timeout=10)


def _follow(teller: _Teller, stop: threading.Event) -> None:
    while not stop.wait(LOOK):
        teller.tell()


class _Teller:
    def __init__(self, watch: Watch, *, bars: bool) -> None:
        self.watch, self.counts = watch, watch.look()
        self._live: Any = _live() if bars else None
        self._said: tuple[int, int] | None = None
        self._spoke = watch.clock()
        self._known: set[str] = set()

    def __enter__(self) -> _Teller:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def tell(self) -> None:
        self.counts = self.watch.look()
        for job in self.watch.jobs:
            if job.state in FAILED and job.folder.name not in self._known:
                self._known.add(job.folder.name)
                self._print(f"{job.state}: {job.folder.name}: {job.error}")
        if self._live is not None:
            self._live.update(_text(self.counts))
            return
        now, ended = self.watch.clock(), (self.counts.done, self.counts.failed)
        begun = self._said is not None or self.counts.running
        if begun and (self._said != ended or now - self._spoke >= EVERY):
            self._said, self._spoke = ended, now
            self._print(str(self.counts))

    def _print(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)  # rich shows it above its bars


def _live() -> Any:
    from rich.console import Console
    from rich.live import Live

    return Live(console=Console(file=sys.stderr, force_terminal=True), refresh_per_second=2, transient=True)


def _text(counts: Counts) -> Any:
    from rich.text import Text

    return Text(str(counts), style="progress.remaining", no_wrap=True, overflow="ellipsis")
