"""Reading a user's own prompts: a text file with one a line, or a table with a column `prompt`."""

from __future__ import annotations

import csv
import io
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from diffusion_lab.interfaces import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Line:
    """A prompt as written, `{subject}` not yet filled in, and what filled which slot."""

    text: str
    slots: Mapping[str, str] = field(default_factory=dict)


def read_lines(path: Path) -> list[Line]:
    """The prompts of a file, in its order; a repeated text counts once, with a warning.

    Text: one prompt a line, empty lines and lines that begin with # left out. `.csv` and `.tsv`: a header
    with a column `prompt`, every other column a slot. UTF-8. Raises UserError, naming file and line.
    """
    try:
        content = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"prompts.path: {path} does not exist") from None
    except UnicodeDecodeError as error:
        raise UserError(f"prompts.path: {path} is not UTF-8 text ({error}); save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"prompts.path: {path} cannot be read ({error.strerror or error})") from error
    tables = {".csv": ",", ".tsv": "\t"}
    delimiter = tables.get(path.suffix.casefold())
    numbered = _text(content) if delimiter is None else _table(content, delimiter, path)
    lines: dict[str, Line] = {}
    for number, line in numbered:
        strange = re.findall(r"\{(?!subject\})[^{}]*\}", line.text)
        if strange:
            raise UserError(
                f"prompts.path: {path}, line {number}: {strange[0]} is not known; "
                "only {subject} is filled in"
            )
        if line.text in lines:
            log.warning(
                "prompts.path: %s, line %d: %r stands there twice, it counts once", path, number, line.text
            )
        lines.setdefault(line.text, line)
    if not lines:
        raise UserError(f"prompts.path: {path} holds no prompt")
    return list(lines.values())


def _text(content: str) -> list[tuple[int, Line]]:
    stripped = [(number, line.strip()) for number, line in enumerate(content.split("\n"), 1)]
    return [(number, Line(text)) for number, text in stripped if text and not text.startswith("#")]


def _table(content: str, delimiter: str, path: Path) -> list[tuple[int, Line]]:
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    found: list[tuple[int, Line]] = []
    try:
        header = [name.strip() for name in next(reader, [])]
        if header.count("prompt") != 1:
            raise UserError(
                f"prompts.path: {path} needs one column named prompt; its columns are "
                f"{', '.join(header) or 'none'}"
            )
        if len(set(header)) < len(header) or "" in header:
            raise UserError(
                f"prompts.path: {path}: every column needs a name of its own: {', '.join(header)}"
            )
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(header):
                raise UserError(
                    f"prompts.path: {path}, line {reader.line_num}: {len(row)} cells for {len(header)} "
                    "columns; quote a prompt that holds the separator"
                )
            cells = dict(zip(header, (cell.strip() for cell in row), strict=True))
            text = cells.pop("prompt")
            if not text:
                raise UserError(f"prompts.path: {path}, line {reader.line_num}: the prompt is empty")
            found.append((reader.line_num, Line(text, cells)))
    except csv.Error as error:
        raise UserError(f"prompts.path: {path}, line {reader.line_num}: {error}") from error
    return found
