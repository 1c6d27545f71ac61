"""Captions of the training pictures: a row of a table or a text file tells what `01.jpg` shows (`data.sidecars`).

They take the place of the instance prompt for their picture. The identifier belongs into them, or the model
learns what it stands for from the other pictures alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from diffusion_lab.data.sidecar_files import PictureText
from diffusion_lab.data.sidecars import Sidecars
from diffusion_lab.records import UserError
from diffusion_lab.values.word_match import contains_word


def caption_file(picture: Path) -> Path:
    """Where a picture's caption is looked for first, among the places for one picture alone."""
    return picture.with_suffix(".txt")


def read_caption(picture: Path, beside: Sidecars | None = None) -> PictureText | None:
    """What is said beside a picture, its white space reduced to single spaces; None where nothing is.

    `beside`: the folder's, if other pictures are in it. UserError, naming the file, where it is empty, no text, or
    could be another picture's.
    """
    said = (beside or Sidecars(picture.parent, [picture])).of(picture)
    if said is None:
        return None
    text = " ".join(said.text.split())
    if not text:
        if said.table:
            return None
        raise UserError(
            f"{said.source}: is empty; write a caption, remove the file, or set data.captions=never"
        )
    return PictureText(text, said.source, said.slots, said.table)


def read_captions(
    chosen: Sequence[Path], pictures: Sequence[Path], captions: str
) -> list[PictureText | None]:
    """The caption of each chosen picture of a folder's `pictures`; None where the instance prompt serves.

    UserError where one must be there, or cannot be used.
    """
    if captions == "never" or not chosen:
        return [None] * len(chosen)
    beside = Sidecars(chosen[0].parent, pictures)
    found = [read_caption(picture, beside) for picture in chosen]
    missing = [caption_file(p).name for p, text in zip(chosen, found, strict=True) if text is None]
    if captions == "always" and missing:
        raise UserError(
            f"data.captions=always: {len(missing)} of {len(chosen)} pictures have none: {missing[0]} is missing "
            f"in {chosen[0].parent}; write it, or set data.captions=auto for the instance prompt in its place"
        )
    return found


def caption_warnings(captions: Mapping[Path, str], identifier: str) -> list[str]:
    """What to say of captions (by file) without the identifier: one line, or none."""
    without = [file.name for file, text in captions.items() if not contains_word(identifier, text)]
    if not without:
        return []
    return [
        f"{len(without)} of {len(captions)} captions do not say {identifier} (data.identifier), such as "
        f"{without[0]}: their pictures do not teach what it means"
    ]
