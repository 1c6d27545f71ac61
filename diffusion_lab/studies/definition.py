"""Studies: a question, and the runs that answer it. `--sweep methods` runs sweeps/methods.yaml.

    question: Which method brings the most likeness?
    cost: 15 runs, about 4 minutes each on two CPU cores
    expected: DreamBooth highest on similarity.
    charts: [methods]
    runs:                       # a list of values stands for one run per value: a product
      data.subject: anna
      method: [lora, dreambooth]
      seed: [0, 1, 2]
    quick: {seed: 0}            # --quick: these keys are replaced

`runs` may be a list of such mappings: the union of their products. A file without `runs` maps keys of the
configuration directly to values; its first comment is the question.

Hydra's own mechanism is an experiment with `hydra.mode: MULTIRUN` and `hydra.sweeper.params`. It works
(experiment=FILE), but it has no unions, a run takes one experiment, and its values are strings in the grammar
of overrides within YAML.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from diffusion_lab.config.texts import kind
from diffusion_lab.records import UserError
from diffusion_lab.values.checks import closest
from diffusion_lab.values.quoting import SAFE, quoted

CHARTS = ("dynamics", "stop", "counts", "optimum", "models", "methods", "words", "negative")
"""Sections of a study's page."""
KEYS = ("question", "cost", "expected", "charts", "in_all", "runs", "quick")  # of a study's file
ALL = "all"  # --sweep all: every study whose file does not say `in_all: false`
CLAIMS = "claims"  # job.study=claims: the claims of the sources, over all runs of a folder
RESERVED = (ALL, CLAIMS)  # names of pages that are over all runs
QUICK = "_quick"  # ends the name of a study's quick form: its runs have other settings


@dataclass(frozen=True, slots=True)
class Point:
    """One run of a study."""

    overrides: tuple[str, ...]  # in the grammar of Hydra's overrides: "data.n_images=4"
    run: str = ""  # resume.run_id of its configuration; "": not composed yet
    folder: str = ""  # name of its folder in the folder of all runs; "": not settled yet

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(word.lstrip("+~").partition("=")[0] for word in self.overrides)


@dataclass(frozen=True, slots=True)
class Study:
    """A question and its runs."""

    name: str
    question: str
    cost: str
    expected: str
    charts: tuple[str, ...]  # of CHARTS; empty: all that the runs have data for
    points: tuple[Point, ...]

    @property
    def varied(self) -> set[str]:
        """The keys that do not have the same value in all points."""
        words = [set(point.overrides) for point in self.points]
        shared = set.intersection(*words) if words else set()
        return {
            key
            for point in self.points
            for key, word in zip(point.keys, point.overrides, strict=True)
            if word not in shared
        }


def folders() -> list[Path]:
    """The folders with studies: sweeps/ here, next to the package in a checkout, inside it in a wheel."""
    package = Path(__file__).resolve().parent.parent
    candidates = (Path("sweeps"), package / "sweeps", package.parent / "sweeps")
    return [folder for folder in candidates if folder.is_dir()]


def files() -> dict[str, Path]:
    """Study -> its file; the first folder that has a name wins."""
    found: dict[str, Path] = {}
    for folder in folders():
        for file in sorted(folder.glob("*.yaml")):
            found.setdefault(file.stem, file)
    return dict(sorted(found.items()))


def listed() -> dict[str, str]:
    """Study -> its question; "" if the file cannot be read, since --help must always work."""
    return {name: _question(file) for name, file in files().items()}


def in_all() -> list[str]:
    """The studies of `--sweep all`. Raises UserError if a file is no study."""
    return [name for name, file in files().items() if _content(name, file)[0].get("in_all", True)]


def load(name: str, *, quick: bool = False, replaced: Collection[str] = ()) -> Study:
    """The study `name`, or the one in a file (`*.yaml`).

    `quick`: its quick form. `replaced`: keys that the command line sets; the study's own values of them are
    left out. Points that are equal count once.

    Raises:
        UserError: (--sweep) if there is no such study, or its file is not one; the message names the key.
    """
    file = _file(name)
    if file.stem in RESERVED:
        raise UserError(f"--sweep {name}: {file.stem} is the name of a page of all runs; rename {file}")
    content, letters = _content(name, file)
    told = f"--sweep {name}: {file}"
    if quick and not content["quick"]:
        raise UserError(f"{told}: quick is missing; --quick needs the keys to replace, quick: {{seed: 0}}")
    points: dict[tuple[str, ...], None] = {}
    for mapping, written in zip(content["runs"], letters["runs"], strict=True):
        values = _as_written(mapping, written)
        if quick:
            values |= _as_written(content["quick"], letters["quick"])
        points |= dict.fromkeys(_product(values, replaced, told))
    return Study(
        name=file.stem + (QUICK if quick else ""),
        question=content["question"],
        cost=content["cost"],
        expected=content["expected"],
        charts=tuple(content["charts"]),
        points=tuple(Point(words) for words in points),
    )


# --- the file -----------------------------------------------------------------------------------------


class _Letters(yaml.SafeLoader):  # type: ignore[misc]
    """Reads every scalar as the text that is written; merges (<<) as usual."""

    yaml_implicit_resolvers = {"<": [("tag:yaml.org,2002:merge", re.compile("<<$"))]}  # noqa: RUF012


