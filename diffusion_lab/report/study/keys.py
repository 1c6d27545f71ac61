"""What tells the runs of a study apart: the keys by which the page filters, colours and groups them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffusion_lab.studies.measures import complete
from diffusion_lab.studies.run import StudyRun
from diffusion_lab.studies.table import Table

SEEDS = ("seed", "data.subset_seed", "prompts.seed", "prompts.noise_seed")
TOLD = (  # by the keys of every page; their parts are told by these too
    "data.subject", "data.folder", "data.source", "data.class_noun", "data.n_images", "method.name", "method.variant",
    "method.dora", "model.path", *SEEDS,
)  # fmt: skip
BALANCED = "balanced"
UNTOLD = ("job.", "tracker.", "memory.", "metrics.batch_size", "resume", "as_typed.")  # do not affect results


@dataclass(frozen=True, slots=True)
class Key:
    """`setting`: means over different values of it mix settings. `extra`: a dotted key of the configuration.

    `averages`: filters averages only, not the lines of single runs.
    """

    name: str
    label: str
    values: tuple[str | int | float, ...]  # of each run
    ordered: bool = False  # coloured from dark to light
    setting: bool = False
    extra: bool = False
    averages: bool = False


def keys_of(runs: Sequence[StudyRun]) -> list[Key]:
    """The keys of the page, in the order of its filters. The last ones exist only where runs differ in them."""
    extras = [
        Key(
            name,
            label,
            tuple(_shown(run.settings.get(name)) for run in runs),
            _numeric(runs, name),
            True,
            True,
        )
        for name, label in _labels(extra_keys(runs)).items()
    ]
    settings = [
        Key("method", "method", tuple(run.method for run in runs), setting=True),
        Key("model", "model", tuple(run.model for run in runs), setting=True),
        *extras,
    ]
    keys = [
        Key("subject", "subject", tuple(run.subject for run in runs)),
        Key(
            "gender",
            "gender",
            tuple({"woman": "women", "man": "men"}.get(run.gender or "", "") for run in runs),
        ),
        Key("n", "photos", tuple(run.n_images for run in runs), ordered=True),
        *settings,
        Key("seed", "seed", tuple(run.seed for run in runs), ordered=True),
        Key("status", "status", tuple(run.status for run in runs)),
        Key(
            BALANCED,
            "in averages",
            balanced(runs, [key for key in settings if len(set(key.values)) > 1]),
            averages=True,
        ),
    ]
    several = [key for key in keys if key.setting and len(set(key.values)) > 1]
    if len(several) > 1:
        keys.insert(len(keys) - 3, Key("settings", "all settings", tuple(arms(several, len(runs)))))
    return keys


def balanced(runs: Sequence[StudyRun], settings: Sequence[Key]) -> tuple[str, ...]:
    """ "yes" for the runs that averages are over at first: of each setting, a balanced part (`measures.complete`)."""
    groups: dict[tuple[object, ...], list[StudyRun]] = {}
    for i, run in enumerate(runs):
        groups.setdefault(tuple(key.values[i] for key in settings), []).append(run)
    kept = {id(run) for some in groups.values() for run in complete(some)}
    return tuple("yes" if id(run) in kept else "no" for run in runs)


def arms(keys: Sequence[Key], count: int) -> list[str]:
    """One text for each run, the same for runs with the same settings: "lora, rank 8"."""
    texts = []
    for i in range(count):
        parts = [f"{key.label} {key.values[i]}" if key.extra else str(key.values[i]) for key in keys]
        texts.append(", ".join(part for part, key in zip(parts, keys, strict=True) if key.values[i] != ""))
    return texts


def extra_keys(runs: Sequence[StudyRun]) -> list[str]:
    """Dotted keys of the configuration that differ among runs alike in everything of `TOLD` and in earlier keys.

    A method's own settings differ between methods; the method's name is sufficient for these.
    """
    known = {key: None for run in runs for key in run.settings}
    named = [key for key in known if key not in TOLD and not key.startswith(UNTOLD)]
    parts = [
        (
            run.subject,
            run.class_noun,
            run.n_images,
            run.method,
            run.model,
            *(run.settings.get(k) for k in SEEDS),
        )
        for run in runs
    ]
    groups = [json.dumps(part, default=str) for part in parts]
    taken: list[str] = []
    for key in named:
        finer = [
            f"{g}|{json.dumps(run.settings.get(key), default=str)}"
            for g, run in zip(groups, runs, strict=True)
        ]
        if len(set(finer)) > len(set(groups)):
            taken, groups = [*taken, key], finer
    return taken


def _labels(keys: Sequence[str]) -> Mapping[str, str]:
    """The last part of each dotted key, or the whole key if two have the same last part."""
    last = {key: key.rpartition(".")[2].replace("_", " ") for key in keys}
    return {key: text if list(last.values()).count(text) == 1 else key for key, text in last.items()}


def _shown(value: Any) -> str | int | float:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return json.dumps(value, ensure_ascii=False, default=str)
    return value


def _numeric(runs: Sequence[StudyRun], name: str) -> bool:
    values = [run.settings.get(name) for run in runs]
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values if v is not None)


def metrics_of(table: Table) -> list[str]:
    """The metrics with a value in any run, the weighted ones first."""
    there = [
        name
        for name in table.metrics
        if name in table.ranges and any(np.isfinite(run.values.get(name, np.nan)).any() for run in table.runs)
    ]
    return sorted(there, key=lambda name: table.weights.get(name, 0.0) <= 0)


def starting_colour(keys: Sequence[Key]) -> str:
    """The key that colours the lines at first: settings if they differ, else the number of photos."""
    several = [key.name for key in keys if len(set(key.values)) > 1]
    for name in (split_of(keys), "n", "gender", "subject", "seed"):
        if name in several:
            return name
    return "n"


def split_of(keys: Sequence[Key]) -> str:
    """The key whose values must not be averaged: all settings if several differ, the one that differs, or ""."""
    several = [key.name for key in keys if len(set(key.values)) > 1]
    names = [key.name for key in keys if key.setting and key.name in several]
    return "settings" if "settings" in several else names[0] if names else ""
