"""One file that a run needs and the package does not bring."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One file that a run needs. `repo` says that it is on the hub, else `url` and `target` say from where to where."""

    key: str  # what asks for it: "model.path=owner/name"
    name: str  # in its repository or release
    by_hand: str  # what to do without a network
    size: float | None = None  # bytes; None: unknown before the hub is asked
    path: Path | None = None  # where it lies; None: it has to be fetched
    repo: str = ""
    revision: str | None = None
    url: str = ""
    target: Path = Path()
    sha256: str = ""  # of the whole file, or the first digits of it
    optional: bool = False  # a repository may go without it

    @property
    def source(self) -> str:
        return f"{self.repo} on the hub" if self.repo else self.url.rpartition("/")[0]
