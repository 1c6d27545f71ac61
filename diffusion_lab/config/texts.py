"""Passes text values on exactly as they were typed, regardless of Hydra's grammar.

Hydra reads `data.identifier=1_1_1` as the number 111, `hydra.run.dir=3.10` as 3.1, and a comma as the end of
a value. Every word whose key holds text according to the schema is therefore rewritten once before Hydra
parses it:

- The text is everything after the `=`. If it is fully quoted, 'a, b' or "a, b", the quotes are removed.
- `${...}` that names a key of the configuration or a resolver is replaced by its value; `\\${` stands for `${`.
  Any other `${` is text, except that apparent misspellings of keys are rejected.
- If the schema allows null, the bare word null is null, and 'null' is text.
- In a list, [a, b], and between the values of a sweep, commas outside quotes and brackets are separators, and
  whitespace around a part is removed. Without -m, a comma is an ordinary character.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from diffusion_lab.records import UserError
from diffusion_lab.values.quoting import SAFE, always_quoted, pasted, quoted, shown, split, unquoted

PROSE = ("job.text", "job.texts", "prompts.negative")  # in which a comma usually belongs to the text
ONE_PROMPT = "job.text"  # taken literally, also with -m; becomes a list if given several times
RESOLVERS = ("oc", "now", "hydra", "readable", "sweep_name", "job_folder", "python_version")
WORD = re.compile(r"(\+{0,2})([A-Za-z_][\w.]*)=(.*)\Z", re.DOTALL)
PAIR = re.compile(r"(['\"]?)([A-Za-z_]\w*)\1[ \t]*:(.*)\Z", re.DOTALL)  # in {key: value, ...}
RANGES = "metrics.ranges"  # OmegaConf rejects integers in the lists of a new metric
WHOLE = re.compile(r"(?<=[\[,])(\s*[+-]?\d+)(?=\s*[\],])")  # an item of a list
CALL = re.compile(r"(choice|shuffle|sort|tag|range|interval|glob)\(.*\)\Z", re.DOTALL)
INTERPOLATION = re.compile(r"(?<!\\)(?:\\\\)*\$\{\s*(\.*)([^{}:\s]*)\s*([:}]?)")


@dataclasses.dataclass(frozen=True, slots=True)
class Kind:
    """The type of a key: a text or a list of texts, and whether null is also allowed."""

    many: bool = False
    null: bool = False


def kind(key: str) -> Kind | None:
    """The type of the key, or None if it does not hold text or does not exist."""
    if not key.startswith("hydra."):
        from diffusion_lab.config.jobs import JOBS
        from diffusion_lab.config.schema import Config
        from diffusion_lab.methods import METHODS

        group, _, own = key.partition(".")
        kinds: dict[str, Iterable[type]] = {"method": METHODS.values(), "job": JOBS.values()}
        if own and group in kinds:
            found = [_at(kind, own) for kind in kinds[group]]
            return next((one for one in found if one is not None), None)
        return _at(Config, key)
    from hydra.conf import HydraConf

    return _at(HydraConf, key.removeprefix("hydra."))


def _at(schema: Any, key: str) -> Kind | None:
    first, _, rest = key.partition(".")
    if not (isinstance(schema, type) and dataclasses.is_dataclass(schema)):
        return None
    hint = _hints(schema).get(first)
    if rest:
        if typing.get_origin(hint) is dict and typing.get_args(hint)[1] is str:
            return Kind()
        return _at(hint, rest)
    parts = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    null = type(None) in parts
    for part in parts:
        if part is str:
            return Kind(null=null)
        if typing.get_origin(part) is list and typing.get_args(part)[0] is str:
            return Kind(many=True, null=null)
    return None


@lru_cache(maxsize=64)
def _hints(schema: type) -> dict[str, Any]:
    return typing.get_type_hints(schema)


# --- words of a command line --------------------------------------------------------------------------


def exact(words: Sequence[str], *, sweep: bool = False) -> tuple[list[str], list[str]]:
    """The words as Hydra must receive them, and notes for the user. Idempotent.

    `sweep`: commas separate the values of jobs. Raises UserError for a list without brackets, and for ${...}
    that looks like a key but does not exist.
    """
    notes: list[str] = []
    single = [one for word in _one_list(words) for one in _one_word_a_key(word)]
    return [_exact(word, sweep, notes) for word in single], list(dict.fromkeys(notes))


def _one_word_a_key(word: str) -> list[str]:
    """Splits `data={identifier:1_1, n_images:4}` into one word per key, so that its texts are preserved."""
    found = WORD.match(word)
    if not found or not found[3].startswith("{") or not _is_group(found[2]):
        return [word]
    plus, group, value = found.groups()
    parts = split(value)
    pairs = [PAIR.match(part) for part in split(parts[0][1:-1])] if value.strip("{} \t") else []
    if len(parts) > 1 or not value.endswith("}") or None in pairs:
        raise UserError(f"{word}: cannot be read; write a word for each key, {group}.KEY=VALUE")
    return [
        one for pair in pairs if pair for one in _one_word_a_key(f"{plus}{group}.{pair[2]}={pair[3].strip()}")
    ]


def _is_group(key: str) -> bool:
    """Whether the key is one of the configuration's groups, which contain other keys."""
    from diffusion_lab.config.schema import Config

    hint = _hints(Config).get(key)
    return key in ("method", "job") or (isinstance(hint, type) and dataclasses.is_dataclass(hint))


