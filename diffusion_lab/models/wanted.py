"""A file that a run needs and that is not part of the package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A file that a run needs: on the hub if `repo` is set, else downloaded from `url` to `target`."""

    key: str  # the setting that requires it: "model.path=owner/name"
    name: str  # its name in the repository or release
    by_hand: str  # what to do without a network
    size: float | None = None  # bytes; None: unknown before the hub is asked
    path: Path | None = None  # its local path; None: it must be downloaded
    repo: str = ""
    revision: str | None = None
    url: str = ""
    target: Path = Path()
    sha256: str = ""  # of the file, or the first digits of the hash
    optional: bool = False  # the repository may lack it

    @property
    def source(self) -> str:
        return f"{self.repo} on the hub" if self.repo else self.url.rpartition("/")[0]
