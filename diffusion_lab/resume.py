"""What stands in a run folder already, and whether it goes on. Known before anything slow is loaded."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from diffusion_lab import paths
from diffusion_lab.analysis.record import flatten
from diffusion_lab.config import METHODS, RESUME, Config, as_plain_dict
from diffusion_lab.interfaces import UserError
from diffusion_lab.quoting import always_quoted, pasted, unquoted
from diffusion_lab.tracking.atomic import mendable, plain

Standing = Literal["empty", "unfinished", "finished"]

FINISHED = ("completed", "diverged")  # what diverged once does so again
FREE = (
    "resume", "as_typed", "job.dry_run", "tracker.", "steps.checkpoint_every", "steps.keep_checkpoints", "steps.keep_adapters",
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
    differing = (
        differences(record["config"], as_plain_dict(config), began_in(run_folder))
        if record.get("config")
        else []
    )
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


def differences(before: Mapping[str, Any], now: Mapping[str, Any], began: Path | None = None) -> list[str]:
    """ "steps.total was 300, is 400" for every key that matters and differs; see `differing`."""
    return [f"{key} was {was}, is {is_now}" for key, (was, is_now) in differing(before, now, began).items()]


def differing(
    before: Mapping[str, Any], now: Mapping[str, Any], began: Path | None = None
) -> dict[str, tuple[Any, Any]]:
    """Key -> what it was and what it is, for every key that matters and differs.

    A path is the same however it is spelt; `began` is where relative ones of `before` started from. A key that
    `before` does not have, since an earlier version wrote it, counts as its default.
    """
    old, new = flatten(plain(before)), flatten(plain(now))
    usual = _defaults(new.get("method.name"))
    absent = "not there"
    found = {}
    for key in dict.fromkeys([*new, *old]):
        was, is_now = old.get(key, absent), new.get(key, absent)
        if key.startswith(FREE) or was == is_now or (paths.is_path(key) and paths.same(was, is_now, began)):
            continue
        if key not in old and key in usual and usual[key] == is_now:
            continue
        found[key] = (was, is_now)
    return found


@lru_cache
def _defaults(method: object) -> Mapping[str, Any]:
    """The schema's own values, flat."""
    kind = METHODS.get(str(method))
    config = Config() if kind is None else Config(method=kind())
    return flatten(plain(as_plain_dict(config)))


def bound(config: Config) -> dict[str, Any]:
    """What the configuration says of training, flat, for a checkpoint's digest; see `bound_flat`."""
    return bound_flat(plain(as_plain_dict(config)))


def bound_flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a plain configuration says of training, flat and sorted by key.

    Without the keys that may differ where a run goes on, without paths (what lies there has digests of its own)
    and without defaults, so that a key that is added later changes nothing here.
    """
    flat = flatten(plain(config))
    usual = _defaults(flat.get("method.name"))
    return {
        key: value
        for key, value in sorted(flat.items())
        if not key.startswith(FREE) and not paths.is_path(key) and (key not in usual or usual[key] != value)
    }


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

    Further words stay and win over those. Paths of the run mean what they meant where it was begun, those of
    further words are relative to this folder. Raises UserError where FOLDER holds no run.
    """
    named = [word for word in words if word.startswith("resume=")]
    if not named or named[-1].partition("=")[2] in RESUME:
        return words
    from diffusion_lab.texts import recorded

    given = named[-1].partition("=")[2]
    within = unquoted(given)
    folder = Path(paths.absolute(given if within is None else within, Path.cwd()))
    notes = folder / ".hydra"
    if not (notes / "overrides.yaml").is_file():
        raise UserError(
            f"resume={given}: must be one of {', '.join(RESUME)}, or the folder of a run (with .hydra in it)"
        )
    before = [str(word) for word in _notes(notes / "overrides.yaml") or []]
    hydra = _notes(notes / "hydra.yaml")["hydra"]
    began = began_in(folder) or Path.cwd()
    searched = [str(w) for w in hydra["overrides"]["hydra"] if "hydra.searchpath=" in str(w)]
    placed = _placed(folder, began)
    replaced = {"resume", *(_key(word) for word in placed)}
    return [
        *paths.searched(searched, began),
        *(word for word in recorded(before) if _key(word) not in replaced),
        *placed,
        *(word for word in words if word not in named),
        f"hydra.run.dir={always_quoted(str(folder))}",
        "resume=must",
    ]


def _key(word: str) -> str:
    return word.lstrip("+").partition("=")[0]


def _notes(file: Path) -> Any:
    import yaml  # type: ignore[import-untyped]

    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(
            f"{file}: cannot be read ({error}); give the run's own words again with "
            f"{pasted(f'hydra.run.dir={file.parents[1]}')} instead of resume=FOLDER"
        ) from error


def began_in(run_folder: Path) -> Path | None:
    """The folder in which the run was begun, by Hydra's notes; None where they do not tell."""
    import yaml

    with contextlib.suppress(OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        notes = yaml.safe_load((run_folder / ".hydra" / "hydra.yaml").read_text(encoding="utf-8"))
        return Path(str(notes["hydra"]["runtime"]["cwd"]))
    return None


def _placed(run_folder: Path, began: Path) -> list[str]:
    """Words for the run's paths as they were resolved when it was begun, and for what had been typed.

    They come from its config.yaml, so that paths of an experiment's file are among them. A record of an earlier
    version has the relative ones only: they are taken against the folder in which the run was begun.
    """
    config: Any = None
    with contextlib.suppress(UserError):
        config = _notes(run_folder / "config.yaml")
    config = config if isinstance(config, dict) else (_record(run_folder) or {}).get("config") or {}
    flat = {key: value for key, value in flatten(plain(config)).items() if paths.is_path(key)}
    typed = {key: str(value) for key, value in (config.get("as_typed") or {}).items() if key in flat}
    words = []
    for key, value in flat.items():
        if key not in typed and isinstance(value, str) and key in paths.PATHS and value:
            typed |= {} if os.path.isabs(value) else {key: value}
            value = paths.absolute(value, began)
        if key in typed:
            words.append(f"{key}={always_quoted(str(value))}")
    if typed:
        kept = ",".join(f"{key}:{always_quoted(value)}" for key, value in typed.items())
        words.append(f"as_typed={{{kept}}}")
    return words
