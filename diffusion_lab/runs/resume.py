"""What stands in a run folder already, and whether it goes on. Known before anything slow is loaded."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from diffusion_lab.config import jobs, paths
from diffusion_lab.config.schema import RESUME, Config, as_plain_dict
from diffusion_lab.methods import METHODS
from diffusion_lab.records import UserError
from diffusion_lab.runs.recorded import ENDED, Recorded, concluding, flatten, missing, recorded
from diffusion_lab.system.atomic import plain, recoverable
from diffusion_lab.values.quoting import always_quoted, pasted, unquoted

log = logging.getLogger(__name__)

Standing = Literal["empty", "unfinished", "incomplete", "finished", "diverged"]

FREE = (
    "resume", "as_typed", "job.dry_run", "job.given", "tracker.", "steps.checkpoint_every", "steps.keep_checkpoints",
    "steps.keep_adapters",
)  # fmt: skip
"""Keys that may differ where a run goes on: they change what is said and kept, not what is trained."""
ELSEWHERE = "choose another folder with hydra.run.dir=FOLDER (hydra.sweep.dir=FOLDER with -m)"


def standing(config: Config, run_folder: Path) -> Standing:
    """What the folder holds.

    empty: nothing was begun there; unfinished: a run that can be resumed; incomplete: it was trained to its end,
    and something that it should have left is missing or damaged; finished and diverged: there is nothing left to do.

    Raises UserError for resume=never where there is a record, for resume=must where there is none, and
    where the record has another configuration: its keys are named.
    """
    found = find(config, run_folder)
    if found is None:
        if config.resume == "must":
            raise UserError(
                f"resume=must: {run_folder} holds no run that was begun; name the folder of one: resume=FOLDER"
            )
        return "empty"
    result, status = found.result, found.result.get("status")
    known = bool(result.get("config")) or status in ENDED
    if config.resume == "never" or not (known or found.failed_early):
        raise UserError(f"{run_folder}: a run is recorded there already; {ELSEWHERE}")
    if found.failed_early:
        return "empty"
    before = result.get("config")
    changed = differences(before, as_plain_dict(config), began_in(run_folder)) if before else []
    if changed:
        raise UserError(
            f"{run_folder}: the run there was begun with another configuration: {'; '.join(changed)}. "
            f"Give the same values to resume it, or {ELSEWHERE}"
        )
    if concluding(result):
        return "incomplete"
    if status not in ENDED:
        return "unfinished"
    if found.problem is not None or missing(run_folder, result):
        return "incomplete"
    return "diverged" if status == "diverged" else "finished"


def find(config: Config, run_folder: Path) -> Recorded | None:
    """The record in the folder, wherever it is still whole; None where no run was begun."""
    wanted, began = as_plain_dict(config), began_in(run_folder)
    return recorded(run_folder, lambda config: not differences(config, wanted, began))


def differences(before: Mapping[str, Any], now: Mapping[str, Any], began: Path | None = None) -> list[str]:
    """ "steps.total was 300, is 400" for every key that matters and differs; see `differing`."""
    return [f"{key} was {was}, is {is_now}" for key, (was, is_now) in differing(before, now, began).items()]


def differing(
    before: Mapping[str, Any], now: Mapping[str, Any], began: Path | None = None
) -> dict[str, tuple[Any, Any]]:
    """Key -> what it was and what it is, for every key that matters and differs.

    A path is the same however it is spelt; `began` is where relative ones of `before` started from. A key that
    `before` does not have, since an earlier version wrote it, counts as its default; those of other jobs count as
    none.
    """
    old, new = flatten(plain(before)), flatten(plain(now))
    usual = _defaults(new.get("method.name"), new.get("job.name"))
    absent = "not there"
    found = {}
    for key in dict.fromkeys([*new, *old]):
        was, is_now = old.get(key, absent), new.get(key, absent)
        if key.startswith(FREE) or was == is_now or (paths.is_path(key) and paths.same(was, is_now, began)):
            continue
        if key not in old and key in usual and usual[key] == is_now:
            continue
        if key not in new and jobs.foreign(key, new.get("job.name")):
            continue
        found[key] = (was, is_now)
    return found


@functools.lru_cache
def _defaults(method: object, job: object = None) -> Mapping[str, Any]:
    """The schema's own values, flat."""
    kind = METHODS.get(str(method))
    config = as_plain_dict(Config() if kind is None else Config(method=kind()))
    return flatten(plain({**config, "job": jobs.defaults(job) or config["job"]}))


