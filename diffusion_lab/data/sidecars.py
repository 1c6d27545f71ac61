"""Files beside the pictures of a folder: captions in the usual formats, and files that are not read.

The first of these that exists is the caption (training) or the prompt (`job=score`) of a picture `01.png`:

1. its row in `metadata.csv` or else `metadata.jsonl`: columns `file_name` and `text` (or `prompt`, `caption`), as in the
   datasets library;
2. a text file named after the whole file, `01.png.txt`, or else `01.png.caption`;
3. a text file named after its stem, `01.txt`, or else `01.caption`, as in kohya's scripts and web UIs.

Names are compared in Unicode's composed form and suffixes without regard to case; stems too, if no other picture
matches better. Text is UTF-8 or, with a byte order mark, UTF-16. Everything else is named in one line, with the reason
(`Beside.unread`). Listing reads no file; Pillow is not needed.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusion_lab.data.pictures import SUFFIXES as PICTURES
from diffusion_lab.data.pictures import mask_of
from diffusion_lab.records import UserError
from diffusion_lab.values.words import nfc

TABLES = ("metadata.csv", "metadata.jsonl")  # as the datasets library names them
TEXT_COLUMNS = ("text", "prompt", "caption")
SUFFIXES = (".txt", ".caption")  # of text files, the first that exists is used
NOT_CAPTIONS = frozenset({"class_noun.txt"})
MOST_BYTES = 64 * 1024
"""Of a caption. CLIP reads 77 tokens, and none of its 49,408 is longer than 70 bytes: 5 KB at most are read. The rest
of the room is for what web UIs write beside a picture, prompt, settings and all."""
_KOHYA_FOLDER = re.compile(r"(\d+)_(.+)")
_OTHER_TABLES = frozenset({".csv", ".tsv", ".json", ".jsonl", ".parquet", ".yaml", ".yml", ".toml", ".xml"})
_CACHES = frozenset({".npz", ".npy"})


@dataclass(frozen=True, slots=True)
class Said:
    """The text of a picture from a table or a text file."""

    text: str  # "" for an empty cell or file
    where: Path  # the text file, or the table and, in brackets, the picture's name
    slots: Mapping[str, str] = field(default_factory=dict)  # a table's other columns
    table: str = ""  # its name; "": a text file


class NoCaptions(ValueError):
    """A valid table without captions."""


class Beside:
    """The files of one folder that belong to its pictures. `key`: the configuration key, for messages."""

    def __init__(self, folder: Path, pictures: Sequence[Path], key: str = "data.folder") -> None:
        self._folder, self._key = folder, key
        self._pictures = {nfc(path.name): path for path in pictures}
        self._siblings: dict[str, list[Path]] = {}  # by stem
        for path in pictures:
            self._siblings.setdefault(nfc(path.stem), []).append(path)
        known = {*self._pictures, *self._siblings}
        self._alike = Counter(name.casefold() for name in known)
        listed = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
        self._folders = [path for path in listed if path.is_dir() and path.name.casefold() != "__macosx"]
        self._files = [path for path in listed if nfc(path.name) not in self._pictures and path.is_file()]
        self._texts: dict[
            tuple[str, str], list[Path]
        ] = {}  # by name before the suffix, in lower case, and suffix
        for path in self._files:
            suffix = path.suffix.casefold()
            if suffix in SUFFIXES and path.name.casefold() not in NOT_CAPTIONS:
                self._texts.setdefault((nfc(path.stem).casefold(), suffix), []).append(path)

    def of(self, picture: Path) -> Said | None:
        """The text of a picture; None if there is none. UserError if it cannot be used or is ambiguous."""
        row = self._row(picture)
        if row is not None and row.text:
            return row
        file = self.text_file(picture)
        return row if file is None else Said(read_text(file, self._key), file)

    def text_file(self, picture: Path) -> Path | None:
        """The text file of a picture. UserError if two pictures or two files match equally well."""
        if own := self._one(self._named(nfc(picture.name))):
            return own
        shared = self._one(self._named(nfc(picture.stem)))
        if shared is not None:
            others = [
                path.name
                for path in self._siblings.get(nfc(picture.stem), ())
                if path.name != picture.name and not self._named(nfc(path.name)) and not self._row_says(path)
            ]
            if others:
                both = sorted([picture.name, *others])
                raise UserError(
                    f"{self._key}: {shared} could be the text of {' and of '.join(both)}; name it after the whole "
                    f"file, {both[0]}{shared.suffix}, or rename a picture"
                )
        return shared

    def table(self) -> str:
        """The name of the folder's table of captions, "" if there is none. NoCaptions if it contains none."""
        if self._read_table[2]:
            raise NoCaptions(self._read_table[2])
        return self._read_table[0]

    def unmatched(self) -> list[str]:
        """Names in the table that no picture has."""
        loose = {name.casefold() for name in self._pictures}
        return [row for row in self._read_table[1] if row.casefold() not in loose]

    def unread(self, captions: bool = True) -> list[str]:
        """Files that are not read, each with the reason, without system files.

        `captions`: whether captions are used at all. UserError for a damaged table.
        """
        told = self._captions_unread() if captions else []
        if caches := [path.name for path in self._files if path.suffix.casefold() in _CACHES]:
            told.append(f"{names(caches)}: another tool's cache")
        if masks := [path.name for path in self._files if mask_of(path.stem)]:
            told.append(f"{names(masks)}: masks are not used")
        if folders := [f"{path.name}/" for path in self._folders if any(map(_is_picture, _entries(path)))]:
            told.append(f"{names(folders)}: pictures in subfolders")
        if captions and (texts := [f"{path.name}/" for path in self._folders if self._holds_captions(path)]):
            told.append(f"{names(texts)}: captions in subfolders; put them beside the pictures")
        if kohya := _KOHYA_FOLDER.fullmatch(self._folder.resolve().name):
            told.append(
                f"the folder's own name, {kohya[1]} repeats of {kohya[2]!r} to kohya's scripts: see steps.total, "
                "data.identifier and data.class_noun"
            )
        return told

    def _holds_captions(self, folder: Path) -> bool:
        """Whether a text in the subfolder is named after a picture of this one, and not after one of its own."""
        entries = _entries(folder)
        own = {nfc(path.stem) for path in entries if _is_picture(path)}
        texts = {nfc(path.stem) for path in entries if path.suffix.casefold() in SUFFIXES}
        return not texts.isdisjoint({*self._siblings, *self._pictures} - own)

    def _captions_unread(self) -> list[str]:
        table, _, problem = self._read_table
        told = [problem] if problem else []
        if unmatched := self.unmatched():
            told.append(f"{table} has {names(unmatched)}, and no picture has this name")
        claimed = {file for path in self._pictures.values() for file in self._claimed(path)}
        texts = [file for files in self._texts.values() for file in files]
        if orphans := sorted(file.name for file in texts if file not in claimed):
            told.append(f"{names(orphans)}: no picture has this name")
        tables = [p.name for p in self._files if p.suffix.casefold() in _OTHER_TABLES and p.name != table]
        if tables:
            told.append(f"{names(tables)}: {table or ' or '.join(TABLES)} is the only table that is read")
        if twice := [path.name for path in self._pictures.values() if self._said_twice(path)]:
            told.append(f"more than one caption of {names(twice)}: the first is used ({ORDER})")
        return told

    def _named(self, base: str) -> list[Path]:
        """Text files of `base`, with the first existing suffix; without regard to case if that is unambiguous."""
        for suffix in SUFFIXES:
            files = self._texts.get((base.casefold(), suffix), [])
            exact = [path for path in files if nfc(path.stem) == base]
            if exact or (files and self._alike[base.casefold()] == 1):
                return exact or files
        return []

    def _one(self, files: list[Path]) -> Path | None:
        """Of files whose names differ only by Unicode form or case: the first, if their contents are equal."""
        if len(files) > 1 and len({read_text(file, self._key) for file in files}) > 1:
            raise UserError(
                f"{self._key}: {' and '.join(map(str, files))} refer to one picture and differ; remove one of them"
            )
        return files[0] if files else None

    def _claimed(self, picture: Path) -> list[Path]:
        """Every text file that could belong to the picture."""
        bases = dict.fromkeys((nfc(picture.name), nfc(picture.stem)))
        return [
            file
            for base in bases
            for suffix in SUFFIXES
            for file in self._texts.get((base.casefold(), suffix), ())
        ]

    def _said_twice(self, picture: Path) -> bool:
        alone = len(self._siblings[nfc(picture.stem)]) == 1
        files = [file for file in self._claimed(picture) if alone or nfc(file.stem) != nfc(picture.stem)]
        kinds = {(nfc(file.stem).casefold(), file.suffix.casefold()) for file in files}
        return len(kinds) + self._row_says(picture) > 1

    def _row(self, picture: Path) -> Said | None:
        """The table's row of the picture."""
        name = nfc(picture.name)
        if found := self._read_table[1].get(name):
            return found
        return self._loose_rows.get(name.casefold()) if self._alike[name.casefold()] == 1 else None

    def _row_says(self, picture: Path) -> bool:
        row = self._row(picture)
        return row is not None and bool(row.text)

    @functools.cached_property
    def _loose_rows(self) -> dict[str, Said]:
        return {name.casefold(): row for name, row in self._read_table[1].items()}

    @functools.cached_property
    def _read_table(self) -> tuple[str, dict[str, Said], str]:
        """Name, rows by file_name, and why there are none. UserError for a damaged table."""
        for name in TABLES:
            path = self._folder / name
            if path.is_file():
                try:
                    return name, read_rows(path), ""
                except NoCaptions as error:
                    return name, {}, f"{name}: {error}"
                except (OSError, ValueError, csv.Error, RecursionError) as error:
                    raise UserError(
                        f"{self._key}: {path} cannot be used ({error}); correct or remove it{_never(self._key)}"
                    ) from error
        return "", {}, ""


ORDER = "metadata.csv or metadata.jsonl, 01.png.txt, 01.png.caption, 01.txt, 01.caption"


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


def _entries(folder: Path) -> Iterable[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return ()


def _is_picture(path: Path) -> bool:
    return path.suffix.casefold() in PICTURES and not path.name.startswith(".")


# --- tables -------------------------------------------------------------------------------------------------


def read_rows(path: Path) -> dict[str, Said]:
    """The rows of a table by file_name. NoCaptions if it has other contents, else ValueError or csv.Error."""
    content = decode(path.read_bytes())
    found: dict[str, Said] = {}
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
        said = Said(text, path.with_name(f"{path.name} ({name.replace('/', '|')})"), cells, path.name)
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