def _one_list(words: Sequence[str]) -> list[str]:
    """Combines several job.text=... into one list, at the position of the last one."""
    given = [word for word in words if word.startswith(f"{ONE_PROMPT}=")]
    if len(given) < 2:
        return list(words)
    texts = [_as_typed(word.partition("=")[2]) for word in given]
    listed = f"{ONE_PROMPT}s=[{','.join(always_quoted(text) for text in texts)}]"
    return [*(word for word in words if word not in given), listed]


def _exact(word: str, sweep: bool, notes: list[str]) -> str:
    found = WORD.match(word)
    holds = kind(found[2]) if found else None
    if found and found[2] == RANGES:
        return f"{found[1]}{RANGES}=" + WHOLE.sub(r"\1.0", found[3])
    if not found or holds is None:
        return word
    plus, key, value = found.groups()
    if sweep and key != ONE_PROMPT and not key.startswith("hydra."):
        return f"{plus}{key}={_choices(key, value, holds, notes)}"
    if not holds.many and "," in value and unquoted(value) is None:
        _note_single(key, value, notes)
    return f"{plus}{key}={_value(key, value, holds, notes)}"


def _choices(key: str, value: str, holds: Kind, notes: list[str]) -> str:
    """The values of a sweep, each preserved exactly."""
    if call := CALL.match(value):
        if call[1] != "choice":
            return _called(key, call[1], value)
        value = value[len("choice(") : -1]  # expanded, since Hydra drops the quotes of its parts
    parts = split(value)
    if not holds.many:
        _note_split(key, value, parts, notes, "values, one job each")
    return ",".join(_value(key, part if holds.many else _part(part), holds, notes) for part in parts)


def _called(key: str, function: str, value: str) -> str:
    """A sweep function whose parts Hydra passes on without quotes: rejected if that would change a text."""
    parts = split(value[len(function) + 1 : -1])
    kept = (part for part in parts if not re.match(r"reverse\s*=", part))
    if function in ("shuffle", "sort", "tag") and not all(map(SAFE.match, kept)):
        raise UserError(f"{key}={value}: write the values out, with commas between them: {key}=a,b")
    return value


def _value(key: str, value: str, holds: Kind, notes: list[str]) -> str:
    if value == "null" and holds.null:
        return value
    if not holds.many:
        text = _interpolated(key, _as_typed(value))
        return _plain(text)
    if value.startswith("[") and value.endswith("]"):
        return _list(key, value, notes)
    if value.startswith("${") and value.endswith("}"):
        return value
    raise UserError(
        f"{key}={value}: must be a list, [a,b], each a text; ready to paste: "
        f"{advice(key, [_as_typed(part) for part in split(value)] if key not in PROSE else [value])}"
        + (f", or {advice(ONE_PROMPT, value)}" if key == f"{ONE_PROMPT}s" else "")
    )


