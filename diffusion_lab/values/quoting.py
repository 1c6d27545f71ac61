"""Quoting for the three syntaxes of a command line: the shell's, Hydra's and OmegaConf's.

Nothing here imports Hydra, OmegaConf or the schema.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

SAFE = re.compile(r"(?!(?:true|false|null|inf|nan)\Z)[A-Za-z_/][A-Za-z0-9_/.-]*\Z", re.IGNORECASE | re.ASCII)
"""What Hydra reads as the same text without quotes: no number, no keyword, no character of its grammar."""
QUOTES = "'\""
OPENING = {")": "(", "]": "[", "}": "{"}


def quoted(value: str) -> str:
    """A value quoted so that Hydra's grammar reads it back unchanged."""
    doubled = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value)
    return f"'{doubled}'"  # a backslash is special only before a quote


def unquoted(value: str) -> str | None:
    """The text of a value that is entirely in Hydra's quotes, 'a' or "a"; None for any other value."""
    if len(value) < 2 or value[0] not in QUOTES or value[-1] != value[0]:
        return None
    quote, inner = value[0], value[1:-1]
    pieces = re.split(rf"(\\*{quote}|\\+\Z)", inner)
    for i in range(1, len(pieces), 2):
        slashes = pieces[i].rstrip(quote)
        escaped = pieces[i].endswith(quote)
        if len(slashes) % 2 != escaped:  # an odd number before a quote within, an even one at the end
            return None
        pieces[i] = slashes[: len(slashes) // 2] + (quote if escaped else "")
    return "".join(pieces)


def escaped(text: str) -> str:
    """`text` escaped so that OmegaConf reads it back unchanged, without interpolating ${...}."""
    return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + "\\${", text)


def literal(text: str) -> str:
    """`text` as the value of an override, so that Hydra and OmegaConf read it back unchanged."""
    text = escaped(text)
    return text if SAFE.match(text) else quoted(text)


def always_quoted(text: str) -> str:
    """Like `literal`, with quotes even if not needed: for list elements and the values of a sweep."""
    return quoted(escaped(text))


def pasted(*words: str) -> str:
    """Words quoted for a POSIX shell, to be copied from a message or a page."""
    return " ".join(_shell(word) for word in words)


def _shell(word: str) -> str:
    """Prefers key='a b' to 'key=a b' if equivalent, as this is the usual form."""
    key, given, value = word.partition("=")
    if given and value and re.fullmatch(r"[\w.+~/@-]+", key, re.ASCII) and key != "~":
        return key + given + _shortest(value)
    return _shortest(word)


def _shortest(value: str) -> str:
    """In single quotes, or in double quotes if more readable and the shell expands nothing in them."""
    single, double = shlex.quote(value), f'"{value}"'
    return single if set(value) & set('"$`\\!') or len(single) <= len(double) else double


def shown(text: str) -> str:
    """`text` in Hydra's quotes; in double quotes if no backslash is needed, for a shell's single quotes."""
    text = escaped(text)
    return quoted(text) if set(text) & set('"\\') else f'"{text}"'


def split(text: str) -> list[str]:
    """Splits `text` at its commas and strips the parts; quoted parts are unchanged, including their quotes.

    A comma does not separate inside a part that begins with a quote, after a backslash, or inside brackets of
    any kind if these are balanced: "[a (b, c), d]" is a list of two.
    """
    nested = _balanced(text)
    parts, start, at, depth = [], 0, 0, 0
    while at < len(text):
        if text[at] in QUOTES and not text[start:at].strip():
            at = _closing(text, at)
        elif text[at] == "\\" and text[at + 1 : at + 2] == ",":
            at += 1
        elif nested and text[at] in "([{":
            depth += 1
        elif nested and text[at] in ")]}":
            depth -= 1
        elif text[at] == "," and depth == 0:
            parts.append(text[start:at])
            start = at + 1
        at += 1
    return [part.strip(" \t") for part in [*parts, text[start:]]]


def _closing(text: str, opening: int) -> int:
    """Position of the quote that closes the one at `opening`: before a comma or the end; else `opening`."""
    quote = text[opening]
    for found in re.finditer(re.escape(quote) + r"(?=[ \t]*(,|\Z))", text[opening + 1 :]):
        end = opening + 1 + found.start()
        if unquoted(text[opening : end + 1]) is not None:
            return end
    return opening


def _balanced(text: str) -> bool:
    open_ones: list[str] = []
    for letter in _unquoted_letters(text):
        if letter in "([{":
            open_ones.append(letter)
        elif letter in OPENING and (not open_ones or open_ones.pop() != OPENING[letter]):
            return False
    return not open_ones


def _unquoted_letters(text: str) -> Iterator[str]:
    at, begun = 0, False
    while at < len(text):
        if text[at] in QUOTES and not begun:
            end = _closing(text, at)
            at, begun = max(end, at) + 1, True
            continue
        begun = text[at] != "," and (begun or not text[at].isspace())
        yield text[at]
        at += 1
