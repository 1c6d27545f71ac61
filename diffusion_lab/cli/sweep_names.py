"""Folders of a sweep's jobs: named by what varies, `n_images=4,seed=1`, and the same ones when the sweep grows.

A run is its configuration: a job whose run the sweep's folder holds already keeps that folder, whatever further
keys the sweep varies now. The names are settled before the first job starts.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusion_lab.runs.extended_sweep import Known, best_of, identity
from diffusion_lab.runs.resume import differing_values
from diffusion_lab.runs.resume_folder import began_in
from diffusion_lab.values.quoting import unquoted

LONGEST = 80  # characters of a name
FEW = 3  # keys that set a run apart from the one whose name it would have had
WHAT = (
    "data.",
    "method",
    "model",
)  # keys that say what is trained; in names of studies even if they do not vary


def settle(
    names: Sequence[str],
    configs: Sequence[Mapping[str, Any]],
    folder: Path,
    known: Mapping[str, Known],
) -> list[str]:
    """The jobs' folders, none twice. `names`: what they would be called in an empty folder.

    `configs`: each job's plain configuration, all different. `known`: the runs in `folder`, by name.
    """
    held = best_of(known)
    found = [held.get(identity(config), "") for config in configs]
    for i, (name, config) in enumerate(zip(names, configs, strict=True)):
        if found[i]:
            continue
        if name in known:
            differing = differing_values(known[name].config, config, began_in(folder / name))
            name = _set_apart(name, differing) if differing else name
            if differing and name in known:
                name = f"{name[: LONGEST - 9]}-{_digest(identity(config))}"
        found[i] = name
    return _unique(found, known)


def by_what_varies(jobs: Sequence[Sequence[str]], always: tuple[str, ...] = ()) -> list[str]:
    """Names out of the keys that have several values over the jobs; of all keys where none has.

    `always`: beginnings of keys that are in the names in any case.
    """
    given = [dict(_pairs(job)) for job in jobs]
    keys = list(dict.fromkeys(key for pairs in given for key in pairs))
    several = {key for key in keys if len({pairs.get(key) for pairs in given}) > 1}
    varying = [key for key in keys if key in several or key.startswith(always)] or keys
    last = Counter(key.rpartition(".")[2] for key in varying)
    short = {key: name if last[name := key.rpartition(".")[2]] == 1 else key for key in varying}
    return [
        limited(",".join(f"{short[key]}={pairs[key]}" for key in varying if key in pairs)) or "run"
        for pairs in given
    ]


def _pairs(job: Sequence[str]) -> Iterator[tuple[str, str]]:
    for word in job:
        key, _, value = word.lstrip("+").partition("=")
        if not key.startswith(("hydra.", "hydra/", "~", "tracker.")):
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


def _unique(names: Sequence[str], known: Collection[str] = ()) -> list[str]:
    """Values that differ in unsafe letters or in case only: numbered. Folders in `known` keep their name."""
    taken = {name.casefold() for name in known}
    found = []
    for name in names:
        number, own = 1, name
        while name not in known and own.casefold() in taken:
            number += 1
            own = f"{name[: LONGEST - 4]}-{number}"
        taken.add(own.casefold())
        found.append(own)
    return found


def _set_apart(name: str, differing_keys: Mapping[str, tuple[Any, Any]]) -> str:
    """Another configuration has this name already: what is different now goes into it."""
    if not 0 < len(differing_keys) <= FEW:
        return limited(f"{name[: LONGEST - 10]}-{_digest(repr(sorted(differing_keys.items())))}")
    extra = (f"{key.rpartition('.')[2]}={now}" for key, (_, now) in differing_keys.items())
    return limited(",".join([name, *extra]))


def job_folder(sweep: str, number: int, overrides: str) -> str:
    """hydra.sweep.subdir of a job whose name could not be settled before: its number and its overrides."""
    return limited(f"{number}_{overrides}")
