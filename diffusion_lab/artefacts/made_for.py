"""Determines which family an artefact was made for, and the errors if it differs from the model's."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from diffusion_lab.families import FAMILIES
from diffusion_lab.records import UserError

if TYPE_CHECKING:
    from diffusion_lab.families.family import Family

HEADER = "family"  # key in the header of our artefacts: the family's name
REMEDY = "set model.path to the one it was made for"
CROSS = "its cross-attention reads text"
OTHER_FILE = "the file is damaged or made by a tool that is not known here; copy it again, or convert it"
WIDTHS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "Stable Diffusion XL"}
# Layer names that occur only in these families, with dots or underscores.
SIGNS = {
    "flux": re.compile(r"(^|[._])(double|single|single_transformer)_blocks[._]\d"),
    "sd3": re.compile(r"(^|[._])joint_blocks[._]\d"),
}
UNET = re.compile(r"(^|[._])((down|up|input|output)_blocks[._]\d|mid(dle)?_block[._])")
TRANSFORMER = re.compile(
    r"(^|[._])transformer_blocks[._]\d"
)  # also in a U-Net's attention, after a name that matches `UNET`


def no_fit(where: str, what: str) -> UserError:
    """The error for an artefact of another model."""
    return UserError(f"{where}: does not fit the model ({what}); {REMEDY}")


def other_width(where: str, what: str, theirs: int, ours: int) -> UserError:
    """The error for a different width of the text embeddings."""
    them, us = (f", as in {WIDTHS[size]}" if size in WIDTHS else "" for size in (theirs, ours))
    return no_fit(where, f"{what} {theirs} wide{them}, and this model's text encoder gives {ours}{us}")


def check_header(where: str, header: Mapping[str, str], family: Family) -> None:
    """UserError if the artefact's header names another family."""
    theirs = FAMILIES.get(header.get(HEADER, ""))
    if theirs is not None and theirs is not family:
        raise no_fit(where, f"it was made for {theirs.title}, and this is {family.title}")


def check_names(where: str, keys: Iterable[str], family: Family) -> None:
    """UserError if a file's layers are named as in another family."""
    for key in keys:
        theirs = next((FAMILIES[name] for name, sign in SIGNS.items() if sign.search(key)), None)
        denoiser = (
            "unet" if UNET.search(key) else "transformer" if TRANSFORMER.search(key) else family.denoiser
        )
        if theirs is not None and theirs is not family:
            raise no_fit(where, f"{key} is a layer of {theirs.title}, and this is {family.title}")
        if theirs is None and denoiser != family.denoiser:
            like = " or ".join(one.title for one in FAMILIES.values() if one.denoiser == denoiser)
            raise no_fit(where, f"{key} is a layer of {like}, and this is {family.title}")
