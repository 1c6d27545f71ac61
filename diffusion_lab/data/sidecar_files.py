"""Captions in text files and tables beside pictures, read with their encodings."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusion_lab.records import UserError
from diffusion_lab.values.word_match import nfc

TEXT_COLUMNS = ("text", "prompt", "caption")
MOST_BYTES = 64 * 1024
"""Of a caption. CLIP reads 77 tokens, and none of its 49,408 is longer than 70 bytes: 5 KB at most are read. The rest
of the room is for what web UIs write beside a picture, prompt, settings and all."""


@dataclass(frozen=True, slots=True)
class PictureText:
    """The text of a picture from a table or a text file."""

    text: str  # "" for an empty cell or file
    source: Path  # the text file, or the table and, in brackets, the picture's name
    slots: Mapping[str, str] = field(default_factory=dict)  # a table's other columns
    table: str = ""  # its name; "": a text file


class NoCaptions(ValueError):
    """A valid table without captions."""


def read_text(file: Path, key: str = "data.folder") -> str:
    """A text file's content without surrounding white space. UserError if it is not text, or too long for a caption."""
    try:
        size = file.stat().st_size
        if size > MOST_BYTES:
            raise UserError(
                f"{file}: has {size:,} bytes, and a caption at most {MOST_BYTES:,}: the model reads 77 tokens; shorten "
                "it, or remove it"
            )
        return decode(file.read_bytes()).strip()
    except (OSError, UnicodeError) as error:
        problem = f"cannot be read as a caption ({error})"
        raise UserError(f"{file}: {problem}; save it as UTF-8 text, or remove it" + _never(key)) from error


def decode(content: bytes) -> str:
    """UTF-8, with or without a byte order mark, or UTF-16 with one. UnicodeError for anything else."""
    if content[:2] not in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-8-sig")
    text = content.decode("utf-16")
    if not any(character.isascii() and character.isalpha() for character in text):
        # With swapped bytes, English text reads as Chinese characters, which a text encoder for English does not know.
        raise UnicodeError("UTF-16 without any English letters")
    return text


def names(found: Sequence[str], most: int = 3) -> str:
    """ "a.txt, b.txt", "a.txt, b.txt, c.txt and 4 more"."""
    return ", ".join(found[:most]) + (f" and {len(found) - most} more" if len(found) > most else "")


def _never(key: str) -> str:
    return ", or set data.captions=never" if key == "data.folder" else ""


def read_rows(path: Path) -> dict[str, PictureText]:
    """The rows of a table by file_name. NoCaptions if it has other contents, else ValueError or csv.Error."""
    content = decode(path.read_bytes())
    found: dict[str, PictureText] = {}
    for row in _csv_rows(content) if path.suffix == ".csv" else _json_rows(content):
        cells = {str(key): "" if value is None else str(value).strip() for key, value in row.items() if key}
        name = nfc(cells.pop("file_name", "")).removeprefix("./")
        column = next((column for column in TEXT_COLUMNS if column in cells), None)
        if column is not None and not isinstance(row[column], str | None):
            raise ValueError(f"the {column} of {name or 'a row'} is no text: {json.dumps(row[column])[:60]}")
        if not name or column is None:
            kind = ValueError if found else NoCaptions
            raise kind(f"it needs the columns file_name and text{' in every row' if found else ''}")
        text = cells.pop(column)
        # A name with a path is not a picture of this folder: it is reported unchanged and never looked up.
        said = PictureText(text, path.with_name(f"{path.name} ({name.replace('/', '|')})"), cells, path.name)
        if found.setdefault(name, said) != said:
            raise ValueError(f"it has two rows for {name} that differ")
    return found


def _csv_rows(content: str) -> list[dict[str, Any]]:
    reader = csv.DictReader(io.StringIO(content, newline=""), strict=True)
    rows = []
    for row in reader:
        if None in row:
            raise ValueError(
                f"line {reader.line_num} has more cells than the first line; a text with commas needs quotes around it"
            )
        rows.append(row)
    return rows


def _json_rows(content: str) -> Iterator[dict[str, Any]]:
    for line in content.split("\n"):
        if line.strip():
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("every line must be an object")
            yield row
