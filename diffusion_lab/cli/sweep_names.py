"""Folders of a sweep's jobs: named by what varies, `n_images=4,seed=1`, and the same ones when the sweep grows.

A run is its configuration: a job whose run the sweep's folder holds already keeps that folder, whatever further
keys the sweep varies now. The names are settled before the first job starts and left in the sweep's folder, since
launchers begin jobs in other processes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_lab.runs.resume import bound_flat, differing_values
from diffusion_lab.runs.resume_folder import began_in
from diffusion_lab.values.jsonable import plain
from diffusion_lab.values.quoting import unquoted

if TYPE_CHECKING:
    from diffusion_lab.config.schema import Config

LONGEST = 80  # characters of a name
NAMES = ".names.json"  # in the sweep's folder: one name a job, in their order
FEW = 3  # keys that set a run apart from the one whose name it would have had


def settle(jobs: Sequence[Sequence[str]], folder: Path, config_of: Callable[[int], Config]) -> list[str]:
    """The jobs' names, none twice. `config_of` gives a job's configuration, which is asked for where runs are there."""
    names = by_what_varies(jobs)
    known = dict(_recorded(folder))
    if known:
        names = _matched(names, known, folder, config_of)
    return _unique(names)


def by_what_varies(jobs: Sequence[Sequence[str]]) -> list[str]:
    """Names out of the keys that have several values over the jobs; of all keys where none has."""
    given = [dict(_pairs(job)) for job in jobs]
    keys = list(dict.fromkeys(key for pairs in given for key in pairs))
    varying = [key for key in keys if len({pairs.get(key) for pairs in given}) > 1] or keys
    last = Counter(key.rpartition(".")[2] for key in varying)
    short = {key: name if last[name := key.rpartition(".")[2]] == 1 else key for key in varying}
    return [
        limited(",".join(f"{short[key]}={pairs[key]}" for key in varying if key in pairs)) or "run"
        for pairs in given
    ]


def _pairs(job: Sequence[str]) -> Iterator[tuple[str, str]]:
    for word in job:
        key, _, value = word.lstrip("+").partition("=")
        if not key.startswith(("hydra.", "hydra/", "~")):
            within = unquoted(value)
            yield key, value if within is None else within


def limited(name: str) -> str:
    """At most 80 letters that every file system and shell takes; a name that is cut, or written in other
    letters than ASCII has, ends in a digest of the whole.
    """
    safe = re.sub(r"[^\w.,=+-]+", "-", re.sub(r"[\[\]{}'\"]", "", name), flags=re.ASCII).strip("-.")
    if name.isascii() and len(safe) <= LONGEST:
        return safe
    return f"{safe[: LONGEST - 9]}-{_digest(name)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _unique(names: Sequence[str]) -> list[str]:
    """Values that differ in unsafe letters, or in case only, and jobs that are there twice: numbered."""
    taken: set[str] = set()
    found = []
    for name in names:
        number, own = 1, name
        while own.casefold() in taken:
            number += 1
            own = f"{name[: LONGEST - 4]}-{number}"
        taken.add(own.casefold())
        found.append(own)
    return found


# --- runs that are there already ----------------------------------------------------------------------


def _recorded(folder: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Name and configuration of the runs in the sweep's folder."""
    for file in sorted(folder.glob("*/result.json")):
        try:
            config = json.loads(file.read_text(encoding="utf-8")).get("config")
        except (OSError, ValueError, AttributeError):
            continue  # the job itself says what is wrong with it
        if isinstance(config, dict) and config:
            yield file.parent.name, config


def _matched(
    names: Sequence[str],
    known: Mapping[str, Mapping[str, Any]],
    folder: Path,
    config_of: Callable[[int], Config],
) -> list[str]:
    from diffusion_lab.config.schema import as_plain_dict

    by_content: dict[str, list[str]] = {}
    for name, config in known.items():
        by_content.setdefault(repr(bound_flat(config)), []).append(name)
    began = {name: began_in(folder / name) for name in known}
    found: list[str] = []
    for i, name in enumerate(names):
        config = plain(as_plain_dict(config_of(i)))
        alike = [
            other
            for other in by_content.get(repr(bound_flat(config)), [])
            if other not in found and not differing_values(known[other], config, began[other])
        ]
        if alike:
            found.append(name if name in alike else alike[0])
        elif name in known:
            found.append(_set_apart(name, differing_values(known[name], config, began[name])))
        else:
            found.append(name)
    return found


def _set_apart(name: str, differing_keys: Mapping[str, tuple[Any, Any]]) -> str:
    """Another configuration has this name already: what is different now goes into it."""
    if not 0 < len(differing_keys) <= FEW:
        return limited(f"{name[: LONGEST - 10]}-{_digest(repr(sorted(differing_keys.items())))}")
    extra = (f"{key.rpartition('.')[2]}={now}" for key, (_, now) in differing_keys.items())
    return limited(",".join([name, *extra]))


# --- between the processes ----------------------------------------------------------------------------


def write(folder: Path, names: Sequence[str]) -> None:
    """Leaves the names for the jobs; none where the sweeper makes up jobs as it goes."""
    from diffusion_lab.system.atomic import write_json

    if names:
        write_json(folder / NAMES, list(names))
    else:
        (folder / NAMES).unlink(missing_ok=True)


def job_folder(sweep: str, number: int, overrides: str) -> str:
    """hydra.sweep.subdir of a job: the name that was settled, else its number and its overrides."""
    try:
        return str(json.loads((Path(sweep) / NAMES).read_text(encoding="utf-8"))[int(number)])
    except (OSError, ValueError, LookupError, TypeError):
        return limited(f"{number}_{overrides}")
