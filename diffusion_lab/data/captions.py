"""Captions beside the pictures: `01.txt` tells what `01.jpg` shows, in the words of a prompt.

They take the place of the instance prompt for their picture. The identifier belongs into them, or the model
learns what it stands for from the other pictures alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from diffusion_lab.data.words import stands_in
from diffusion_lab.interfaces import UserError

CAPTIONS = ("auto", "always", "never")
NOT_CAPTIONS = frozenset({"class_noun.txt"})


def caption_file(picture: Path) -> Path:
    """Where a picture's caption would be."""
    return picture.with_suffix(".txt")


def read_caption(picture: Path) -> str | None:
    """The caption beside a picture, its white space reduced to single spaces; None where there is no file.

    UserError, naming the file, where it is empty or no UTF-8 text.
    """
    file = caption_file(picture)
    if file.name in NOT_CAPTIONS or not file.is_file():
        return None
    try:
        text = " ".join(file.read_text(encoding="utf-8-sig").split())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{file}: cannot be read as a caption ({error}); save it as UTF-8 text, or set data.captions=never"
        ) from error
    if not text:
        raise UserError(f"{file}: is empty; write a caption, remove the file, or set data.captions=never")
    return text


def read_captions(pictures: Sequence[Path], captions: str) -> list[str | None]:
    """The caption of each picture; None where the instance prompt serves. UserError where one must be there."""
    if captions == "never":
        return [None] * len(pictures)
    found = [read_caption(picture) for picture in pictures]
    missing = [caption_file(p).name for p, text in zip(pictures, found, strict=True) if text is None]
    if captions == "always" and missing:
        raise UserError(
            f"data.captions=always: {len(missing)} of {len(pictures)} pictures have none: {missing[0]} is missing "
            f"in {pictures[0].parent}; write it, or set data.captions=auto for the instance prompt in its place"
        )
    return found


def caption_warnings(captions: Mapping[Path, str], identifier: str) -> list[str]:
    """What to say of captions (by file) without the identifier: one line, or none."""
    without = [file.name for file, text in captions.items() if not stands_in(identifier, text)]
    if not without:
        return []
    return [
        f"{len(without)} of {len(captions)} captions do not say {identifier} (data.identifier), such as "
        f"{without[0]}: their pictures do not teach what it means"
    ]
