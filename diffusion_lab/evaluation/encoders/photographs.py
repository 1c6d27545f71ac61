"""Finds the subject's face in reference photos that show several faces.

The subject is the person who appears in most of the photos. Every face of every photo is a candidate. Every photo with a
face that is similar enough to be the same person adds 1 to the candidate's score, plus `PROMINENT` times this face's
fraction of the prominence in the photo (size, centre: `detect.prominence`). Appearing in a photo therefore outweighs size:
a person in all photos is chosen over a larger one in up to three quarters of them. If two people appear in all photos, or
there is only one photo, size and centre decide. Photos with a single face are not affected.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from diffusion_lab.evaluation.encoders.detect import Face, prominence
from diffusion_lab.evaluation.encoders.face_boxes import (
    DETAIL,
    DetectedFace,
)

if TYPE_CHECKING:
    from diffusion_lab.records import Picture, Pixels, Subject

log = logging.getLogger(__name__)

CLOSE = 0.05  # if cosines differ by less, the more prominent face is chosen
PROMINENT = 0.5  # weight of a face's fraction of prominence, relative to 1 for appearing in the photo
_NAMED = 3  # photos that a warning names


@dataclass(frozen=True, slots=True)
class Photograph:
    """The faces found in one photo, and the one chosen as the subject's."""

    path: Path
    faces: tuple[Face, ...]  # the most prominent first
    chosen: int | None  # index of the chosen face; None if there is none
    embedding: Tensor  # float32 [d] of the chosen face, NaN if there is none
    likeness: float | None = None  # largest cosine to the chosen faces of the person's other photos
    unlike: bool = False  # `likeness` is below the embedder's threshold for one person


class FindsFaces(Protocol):
    """What is asked of the encoders; see `bank.EncoderBank`."""

    @property
    def same_person(self) -> float: ...

    def all_faces(self, images: Sequence[Pixels], detailed: Sequence[Pixels]) -> list[list[DetectedFace]]: ...


def subject_faces(subject: Subject, bank: FindsFaces, resolution: int) -> dict[str, list[Photograph]]:
    """The faces of the subject's photographs and of the others', by "train", "heldout" and "impostors".

    Training and held-out photos show one person and are used together; for other subjects, each folder is.
    """
    own = _chosen([*subject.train, *subject.heldout], bank, resolution)
    impostors: list[Photograph] = []
    for folder in dict.fromkeys(picture.path.parent for picture in subject.impostors):
        group = [picture for picture in subject.impostors if picture.path.parent == folder]
        impostors += _chosen(group, bank, resolution)
    by_path = {photograph.path: photograph for photograph in impostors}
    n = len(subject.train)
    return {
        "train": own[:n],
        "heldout": own[n:],
        "impostors": [by_path[picture.path] for picture in subject.impostors],
    }


def _chosen(pictures: Sequence[Picture], bank: FindsFaces, resolution: int) -> list[Photograph]:
    from diffusion_lab.data.pictures import center_crop_resize

    if not pictures:
        return []
    fitted = [center_crop_resize(picture.pixels, resolution) for picture in pictures]
    sides = [max(resolution, min(DETAIL, *picture.pixels.shape[:2])) for picture in pictures]
    detailed = [
        small if side == resolution else center_crop_resize(picture.pixels, side)
        for picture, small, side in zip(pictures, fitted, sides, strict=True)
    ]
    seen = bank.all_faces(fitted, detailed)
    return choose([picture.path for picture in pictures], seen, resolution, bank.same_person)


def choose(
    paths: Sequence[Path], seen: Sequence[Sequence[DetectedFace]], side: int, same_person: float
) -> list[Photograph]:
    """One face per photo. ``side``: of the square photos in pixels; ``same_person``: a cosine."""
    finite = [
        [number for number, one in enumerate(some) if bool(one.embedding.isfinite().all())] for some in seen
    ]
    shares = [_shares([one.face for one in some], side) for some in seen]
    rows = [
        [some[number].embedding.double() for number in kept] for some, kept in zip(seen, finite, strict=True)
    ]
    stacked = [torch.stack(some) if some else None for some in rows]
    person = _person(
        stacked, [[share[i] for i in kept] for share, kept in zip(shares, finite, strict=True)], same_person
    )
    width = next((one.embedding.shape[0] for some in seen for one in some), 1)
    choices: list[tuple[int | None, Tensor]] = []
    for picture, some in enumerate(seen):
        number = _in_picture(picture, stacked, person, same_person)
        chosen = finite[picture][number] if number is not None else (0 if some else None)
        nothing = torch.full((width,), torch.nan)
        choices.append((chosen, nothing if chosen is None else some[chosen].embedding))
    everyone = range(len(choices))
    likeness = _likeness([embedding for _, embedding in choices], person if len(person) > 1 else everyone)
    return [
        Photograph(
            path=path,
            faces=tuple(one.face for one in some),
            chosen=chosen,
            embedding=embedding,
            likeness=near,
            unlike=near is not None and near < same_person,
        )
        for path, some, (chosen, embedding), near in zip(paths, seen, choices, likeness, strict=True)
    ]