def _list(key: str, value: str, notes: list[str]) -> str:
    inner = value[1:-1]
    if not inner.strip():
        return "[]"
    parts = split(inner)
    if key in PROSE:
        _note_split(key, inner, parts, notes, "prompts")
    texts = [_interpolated(key, _as_typed(_part(part))) for part in parts]
    return f"[{','.join(map(_plain, texts))}]"


def _part(part: str) -> str:
    """A part between commas: outside quotes, a backslash escapes a comma."""
    return part if unquoted(part) is not None else part.replace("\\,", ",")


def _as_typed(value: str) -> str:
    within = unquoted(value)
    return value if within is None else within


def _interpolated(key: str, text: str) -> str:
    """`text` with every ${ escaped that is not an interpolation."""
    if "${" not in text:
        return text
    from omegaconf.errors import GrammarParseError
    from omegaconf.grammar_parser import parse

    from diffusion_lab.values.quoting import escaped

    try:
        parse(text)
    except GrammarParseError:
        return escaped(text)
    for dots, name, end in INTERPOLATION.findall(text):
        root = re.split(r"[.\[]", name)[0]
        if dots or not root or (root in RESOLVERS if end == ":" else root in _roots()):
            continue
        raise UserError(
            f"{key}: ${{{name}}} names no key of the configuration; a backslash before it makes it text, "
            f"ready to paste: {pasted(f'{key}={shown(text)}')}"
        )
    return text


def _roots() -> set[str]:
    from diffusion_lab.config.schema import Config

    return {part.name for part in dataclasses.fields(Config)} | {"hydra"}


# --- notes for the user ---------------------------------------------------------------------------------


def advice(key: str, value: str | Sequence[str]) -> str:
    """The shell word that sets the key to exactly this text, or these texts."""
    if isinstance(value, str):
        plain = unquoted(value) is None and "${" not in value and value != "null"
        return pasted(f"{key}={value if plain else shown(value)}")
    return pasted(f"{key}=[{', '.join(text if SAFE.match(text) else shown(text) for text in value)}]")


def _note_split(key: str, value: str, parts: Sequence[str], notes: list[str], as_what: str) -> None:
    """Notes that a comma followed by a space, as in prose, has separated unquoted parts."""
    loose = [part for part in parts if unquoted(part) is None]
    if len(parts) < 2 or len(loose) < len(parts) or not re.search(r",\s", value):
        return
    listed = ", ".join(repr(part) for part in parts[:4]) + (", ..." if len(parts) > 4 else "")
    if key == f"{ONE_PROMPT}s":
        remedy = (
            f"{advice(ONE_PROMPT, value)}; for several prompts with commas one job.text=... each, or "
            "job.texts_file=FILE with a prompt a line"
        )
    else:
        remedy = pasted(f"{key}={shown(value)}")
    notes.append(
        f"{key}: split at its commas into {len(parts)} {as_what}: {listed}; if it is one text: {remedy}"
    )


def _note_single(key: str, value: str, notes: list[str]) -> None:
    """Notes values that look like a sweep without -m: words separated by commas without spaces."""
    from diffusion_lab.config.paths import is_path

    if key in PROSE or key.startswith(("hydra.", "tracker.")) or is_path(key):
        return
    if re.fullmatch(r"[\w.+-]+(,[\w.+-]+)+", value):
        notes.append(f"{key}={value} is taken as one text; for several values, one job each, add -m")


# --- words of a record --------------------------------------------------------------------------------


def recorded(words: Iterable[str]) -> list[str]:
    """Words that Hydra has parsed before, as recorded by a run, with their original meaning.

    An earlier version may have recorded `data.identifier=1_1_1` when it meant 111.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parser, found = OverridesParser.create(), []
    for word in words:
        match = WORD.match(word)
        holds = kind(match[2]) if match else None
        if match is None or holds is None:
            found.append(word)
            continue
        value: Any = parser.parse_override(word).value()
        found.append(f"{match[1]}{match[2]}={_written(value)}")
    return found


def _written(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, list):
        return f"[{','.join(map(_plain, value))}]"
    return _plain(value)


def _plain(value: Any) -> str:
    text = str(value)
    return text if SAFE.match(text) else quoted(text)