def bound(config: Config) -> dict[str, Any]:
    """What the configuration says of training, flat, for a checkpoint's digest; see `bound_flat`."""
    return bound_flat(plain(as_plain_dict(config)))


def bound_flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a plain configuration says of training, flat and sorted by key.

    Without the keys that may differ where a run goes on, without paths (what lies there has digests of its own)
    and without defaults, so that a key that is added later changes nothing here.
    """
    flat = flatten(plain(config))
    job = flat.get("job.name")
    usual = _defaults(flat.get("method.name"))
    return {
        key: value
        for key, value in sorted(flat.items())
        if not (key.startswith(FREE) or paths.is_path(key) or jobs.foreign(key, job))
        and (key not in usual or usual[key] != value)
    }


def run_id(config: Mapping[str, Any]) -> str:
    """Names a run by its configuration and its seeds: 16 hexadecimal digits. `config`: as it is recorded.

    The same in every folder; where and how a run was watched does not count, and a key that an older record does not
    have counts as its default.
    """
    flat = flatten(plain(config))
    kept = {key: value for key, value in bound_flat(config).items() if not key.startswith("job.")}
    usual = _defaults(flat.get("method.name"))
    for key, value in flat.items():
        if paths.is_path(key) and not key.startswith("job.") and value != usual.get(key):
            kept[key] = os.path.realpath(value) if isinstance(value, str) and os.path.isabs(value) else value
    return hashlib.sha256(json.dumps(kept, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def folder_size(folder: Path) -> int:
    """Bytes of all files at or below `folder`; 0 where there is none."""
    return sum(
        os.path.getsize(os.path.join(where, name)) for where, _, names in os.walk(folder) for name in names
    )


def error_of(config: Config, run_folder: Path) -> str:
    """What stopped the run in the folder, as it was recorded."""
    found = find(config, run_folder)
    return str((found.result.get("error") if found else None) or "no reason is recorded")


# --- a sweep that is extended ---------------------------------------------------------------------------


def already_begun(config: Config, run_folder: Path) -> Path:
    """The folder beside `run_folder` that holds the same run, or `run_folder` itself where there is none.

    A sweep that is extended numbers and names its jobs anew; a run is its configuration and its seeds. A finished
    one is preferred to others, and a new one to an old one. What Hydra has put into `run_folder` is removed then.
    """
    if config.job.name != "finetune" or _id_at(run_folder) is not None:
        return run_folder
    wanted = run_id(as_plain_dict(config))
    others = [folder for folder in sorted(run_folder.parent.iterdir()) if folder != run_folder]
    found = [(known, folder) for folder in others if (known := _id_at(folder)) and known.id == wanted]
    if not found:
        return run_folder
    best = max(found, key=lambda pair: (pair[0].ended, pair[0].started, pair[1].name))[1]
    log.info("%s: the same run is in %s; it is not trained twice", run_folder, best)
    if {path.name for path in run_folder.iterdir()} <= {".hydra", "run.log"}:
        shutil.rmtree(run_folder, ignore_errors=True)
    return best


@dataclass(frozen=True, slots=True)
class _Known:
    id: str
    ended: bool
    started: str


def _id_at(folder: Path) -> _Known | None:
    """The run that a folder holds, None where it holds none."""
    stamps = []
    for name in ("result.json", "record.zip", "config.yaml"):
        with contextlib.suppress(OSError):
            stamps.append((folder / name).stat().st_mtime_ns)
    return _known(folder, tuple(stamps)) if stamps else None


@functools.lru_cache(maxsize=100_000)
def _known(folder: Path, stamps: tuple[int, ...]) -> _Known | None:
    """Cached while the files stay as they are: each job of a sweep looks at all others' folders."""
    try:
        found = recorded(folder, lambda config: True)
    except UserError:
        return None
    if found is None or not found.result.get("config"):
        return None
    result = found.result
    return _Known(run_id(result["config"]), result.get("status") in ENDED, str(result.get("started") or ""))


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
    with recoverable(run_folder):
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
    from diffusion_lab.config.texts import recorded as as_recorded

    given = named[-1].partition("=")[2]
    within = unquoted(given)
    folder = Path(paths.absolute(given if within is None else within, Path.cwd()))
    notes = folder / ".hydra"
    if not (notes / "overrides.yaml").is_file():
        raise UserError(
            f"resume={given}: must be one of {', '.join(RESUME)}, or the folder of a run (with .hydra in it)"
        )
    before = _words(notes / "overrides.yaml")
    began = began_in(folder) or Path.cwd()
    hydra = _words(notes / "hydra.yaml", "hydra", "overrides", "hydra")
    searched = [word for word in hydra if "hydra.searchpath=" in word]
    config = _config(folder)
    placed = _placed(config, began)
    replaced = {"resume", *(_key(word) for word in placed)}
    job = (config.get("job") or {}).get("name")
    return [
        *paths.searched(searched, began),
        *(
            word
            for word in as_recorded(before)
            if _key(word) not in replaced and not jobs.foreign(_key(word), job)
        ),
        *placed,
        *(word for word in words if word not in named),
        f"hydra.run.dir={always_quoted(str(folder))}",
        "resume=must",
    ]


