"""Files beside the pictures of a folder: captions in the usual formats, and files that are not read.

The first of these that exists is the caption (training) or the prompt (`job=score`) of a picture `01.png`:

1. its row in `metadata.csv` or else `metadata.jsonl`: columns `file_name` and `text` (or `prompt`, `caption`), as in the
   datasets library;
2. a text file named after the whole file, `01.png.txt`, or else `01.png.caption`;
3. a text file named after its stem, `01.txt`, or else `01.caption`, as in kohya's scripts and web UIs.

Names are compared in Unicode's composed form and suffixes without regard to case; stems too, if no other picture
matches better. Text is UTF-8 or, with a byte order mark, UTF-16. Everything else is named in one line, with the reason
(`Sidecars.unread`). Listing reads no file; Pillow is not needed.
"""

from __future__ import annotations

import csv
import functools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from diffusion_lab.data.pictures import SUFFIXES as PICTURES
from diffusion_lab.data.pictures import mask_of
from diffusion_lab.data.sidecar_files import (
    NoCaptions,
    PictureText,
    _never,
    names,
    read_rows,
    read_text,
)
from diffusion_lab.records import UserError
from diffusion_lab.values.word_match import nfc

TABLES = ("metadata.csv", "metadata.jsonl")  # as the datasets library names them
SUFFIXES = (".txt", ".caption")  # of text files, the first that exists is used
NOT_CAPTIONS = frozenset({"class_noun.txt"})
_KOHYA_FOLDER = re.compile(r"(\d+)_(.+)")
_OTHER_TABLES = frozenset({".csv", ".tsv", ".json", ".jsonl", ".parquet", ".yaml", ".yml", ".toml", ".xml"})
_CACHES = frozenset({".npz", ".npy"})


class Sidecars:
    """The files of one folder that speak of its pictures. `key`: the configuration's, for messages."""

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

    def of(self, picture: Path) -> PictureText | None:
        """The text of a picture; None if there is none. UserError if it cannot be used or is ambiguous."""
        row = self._row(picture)
        if row is not None and row.text:
            return row
        file = self.text_file(picture)
        return row if file is None else PictureText(read_text(file, self._key), file)

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
        messages = self._captions_unread() if captions else []
        if caches := [path.name for path in self._files if path.suffix.casefold() in _CACHES]:
            messages.append(f"{names(caches)}: another tool's cache")
        if masks := [path.name for path in self._files if mask_of(path.stem)]:
            messages.append(f"{names(masks)}: masks are not used")
        if folders := [f"{path.name}/" for path in self._folders if any(map(_is_picture, _entries(path)))]:
            messages.append(f"{names(folders)}: pictures in subfolders")
        if captions and (texts := [f"{path.name}/" for path in self._folders if self._holds_captions(path)]):
            messages.append(f"{names(texts)}: captions in subfolders; put them beside the pictures")
        if kohya := _KOHYA_FOLDER.fullmatch(self._folder.resolve().name):
            messages.append(
                f"the folder's own name, {kohya[1]} repeats of {kohya[2]!r} to kohya's scripts: see steps.total, "
                "data.identifier and data.class_noun"
            )
        return messages

    def _holds_captions(self, folder: Path) -> bool:
        """Whether a text in the subfolder is named after a picture of this one, and not after one of its own."""
        entries = _entries(folder)
        own = {nfc(path.stem) for path in entries if _is_picture(path)}
        texts = {nfc(path.stem) for path in entries if path.suffix.casefold() in SUFFIXES}
        return not texts.isdisjoint({*self._siblings, *self._pictures} - own)

    def _captions_unread(self) -> list[str]:
        table, _, problem = self._read_table
        messages = [problem] if problem else []
        if unmatched := self.unmatched():
            messages.append(f"{table} has {names(unmatched)}, and no picture has this name")
        claimed = {file for path in self._pictures.values() for file in self._claimed(path)}
        texts = [file for files in self._texts.values() for file in files]
        if orphans := sorted(file.name for file in texts if file not in claimed):
            messages.append(f"{names(orphans)}: no picture has this name")
        tables = [p.name for p in self._files if p.suffix.casefold() in _OTHER_TABLES and p.name != table]
        if tables:
            messages.append(f"{names(tables)}: {table or ' or '.join(TABLES)} is the only table that is read")
        if twice := [path.name for path in self._pictures.values() if self._said_twice(path)]:
            messages.append(f"more than one caption of {names(twice)}: the first is used ({ORDER})")
        return messages

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

    def _row(self, picture: Path) -> PictureText | None:
        """The table's row of the picture."""
        name = nfc(picture.name)
        if found := self._read_table[1].get(name):
            return found
        return self._loose_rows.get(name.casefold()) if self._alike[name.casefold()] == 1 else None

    def _row_says(self, picture: Path) -> bool:
        row = self._row(picture)
        return row is not None and bool(row.text)

    @functools.cached_property
    def _loose_rows(self) -> dict[str, PictureText]:
        return {name.casefold(): row for name, row in self._read_table[1].items()}

    @functools.cached_property
    def _read_table(self) -> tuple[str, dict[str, PictureText], str]:
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


def _entries(folder: Path) -> Iterable[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return ()


def _is_picture(path: Path) -> bool:
    return path.suffix.casefold() in PICTURES and not path.name.startswith(".")