def _shares(faces: Sequence[Face], side: int) -> list[float]:
    """Each face's fraction of the photo's prominence; they sum to 1."""
    weights = [prominence(face, side, side) for face in faces]
    return [weight / sum(weights) for weight in weights]


def _person(
    stacked: Sequence[Tensor | None], shares: Sequence[Sequence[float]], same_person: float
) -> dict[int, Tensor]:
    """By photo, the face of the person with the highest score; empty if there is no face."""
    best, most = dict[int, Tensor](), -1.0
    for some in stacked:
        for candidate in some if some is not None else ():
            support, members = 0.0, dict[int, Tensor]()
            for picture, others in enumerate(stacked):
                if others is None:
                    continue
                cosines = others @ candidate
                if float(cosines.max()) >= same_person:
                    number = _nearest(cosines)
                    support += 1 + PROMINENT * shares[picture][number]
                    members[picture] = others[number]
            if support > most + 1e-9:  # the first one if equal
                best, most = members, support
    return best


def _in_picture(
    picture: int, stacked: Sequence[Tensor | None], person: Mapping[int, Tensor], same_person: float
) -> int | None:
    """Index of the photo's face that is most similar to the person in the other photos; None if there is none."""
    own = stacked[picture]
    others = [face for number, face in person.items() if number != picture]
    if own is None or not others:
        return None
    cosines = own @ torch.stack(others).T
    if float(cosines.max()) < same_person:
        return None
    return _nearest(cosines.mean(dim=1))


def _nearest(cosines: Tensor) -> int:
    """Index of the largest value, or of a slightly smaller one of a more prominent face, since those come first."""
    return int((cosines >= cosines.max() - CLOSE).nonzero()[0])


def _likeness(chosen: Sequence[Tensor], among: Iterable[int]) -> list[float | None]:
    """Largest cosine of each face to the others ``among`` the photos; None if there is none to compare."""
    of = list(among)
    there = [bool(embedding.isfinite().all()) for embedding in chosen]
    found: list[float | None] = []
    for number, embedding in enumerate(chosen):
        others = [chosen[i] for i in of if i != number and there[i]]
        if not there[number] or not others:
            found.append(None)
        else:
            found.append(float((torch.stack(others).double() @ embedding.double()).max()))
    return found


# --- messages -------------------------------------------------------------------------------------------


def report(photographs: Mapping[str, Sequence[Photograph]]) -> list[str]:
    """Warnings: the reference photos with several faces, and those whose face is unlike all others."""
    own = [*photographs.get("train", ()), *photographs.get("heldout", ())]
    warnings = []
    crowded = [one for one in own if len(one.faces) > 1]
    if crowded:
        places = [f"{one.path.name} ({len(one.faces)} faces, used: {_place(one)})" for one in crowded]
        warnings.append(
            f"{_listed(places)}: several faces; the one that also appears in the other photos is used, else the choice is by size "
            "and centre (framed in samples/training.png); crop a photo if the choice is wrong"
        )
    faces = [one for one in own if one.likeness is not None]
    odd = [one for one in faces if one.unlike]
    if len(odd) > 2 and len(odd) == len(faces):
        warnings.append(
            f"the faces found in the subject's {len(faces)} photos are all unlike each other: is it one person? For "
            "a subject without a face, remove similarity from metrics.names and use clip_image or dino"
        )
    elif odd:
        named = [f"{one.path.name} ({one.likeness:.2f})" for one in odd]
        warnings.append(
            f"{_listed(named)}: the face is unlike that of the other photos (largest cosine in brackets); "
            "replace the photo if it shows another person"
        )
    return warnings


def describe(photographs: Mapping[str, Sequence[Photograph]]) -> dict[str, list[dict[str, object]]]:
    """For the record: in each group, the photos with several faces, or with one that is unlike all others."""
    return {
        group: [
            {
                "file": one.path.name,
                "faces": len(one.faces),
                "box": None if one.chosen is None else [round(v, 1) for v in one.faces[one.chosen].box],
                "likeness": None if one.likeness is None else round(one.likeness, 4),
                "unlike": one.unlike,
            }
            for one in some
            if len(one.faces) > 1 or one.unlike
        ]
        for group, some in photographs.items()
    }


def _place(photograph: Photograph) -> str:
    """The position of the chosen face: "the 2nd from the left"."""
    assert photograph.chosen is not None
    order = sorted(range(len(photograph.faces)), key=lambda number: photograph.faces[number].box[0])
    place = order.index(photograph.chosen) + 1
    ending = {1: "st", 2: "nd", 3: "rd"}.get(place, "th")
    return f"the {place}{ending} from the left"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