def _file(name: str) -> Path:
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise UserError(f"--sweep {name}: there is no such file")
        return Path(name)
    known = files()
    if name in known:
        return known[name]
    raise UserError(
        f"--sweep {name}: no such study; there are {', '.join([*known, ALL])}{closest(name, list(known))}"
    )


def _question(file: Path) -> str:
    try:
        return str(_content(file.stem, file)[0]["question"])
    except UserError:
        return ""


def _content(name: str, file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The file in the new format, checked: its values, and the same with every scalar as it is written."""
    told = f"--sweep {name}: {file}"
    try:
        text = file.read_text("utf-8")
        values, letters = yaml.safe_load(text), yaml.load(text, _Letters)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{told} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict) or not values:
        raise UserError(f"{told} has to map keys to values: question: TEXT, and runs: {{group.key: value}}")
    if "runs" not in values:
        if set(values) & set(KEYS):
            raise UserError(f"{told}: runs is missing; write runs: {{group.key: [value, value]}}")
        values, letters = {**_commented(text), "runs": values}, {"runs": letters}
    for key in values:
        if key not in KEYS:
            raise UserError(
                f"{told}: {key}: no such key; a study has {', '.join(KEYS)}{closest(str(key), KEYS)}; keys of "
                "the configuration belong below runs"
            )
    _check_texts(values, told)
    several = isinstance(values["runs"], list)
    runs = values["runs"] if several else [values["runs"]]
    for i, mapping in enumerate(runs):
        _check_mapping(mapping, f"runs[{i}]" if several else "runs", told)
    if not runs:
        raise UserError(f"{told}: runs: is empty; write runs: {{group.key: [value, value]}}")
    quick = values.get("quick") or {}
    if quick:
        _check_mapping(quick, "quick", told)
    usual = {"question": "", "cost": "", "expected": "", "charts": []}
    return (
        {**usual, **values, "runs": runs, "quick": quick},
        {"runs": letters["runs"] if several else [letters["runs"]], "quick": letters.get("quick")},
    )


def _commented(text: str) -> dict[str, str]:
    """Question, cost and expected answer of a flat file, from its comments; the first one is the question."""
    found = {"question": "", "cost": "", "expected": ""}
    last = "question"
    for line in text.splitlines():
        if line.startswith("# "):
            head, given, rest = line[2:].partition(": ")
            if given and head.lower() in found:
                last, line = head.lower(), rest
            elif last == "question" and found["question"]:
                continue
            found[last] = f"{found[last]} {line.removeprefix('# ').strip()}".strip()
    return found


def _check_texts(values: Mapping[str, Any], told: str) -> None:
    for key in ("question", "cost", "expected"):
        if not isinstance(values.get(key, ""), str):
            raise UserError(f"{told}: {key}: must be a text; write it in quotes")
    if not isinstance(values.get("in_all", True), bool):
        raise UserError(f"{told}: in_all: must be true or false")
    charts = values.get("charts", [])
    if not isinstance(charts, list):
        raise UserError(f"{told}: charts: must be a list, such as [dynamics, stop]")
    for chart in charts:
        if chart not in CHARTS:
            raise UserError(
                f"{told}: charts: {chart}: no such chart; choose from {', '.join(CHARTS)}"
                f"{closest(str(chart), CHARTS)}"
            )


def _check_mapping(mapping: Any, where: str, told: str) -> None:
    if not isinstance(mapping, dict) or not mapping:
        raise UserError(f"{told}: {where}: has to map configuration keys to values, {{group.key: value}}")
    for key, value in mapping.items():
        if not isinstance(key, str):
            raise UserError(f"{told}: {where}: {key!r} is no key of the configuration; write it in quotes")
        if value == []:
            raise UserError(f"{told}: {where}: {key}: the list is empty, so there is nothing to run")


def _as_written(values: Mapping[str, Any], letters: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of type text have the text as written in the file: YAML reads 1_1_1 as 111, and 010 as 8."""
    return {
        key: _letters(value, letters[key]) if key in letters and kind(key) else value
        for key, value in values.items()
    }


def _letters(value: Any, letters: Any) -> Any:
    if isinstance(value, list):
        return [_letters(part, written) for part, written in zip(value, letters, strict=True)]
    return value if value is None else letters


# --- points -------------------------------------------------------------------------------------------


def _product(values: Mapping[str, Any], replaced: Collection[str], told: str) -> Iterator[tuple[str, ...]]:
    choices = [
        [f"{key}={written(one, f'{told}: {key}')}" for one in (value if isinstance(value, list) else [value])]
        for key, value in values.items()
        if key not in replaced
    ]
    yield from itertools.product(*choices)


def written(value: Any, where: str) -> str:
    """A value in the grammar of Hydra's overrides. Raises UserError for a mapping."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list):
        return "[" + ",".join(written(part, where) for part in value) + "]"
    if isinstance(value, str):
        return value if SAFE.match(value) else quoted(value)
    raise UserError(f"{where}: {value!r} is neither a value nor a list of values; write group.key: value")


def combined(study: Study, given: Sequence[Sequence[str]]) -> Study:
    """The study with the words of a command line added to each point, one point per combination."""
    points = {(*point.overrides, *words): None for point in study.points for words in given}
    return replace(study, points=tuple(Point(words) for words in points))