def _key(word: str) -> str:
    return word.lstrip("+").partition("=")[0]


def _words(file: Path, *keys: str) -> list[str]:
    """The list of words in one of Hydra's notes, below `keys`. UserError where there is none."""
    found = _notes(file)
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    if not isinstance(found, list):
        raise _unreadable(file, "no list of words")
    return [str(word) for word in found]


def _notes(file: Path) -> Any:
    import yaml  # type: ignore[import-untyped]

    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, why: object) -> UserError:
    return UserError(
        f"{file}: cannot be read ({' '.join(str(why).split())[:150]}); give the run's own words again with "
        f"{pasted(f'hydra.run.dir={file.parents[1]}')} instead of resume=FOLDER"
    )


def began_in(run_folder: Path) -> Path | None:
    """The folder in which the run was begun, by Hydra's notes; None where they do not tell."""
    import yaml

    with contextlib.suppress(OSError, ValueError, RecursionError, yaml.YAMLError, KeyError, TypeError):
        notes = yaml.safe_load((run_folder / ".hydra" / "hydra.yaml").read_text(encoding="utf-8"))
        return Path(str(notes["hydra"]["runtime"]["cwd"]))
    return None


def _config(run_folder: Path) -> Mapping[str, Any]:
    """The run's configuration, by its config.yaml or else its record; empty where neither tells."""
    config: Any = None
    with contextlib.suppress(UserError):
        config = _notes(run_folder / "config.yaml")
    if not isinstance(config, dict):
        found = recorded(run_folder, lambda config: True)
        config = found.result.get("config") if found else None
    return config if isinstance(config, dict) else {}


def _placed(config: Mapping[str, Any], began: Path) -> list[str]:
    """Words for the run's paths as they were resolved when it was begun, and for what had been typed.

    They come from its configuration, so that paths of an experiment's file are among them. A record of an earlier
    version has the relative ones only: they are taken against the folder in which the run was begun.
    """
    flat = {key: value for key, value in flatten(plain(config)).items() if paths.is_path(key)}
    job = (config.get("job") or {}).get("name")
    flat = {key: value for key, value in flat.items() if not jobs.foreign(key, job)}
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
