"""Reads a user's own prompts: a text file with one per line, or a table with a column `prompt`."""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from diffusion_lab.records import UserError

log = logging.getLogger(__name__)

MOST_LINES = 100_000  # prompts of a file: twice what the largest evaluation draws, read in about a second
MOST_CHARACTERS = 64 * 1024  # per line; the model reads 77 tokens, at most about 5,000 characters
MOST_WARNINGS = 5  # of repeated prompts


@dataclass(frozen=True, slots=True)
class Line:
    """A prompt as written, `{subject}` not yet filled in, and the phrase of each slot."""

    text: str
    slots: Mapping[str, str] = field(default_factory=dict)


def read_lines(path: Path) -> list[Line]:
    """All prompts of a file, see `stream_lines`."""
    return list(stream_lines(path))


def stream_lines(path: Path) -> Iterator[Line]:
    """The prompts of a file, in its order, at most `MOST_LINES`; a repeated text is used once, with a warning.

    Text: one prompt per line, empty lines and lines that begin with # are skipped. `.csv` and `.tsv`: a header
    with a column `prompt`, every other column a slot. UTF-8. Raises UserError, naming file and line. Read line by
    line; only the texts are kept in memory.
    """
    delimiter = {".csv": ",", ".tsv": "\t"}.get(path.suffix.casefold())
    seen = set[str]()
    repeated = 0
    try:
        with open(path, encoding="utf-8-sig") as file:
            numbered = _text(file, path) if delimiter is None else _table(file, delimiter, path)
            for number, line in numbered:
                strange = re.findall(r"\{(?!subject\})[^{}]*\}", line.text)
                if strange:
                    raise UserError(
                        f"prompts.path: {path}, line {number}: {strange[0]} is not known; "
                        "only {subject} is filled in"
                    )
                if line.text in seen:
                    repeated += 1
                    if repeated <= MOST_WARNINGS:
                        log.warning(
                            "prompts.path: %s, line %d: %r occurs twice, it is used once",
                            path, number, line.text,
                        )  # fmt: skip
                    continue
                if len(seen) == MOST_LINES:
                    log.warning(
                        "prompts.path: %s has more than %d prompts; those after line %d are not used",
                        path, MOST_LINES, number - 1,
                    )  # fmt: skip
                    break
                seen.add(line.text)
                yield line
    except FileNotFoundError:
        raise UserError(f"prompts.path: {path} does not exist") from None
    except UnicodeDecodeError as error:
        raise UserError(f"prompts.path: {path} is not UTF-8 text ({error}); save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"prompts.path: {path} cannot be read ({error.strerror or error})") from error
    if repeated > MOST_WARNINGS:
        log.warning("prompts.path: %s: %d more prompts occur twice", path, repeated - MOST_WARNINGS)
    if not seen:
        raise UserError(f"prompts.path: {path} holds no prompt")


def _pieces(file: TextIO, path: Path) -> Iterator[str]:
    """The file's lines, including line ends; a line that is far too long is not read."""
    number = 0
    while line := file.readline(MOST_CHARACTERS + 1):
        number += 1
        if len(line) > MOST_CHARACTERS:
            raise UserError(
                f"prompts.path: {path}, line {number}: has more than {MOST_CHARACTERS:,} characters, but the model "
                "reads 77 tokens; a text file has one prompt per line"
            )
        yield line


def _text(file: TextIO, path: Path) -> Iterator[tuple[int, Line]]:
    for number, line in enumerate(_pieces(file, path), 1):
        text = line.strip()
        if text and not text.startswith("#"):
            yield number, Line(text)


def _table(file: TextIO, delimiter: str, path: Path) -> Iterator[tuple[int, Line]]:
    reader = csv.reader(_pieces(file, path), delimiter=delimiter, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        if header.count("prompt") != 1:
            raise UserError(
                f"prompts.path: {path} needs one column named prompt; its columns are "
                f"{', '.join(header) or 'none'}"
            )
        if len(set(header)) < len(header) or "" in header:
            raise UserError(f"prompts.path: {path}: every column needs a different name: {', '.join(header)}")
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(header):
                raise UserError(
                    f"prompts.path: {path}, line {reader.line_num}: {len(row)} cells for {len(header)} "
                    "columns; quote a prompt that contains the separator"
                )
            cells = dict(zip(header, (cell.strip() for cell in row), strict=True))
            text = cells.pop("prompt")
            if not text:
                raise UserError(f"prompts.path: {path}, line {reader.line_num}: the prompt is empty")
            yield reader.line_num, Line(text, cells)
    except csv.Error as error:
        raise UserError(f"prompts.path: {path}, line {reader.line_num}: {error}") from error
