"""Captions of the training photos: a row of a table or a text file describes `01.jpg` (`data.sidecars`).

A caption replaces the instance prompt for its picture. It should contain the identifier; otherwise the model
learns the identifier's meaning from the other pictures only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from diffusion_lab.data.sidecar_files import PictureText
from diffusion_lab.data.sidecars import Sidecars
from diffusion_lab.records import UserError
from diffusion_lab.values.word_match import contains_word


def caption_file(picture: Path) -> Path:
    """The first place in which a picture's own caption is searched for."""
    return picture.with_suffix(".txt")


def read_caption(picture: Path, beside: Sidecars | None = None) -> PictureText | None:
    """The caption of a picture, with white space reduced to single spaces; None if there is none.

    `beside`: the folder's, if other pictures are in it. UserError, naming the file, if it is empty, is not text, or
    could belong to another picture.
    """
    entry = (beside or Sidecars(picture.parent, [picture])).of(picture)
    if entry is None:
        return None
    text = " ".join(entry.text.split())
    if not text:
        if entry.table:
            return None
        raise UserError(
            f"{entry.source}: is empty; write a caption, remove the file, or set data.captions=never"
        )
    return PictureText(text, entry.source, entry.slots, entry.table)


def read_captions(
    chosen: Sequence[Path], pictures: Sequence[Path], captions: str
) -> list[PictureText | None]:
    """The caption of each chosen picture of a folder's `pictures`; None where the instance prompt is used.

    UserError if a required caption is missing, or a caption cannot be used.
    """
    if captions == "never" or not chosen:
        return [None] * len(chosen)
    beside = Sidecars(chosen[0].parent, pictures)
    captions_read = [read_caption(picture, beside) for picture in chosen]
    missing = [caption_file(p).name for p, text in zip(chosen, captions_read, strict=True) if text is None]
    if captions == "always" and missing:
        raise UserError(
            f"data.captions=always: {len(missing)} of {len(chosen)} pictures have none: {missing[0]} is missing "
            f"in {chosen[0].parent}; write it, or set data.captions=auto to use the instance prompt instead"
        )
    return captions_read


def caption_warnings(captions: Mapping[Path, str], identifier: str) -> list[str]:
    """A warning about captions (by file) without the identifier: one line, or none."""
    without = [file.name for file, text in captions.items() if not contains_word(identifier, text)]
    if not without:
        return []
    return [
        f"{len(without)} of {len(captions)} captions do not say {identifier} (data.identifier), such as "
        f"{without[0]}: the model does not learn the identifier from their pictures"
    ]
