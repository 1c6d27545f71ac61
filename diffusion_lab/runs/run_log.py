"""run.log: the program's log during a run."""

from __future__ import annotations

import logging
from pathlib import Path

from diffusion_lab.system import disk_errors, streams

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class RunLog:
    """Everything logged between `open` and `close`, at the end of one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handler: logging.Handler | None = None

    def open(self) -> None:
        """Does nothing if Hydra has already opened the same file, so that no line is written twice."""
        root = logging.getLogger()
        open_files = {getattr(handler, "baseFilename", None) for handler in root.handlers}
        if str(self.path.absolute()) in open_files:
            return
        with disk_errors.recoverable(self.path):
            self._handler = streams.LogFile(self.path, encoding="utf-8")
        self._handler.setFormatter(logging.Formatter(_FORMAT))
        root.addHandler(self._handler)

    def close(self) -> None:
        """Closes the log, so that the next job of a multirun does not write to it."""
        if self._handler is not None:
            logging.getLogger().removeHandler(self._handler)
            self._handler.close()
            self._handler = None
