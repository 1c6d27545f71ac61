"""Standard output and log files that may fail, on a full disk above all, without ending a run or a traceback.

The record of a run is files of its own; whether they can be written decides about the run. What the terminal is
told may be lost.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

CLOSED = {errno.EPIPE, errno.ECONNRESET}  # the reader has gone, such as `| head`


class Guarded:
    """A text stream that keeps its first error and drops what comes after it."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        if self.error is None:
            try:
                self.stream.write(text)
            except OSError as error:
                self._fail(error)
        return len(text)

    def flush(self) -> None:
        if self.error is None:
            try:
                self.stream.flush()
            except OSError as error:
                self._fail(error)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def _fail(self, error: OSError) -> None:
        """What Python still holds back goes nowhere, or it would complain at its end (exit status 120)."""
        self.error = error
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def guarded() -> Iterator[tuple[Guarded, Guarded]]:
    """Standard output and standard error guarded inside; one that was closed (`>&-`) goes nowhere."""
    _occupy()
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        out, err = Guarded(before[0] or nowhere), Guarded(before[1] or nowhere)
        sys.stdout, sys.stderr = out, err
        try:
            yield out, err
        finally:
            out.flush()
            err.flush()
            sys.stdout, sys.stderr = before


def _occupy() -> None:
    """Descriptors 0 to 2 that are closed: else the next file that is opened gets one, and a library writes into it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


class LogFile(logging.FileHandler):
    """A log file that says once where it cannot be written, and is silent after that."""

    _told = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:  # it is opened at the first message
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._told:
            self._told = True
            print(f"{self.baseFilename} cannot be written: {error.strerror}", file=sys.stderr)

    def close(self) -> None:
        try:
            super().close()
        except OSError:  # what it still holds back
            self.stream = None
            logging.Handler.close(self)
