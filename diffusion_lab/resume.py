"""What stands in a run folder already, and whether it goes on. Known before anything slow is loaded."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from diffusion_lab.analysis.record import flatten
from diffusion_lab.config import RESUME, as_plain_dict
from diffusion_lab.interfaces import UserError
from diffusion_lab.tracking.atomic import mendable, plain

if TYPE_CHECKING:
    from diffusion_lab.config import Config

Standing = Literal["empty", "unfinished", "finished"]

FINISHED = ("completed", "diverged")  # what diverged once does so again
FREE = (
    "resume", "job.dry_run", "job.given", "tracker.", "steps.checkpoint_every", "steps.keep_checkpoints", "steps.keep_adapters",
)  # fmt: skip
"""Keys that may differ where a run goes on: they change what is said and kept, not what is trained."""
ELSEWHERE = "choose another folder with hydra.run.dir=FOLDER (hydra.sweep.dir=FOLDER with -m)"


def standing(config: Config, run_folder: Path) -> Standing:
    """empty: nothing was begun there; unfinished: it can go on; finished: there is nothing left to do.

    Raises UserError for resume=never where there is a record, for resume=must where there is none, and
    where the record has another configuration: its keys are named.
    """
    record = _record(run_folder)
    if record is None:
        if config.resume == "must":
            raise UserError(
                f"resume=must: {run_folder} holds no run that was begun; name the folder of one: resume=FOLDER"
            )
        return "empty"
    known = bool(record.get("config")) or record.get("status") in FINISHED
    failed_early = not known and "traceback" in record  # it ended before it began: only its error is noted
    if config.resume == "never" or not (known or failed_early):
        raise UserError(f"{run_folder}: a run is recorded there already; {ELSEWHERE}")
    if failed_early:
        return "empty"
    differing = differences(record.get("config") or {}, as_plain_dict(config)) if record.get("config") else []
    if differing:
        raise UserError(
            f"{run_folder}: the run there was begun with another configuration: {'; '.join(differing)}. "
            f"Give the same values to go on with it, or {ELSEWHERE}"
        )
    return "finished" if record.get("status") in FINISHED else "unfinished"


def _record(run_folder: Path) -> dict[str, Any] | None:
    path = run_folder / "result.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {ELSEWHERE}") from error
    return found if isinstance(found, dict) else {}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """ "steps.total was 300, is 400" for every key that matters and differs."""
    old, new = flatten(plain(before)), flatten(plain(now))
    keys = [key for key in dict.fromkeys([*new, *old]) if not key.startswith(FREE)]
    absent = "not there"
    return [
        f"{key} was {old.get(key, absent)}, is {new.get(key, absent)}"
        for key in keys
        if old.get(key, absent) != new.get(key, absent)
    ]


def bound(config: Config) -> dict[str, Any]:
    """The configuration, flat, without the keys that may differ where a run goes on."""
    flat = flatten(plain(as_plain_dict(config)))
    return {key: value for key, value in flat.items() if not key.startswith(FREE)}


@contextlib.contextmanager
def locked(run_folder: Path) -> Iterator[None]:
    """No second process works in this folder meanwhile; the lock ends with the process, however it ends.

    Raises UserError where another one is at work there. A system without such locks goes without.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    run_folder.mkdir(parents=True, exist_ok=True)
    with mendable(run_folder):
        descriptor = os.open(run_folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{run_folder}: another process is at work in this folder; wait for it, or {ELSEWHERE}"
            ) from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(descriptor)


# --- resume=FOLDER ------------------------------------------------------------------------------------


def expand(words: list[str]) -> list[str]:
    """`resume=FOLDER` as the words with which the run in FOLDER was begun, and resume=must.

    Further words stay and win over those. Raises UserError where FOLDER holds no run.
    """
    named = [word for word in words if word.startswith("resume=")]
    if not named or named[-1].partition("=")[2] in RESUME:
        return words
    import yaml  # type: ignore[import-untyped]

    from diffusion_lab.compose import quoted

    given = named[-1].partition("=")[2].strip("'\"")
    folder = Path(given).expanduser().absolute()
    notes = folder / ".hydra" / "overrides.yaml"
    if not notes.is_file():
        raise UserError(
            f"resume={given}: must be one of {', '.join(RESUME)}, or the folder of a run (with .hydra in it)"
        )
    before = [str(word) for word in yaml.safe_load(notes.read_text(encoding="utf-8")) or []]
    hydra = yaml.safe_load((folder / ".hydra" / "hydra.yaml").read_text(encoding="utf-8"))
    searched = [w for w in hydra["hydra"]["overrides"]["hydra"] if str(w).startswith("hydra.searchpath=")]
    return [
        *searched,
        *[word for word in before if not word.startswith("resume=")],
        *[word for word in words if word not in named],
        f"hydra.run.dir={quoted(str(folder))}",
        "resume=must",
    ]
