"""Nested subsets of a subject's pictures, and the reference pictures that no subset touches."""

from __future__ import annotations

import hashlib
import logging
import unicodedata
from collections.abc import Sequence

from diffusion_lab.records import Picture, UserError

log = logging.getLogger(__name__)

MANY = 22  # from this many pictures on, eight can be spared as references


def nested_order(names: Sequence[str], subject: str, seed: int) -> list[int]:
    """Indices of `names` in an order drawn by the subject and the seed alone.

    Every name is ranked by its own hash, so the subset of n pictures lies inside that of n + 1, the order
    does not depend on how the names are sorted, and adding or removing a picture moves none of the others.
    """

    def rank(index: int) -> tuple[bytes, int]:
        words = (str(seed), subject, unicodedata.normalize("NFC", names[index]))
        return hashlib.sha256("\0".join(words).encode("utf-8", "surrogateescape")).digest(), index

    return sorted(range(len(names)), key=rank)


def heldout_count(total: int, n_heldout: int | None) -> int:
    """How many of `total` pictures are kept as references; null: 8 of 22 or more, else a fifth."""
    if n_heldout is not None:
        return n_heldout
    return 8 if total >= MANY else max(1, round(total / 5))


def check_counts(total: int, n_images: int, n_heldout: int | None) -> int:
    """Number of reference pictures. Raises UserError when `total` pictures cannot serve both."""
    if n_images < 1:
        raise UserError(f"data.n_images={n_images}: at least 1 picture is needed to train on")
    if n_heldout is not None and n_heldout < 0:
        raise UserError(f"data.n_heldout={n_heldout}: cannot be negative; 0 keeps no reference pictures")
    held = heldout_count(total, n_heldout)
    left = total - held
    if n_images > left:
        spare = total - n_images
        remedies = [f"set data.n_images={left}{' or less' if left > 1 else ''}"] if left > 0 else []
        if spare >= 0:
            remedies.append(f"set data.n_heldout={spare}{' or less' if spare > 0 else ''}")
        remedies.append(f"add {n_images - left} or more")
        raise UserError(
            f"data.n_images={n_images}, but there are {total} pictures, {held} of them kept as references "
            f"({'the default for data.n_heldout' if n_heldout is None else f'data.n_heldout={n_heldout}'}): "
            f"{', or '.join(remedies)}"
        )
    return held


def split(
    pictures: Sequence[Picture], n_images: int, n_heldout: int | None, *, subject: str, seed: int
) -> tuple[tuple[Picture, ...], tuple[Picture, ...]]:
    """The pictures trained on (the first n of the nested order) and the references (its end, whatever n).

    A reference that is also anywhere among the pictures an n could train on is dropped with a warning, for
    every n alike. Raises UserError when there are too few pictures.
    """
    held = check_counts(len(pictures), n_images, n_heldout)
    order = [pictures[i] for i in nested_order([p.path.name for p in pictures], subject, seed)]
    pool, end = order[: len(order) - held], order[len(order) - held :]
    _warn_of_copies(pool[:n_images])
    seen = {key: picture for picture in reversed(pool) for key in _keys(picture)}
    heldout: list[Picture] = []
    for picture in end:
        twin = next((seen[key] for key in _keys(picture) if key in seen), None)
        if twin is None:
            heldout.append(picture)
            seen |= dict.fromkeys(_keys(picture), picture)
        else:
            log.warning(
                "%s is a copy of %s: not kept as a reference picture", picture.path.name, twin.path.name
            )
    if held and not heldout:
        raise UserError(
            "data.n_heldout: every reference picture is a copy of another picture; "
            "remove the copies, or set data.n_heldout=0 to go without references"
        )
    return tuple(pool[:n_images]), tuple(heldout)


def _keys(picture: Picture) -> tuple[str, str]:
    """The file's hash, and the pixels': a copy saved again without loss is found too."""
    shape = "x".join(map(str, picture.pixels.shape))
    return picture.sha256, f"{shape} {hashlib.sha256(picture.pixels.tobytes()).hexdigest()}"


def _warn_of_copies(pool: Sequence[Picture]) -> None:
    seen: dict[str, Picture] = {}
    for picture in pool:
        twin = next((seen[key] for key in _keys(picture) if key in seen), None)
        if twin is not None:
            log.warning(
                "%s is a copy of %s: trained on, it counts twice; remove one",
                picture.path.name,
                twin.path.name,
            )
        for key in _keys(picture):
            seen.setdefault(key, picture)
