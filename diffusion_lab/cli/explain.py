"""Hydra's and OmegaConf's errors in one line: the key, the given value, the allowed values."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from diffusion_lab.cli.compose import groups
from diffusion_lab.cli.engines import missing_extra
from diffusion_lab.config.jobs import JOBS, Job, no_such_key
from diffusion_lab.config.schema import Config
from diffusion_lab.config.texts import WORD
from diffusion_lab.methods import METHODS
from diffusion_lab.values.checks import closest
from diffusion_lab.values.quoting import pasted, shown

CHOICES: dict[str, Mapping[str, type]] = {
    "method": METHODS,
    "job": JOBS,
}  # groups whose options have their own keys
NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def explain(error: BaseException) -> str:
    """The message for the user, derived from the texts of the error and its cause, and from our schema."""
    text, cause = str(error), str(error.__cause__ or "")
    if found_extra := missing_extra(text):
        return found_extra
    if found := re.search(r"Could not find '([^']+)'", text):
        return _no_option(found[1])
    if found := re.search(r"Could not override '([^']+)'", text):
        key, kind = found[1].partition("@")[0], getattr(error.__cause__, "object_type", None)
        if key.startswith("job.") and isinstance(kind, type):
            return _no_key_of_job(key, kind)
        return _no_key(key)
    if found := re.search(r"Error merging override (.+)", text, re.DOTALL):
        return _wrong_value(found[1], cause or text)
    if found := re.search(r"Ambiguous value for argument '(.+?)'\n", text):
        key, _, values = found[1].partition("=")
        listed = _expected(key).startswith("a list")
        brackets = f", or brackets for a list: {pasted(f'{key}=[{values}]')}" if listed else ""
        return f"{found[1]}: several values need -m, for one job each{brackets}"
    if found := re.search(r"Sweep parameters '(.+?)' requires --multirun", text):
        return f"{found[1]}: several values need -m, for one job each"
    if found := re.search(r"Could not append to config. An item is already at '([^']+)'", text):
        return f"+{found[1]}: the key is there already; write it without the plus, {found[1]}=VALUE"
    if type(error).__name__ == "OverrideParseException":
        return _unreadable(str(getattr(error, "override", None) or text))
    lines = [line.strip() for line in f"{text}\n{cause}".splitlines()]
    told = [
        line
        for line in lines
        if line and not re.match(r"See http|provider=|Config search path|object_type", line)
    ]
    return "; ".join(told[:3]) or type(error).__name__


def _unreadable(word: str) -> str:
    """A word outside Hydra's grammar. Text is always accepted, so the key has another type or is unknown."""
    if found := WORD.match(word):
        if expected := _expected(found[2]):
            return f"{word}: must be {expected}"
        if not found[2].startswith("hydra.") and found[2] not in groups():
            return _no_key(found[2])
        remedy = f"put the value into quotes, {pasted(f'{found[2]}={shown(found[3])}')}"
        return f"{word}: cannot be read; {remedy}: the outer quotes are the shell's"
    return f"{word}: cannot be read; write key=value"


def _no_option(path: str) -> str:
    group, _, option = path.rpartition("/")
    options = list(groups().get(group, {}))
    if not options:
        return f"{path}: no such file under conf/{closest(group, groups())}"
    return f"{group}={option}: no such option; {group} has {', '.join(options)}{closest(option, options)}"


def _no_key_of_job(key: str, kind: type) -> str:
    if issubclass(kind, Job):
        return no_such_key(kind, key.partition(".")[2])
    schema = "defaults: [/schema/job/NAME@_here_]"
    return f"{key}: the file that job=... names has no such key; begin it with {schema}, and it has those of a job"


def _no_key(key: str) -> str:
    parent, _, last = key.rpartition(".")
    if kinds := _find(parent):
        names = dict.fromkeys(part.name for kind in kinds for part in dataclasses.fields(kind))
        known = [*names] + ([] if parent else ["experiment"])
        hint = closest(last, known) or closest(key, _dotted())
        if parent == "method":
            return f"{key}: this method has no such key; the methods' keys are {', '.join(known)}{hint}"
        return (
            f"{key}: no such key; {parent or 'there are'}{' has' if parent else ''} {', '.join(known)}{hint}"
        )
    return f"{key}: no such key{closest(key, _dotted())}"


def _wrong_value(override: str, cause: str) -> str:
    key = override.partition("=")[0].lstrip("+~")
    expected = _expected(key)
    reason = cause.splitlines()[0] if cause else "is not allowed"
    return f"{override}: must be {expected}" if expected and "=" in override else f"{override}: {reason}"


def _expected(key: str) -> str:
    parent, _, last = key.rpartition(".")
    for at in _find(parent):
        if last in {part.name for part in dataclasses.fields(at)}:
            return _in_words(typing.get_type_hints(at)[last])
    return "a number" if key.startswith("metrics.weights.") else ""


def _in_words(hint: Any) -> str:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        known = [_in_words(part) for part in inner if part is not type(None)]
        return " or ".join(filter(None, [*known, "null" if type(None) in inner else ""]))
    if origin is list:
        return f"a list, [a,b], each {_in_words(inner[0])}"
    if origin is dict:
        return f"a table, {{name: value}}, each value {_in_words(inner[1])}"
    if dataclasses.is_dataclass(hint):
        return (
            f"one of its options or {{key: value}} with {', '.join(p.name for p in dataclasses.fields(hint))}"
        )
    return NAMES.get(hint, "")


def _find(key: str) -> list[Any]:
    """The dataclasses possible at a dotted key ("": the whole configuration): several for method and job."""
    if key in CHOICES:
        return list(CHOICES[key].values())
    at: Any = Config
    for part in key.split(".") if key else ():
        at = typing.get_type_hints(at).get(part) if dataclasses.is_dataclass(at) else None
    return [at] if dataclasses.is_dataclass(at) else []


def _dotted() -> list[str]:
    """All two-part keys, and the groups."""

    def keys() -> Iterator[str]:
        yield "experiment"
        for part in dataclasses.fields(Config):
            yield part.name
            for at in _find(part.name):
                yield from (f"{part.name}.{inner.name}" for inner in dataclasses.fields(at))

    return list(dict.fromkeys(keys()))
