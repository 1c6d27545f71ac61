"""Nested subsets of a subject's photos for training, and the held-out photos that no subset contains."""

from __future__ import annotations

import hashlib
import logging
import unicodedata
from collections.abc import Sequence

from diffusion_lab.records import Picture, UserError

log = logging.getLogger(__name__)

MANY = 22  # minimum number of photos for which eight are held out


def nested_order(names: Sequence[str], subject: str, seed: int) -> list[int]:
    """Indices of `names` in an order that depends only on the subject and the seed.

    Every name is ranked by its hash. The subset of n photos is therefore contained in that of n + 1, the order
    does not depend on how the names are sorted, and adding or removing a photo does not reorder the others.
    """

    def rank(index: int) -> tuple[bytes, int]:
        words = (str(seed), subject, unicodedata.normalize("NFC", names[index]))
        return hashlib.sha256("\0".join(words).encode("utf-8", "surrogateescape")).digest(), index

    return sorted(range(len(names)), key=rank)


def heldout_count(total: int, n_heldout: int | None) -> int:
    """How many of `total` photos are held out; null: 8 for 22 or more, else a fifth."""
    if n_heldout is not None:
        return n_heldout
    return 8 if total >= MANY else max(1, round(total / 5))


def check_counts(total: int, n_images: int, n_heldout: int | None) -> int:
    """Number of held-out photos. Raises UserError if `total` photos are too few for both."""
    if n_images < 1:
        raise UserError(f"data.n_images={n_images}: at least 1 picture is needed to train on")
    if n_heldout is not None and n_heldout < 0:
        raise UserError(f"data.n_heldout={n_heldout}: cannot be negative; 0 holds out no photos")
    held = heldout_count(total, n_heldout)
    left = total - held
    if n_images > left:
        spare = total - n_images
        remedies = [f"set data.n_images={left}{' or less' if left > 1 else ''}"] if left > 0 else []
        if spare >= 0:
            remedies.append(f"set data.n_heldout={spare}{' or less' if spare > 0 else ''}")
        remedies.append(f"add {n_images - left} or more")
        raise UserError(
            f"data.n_images={n_images}, but there are {total} pictures, {held} of them held out as references "
            f"({'the default for data.n_heldout' if n_heldout is None else f'data.n_heldout={n_heldout}'}): "
            f"{', or '.join(remedies)}"
        )
    return held


def split(
    pictures: Sequence[Picture], n_images: int, n_heldout: int | None, *, subject: str, seed: int
) -> tuple[tuple[Picture, ...], tuple[Picture, ...]]:
    """The training photos (the first n of the nested order) and the held-out photos (its end, independent of n).

    A held-out photo that is a copy of any possible training photo is dropped with a warning, for every n alike.
    Raises UserError if there are too few photos.
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
            log.warning("%s is a copy of %s: not used as a held-out photo", picture.path.name, twin.path.name)
    if held and not heldout:
        raise UserError(
            "data.n_heldout: every held-out photo is a copy of another photo; "
            "remove the copies, or set data.n_heldout=0 to hold out none"
        )
    return tuple(pool[:n_images]), tuple(heldout)


def _keys(picture: Picture) -> tuple[str, str]:
    """The hashes of the file and of the pixels: a copy saved again without loss is found too."""
    shape = "x".join(map(str, picture.pixels.shape))
    return picture.sha256, f"{shape} {hashlib.sha256(picture.pixels.tobytes()).hexdigest()}"


def _warn_of_copies(pool: Sequence[Picture]) -> None:
    seen: dict[str, Picture] = {}
    for picture in pool:
        twin = next((seen[key] for key in _keys(picture) if key in seen), None)
        if twin is not None:
            log.warning(
                "%s is a copy of %s: it counts twice in training; remove one",
                picture.path.name,
                twin.path.name,
            )
        for key in _keys(picture):
            seen.setdefault(key, picture)
