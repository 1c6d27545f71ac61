"""A quick check of a subject's pictures, before anything slow: sizes, types, copies.

Headers are read, and for at most 200 pictures a small version is decoded (JPEG at an eighth of its size). Pictures
that cannot be used are refused with the same error as in the run; pictures of poor quality are named in a warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffusion_lab.data.pictures import list_pictures, natural_key, read_picture, rgb_upright
from diffusion_lab.data.subsets import check_counts, nested_order
from diffusion_lab.records import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from diffusion_lab.config.schema import Data

LOOKED_AT = 200  # pictures for which a small version is decoded
DECODED = 4_000_000  # pixels of a picture that cannot be decoded small
SMALL = 32  # pixels per side of the small version
NAMED = 3  # pictures that a warning names
ENLARGED = 2.0  # factor of enlargement above which a picture is too small
LOST = 0.6  # fraction of a picture outside of the square above which it is named
SAME = 5.0  # mean difference of two small versions, of 255. Saved again or resized: 3 or less; different photos: 15 or more
BLANK = 2.0  # standard deviation of a small version, of 255


@dataclass(frozen=True, slots=True)
class PictureInfo:
    """The result of the check for one picture."""

    path: Path
    width: int
    height: int
    mode: str  # Pillow's
    alpha: bool
    frames: int
    small: NDArray[np.float32] | None  # [SMALL, SMALL, 3] of the centred square; None if not decoded


def inspect_picture(path: Path, *, decode: bool = True) -> PictureInfo:
    """Reads the header and a small version. UserError, as in `read_picture`, for a damaged or incomplete picture."""
    from PIL import Image

    small = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                size, mode = image.size, image.mode
                alpha, frames = image.has_transparency_data, _frames(image)
                if decode:
                    if image.format == "JPEG":
                        image.draft("RGB", (4 * SMALL, 4 * SMALL))
                    if image.width * image.height <= DECODED:
                        image.load()
                        alpha = alpha and _see_through(image)
                        small = _small(rgb_upright(image))
                    elif image.format == "PNG":
                        image.verify()
    except Exception:
        read_picture(path)  # raises the error
        raise
    return PictureInfo(path, *size, mode=mode, alpha=alpha, frames=frames, small=small)


def _see_through(image: Any) -> bool:
    """Whether a decoded picture with an alpha channel or a transparent colour has transparent pixels."""
    return bool(image.convert("RGBA").getchannel("A").getextrema()[0] < 255)


def _frames(image: Any) -> int:
    """The number of frames of an animation. MPO, written by phones, has a second picture but is not an animation."""
    return int(getattr(image, "n_frames", 1)) if image.format in ("GIF", "WEBP", "PNG", "TIFF", "AVIF") else 1


def _small(image: Any) -> NDArray[np.float32]:
    from PIL import Image

    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((SMALL, SMALL), Image.Resampling.BOX), dtype=np.float32)


# --- a subject's folder ---------------------------------------------------------------------------------


def check_subject_pictures(data: Data, resolution: int) -> list[str]:
    """`check_pictures` of the configured folder; the miniature's own subjects need no check."""
    if data.source != "folder":
        return []
    from diffusion_lab.data.subjects import subject_folder, subject_name

    return check_pictures(data, resolution, subject_folder(data, None)[0], subject_name(data))


def check_pictures(data: Data, resolution: int, folder: Path, subject: str) -> list[str]:
    """Warnings about the pictures of `folder` that a run with this configuration reads.

    Raises UserError for a picture that cannot be read or is too large; with data.on_corrupt=skip, only if too few
    are left.
    """
    paths = list_pictures(folder)
    held = check_counts(len(paths), data.n_images, data.n_heldout)
    order = nested_order([path.name for path in paths], subject, data.subset_seed)
    ranked = [paths[i] for i in order]
    first = [*ranked[: data.n_images], *ranked[len(ranked) - held :]]  # the pictures in use come first
    rest = ranked[data.n_images : len(ranked) - held]
    inspected: dict[Path, PictureInfo] = {}
    for number, path in enumerate([*first, *rest]):
        try:
            inspected[path] = inspect_picture(path, decode=number < LOOKED_AT)
        except UserError:
            if data.on_corrupt != "skip":
                raise
    held = check_counts(len(inspected), data.n_images, data.n_heldout)
    readable = [path for path in paths if path in inspected]
    order = nested_order([path.name for path in readable], subject, data.subset_seed)
    looks = [inspected[readable[i]] for i in order]
    train, heldout = looks[: data.n_images], looks[len(looks) - held :]
    warnings = [
        *_sizes([*train, *heldout], resolution),
        *_kinds([*train, *heldout]),
        *_copies(train, heldout),
    ]
    if data.impostors:
        warnings += _among_impostors([*train, *heldout], Path(data.impostors).expanduser(), folder)
    return warnings


def check_headers(paths: Sequence[Path], on_corrupt: str) -> None:
    """UserError for the first file that is not a picture or is too large; nothing is decoded."""
    for path in paths if on_corrupt != "skip" else ():
        inspect_picture(path, decode=False)


def _sizes(looks: Sequence[PictureInfo], resolution: int) -> list[str]:
    warnings = []
    tiny = [one for one in looks if min(one.width, one.height) * ENLARGED < resolution]
    if tiny:
        worst = max(resolution / min(one.width, one.height) for one in tiny)
        warnings.append(
            f"data.folder: {_named(tiny, _size)}: enlarged up to {worst:.0f} times to {resolution} pixels, and so "
            "blurred; take larger pictures, or a lower model.resolution"
        )
    long = [one for one in looks if _cropped_share(one) >= LOST]
    if long:
        warnings.append(
            f"data.folder: {_named(long, _size)}: far from square, and only the square in the middle is used (up to "
            f"{100 * max(map(_cropped_share, long)):.4g} % is lost); crop them to what matters"
        )
    blank = [
        one for one in looks if one.small is not None and float(one.small.std(axis=(0, 1)).max()) < BLANK
    ]
    if blank:
        warnings.append(
            f"data.folder: {_named(blank)}: of a single colour, nothing can be learned from it; remove it"
        )
    return warnings


def _cropped_share(look: PictureInfo) -> float:
    """Fraction of the picture outside of the centred square."""
    return 1 - min(look.width, look.height) / max(look.width, look.height)


def _size(look: PictureInfo) -> str:
    return f"{look.width}x{look.height}"


KINDS: tuple[tuple[Callable[[PictureInfo], bool], str], ...] = (
    (lambda one: one.frames > 1, "animated or of several pages: only the first picture is used"),
    (
        lambda one: one.alpha,
        "partly transparent, which becomes white; add a background if that is wrong",
    ),
    (lambda one: one.mode == "CMYK", "CMYK for print, converted to RGB: check the colours on the sheet"),
    (lambda one: one.mode.startswith(("I", "F")), "of 16 bits or more, reduced to 8"),
    (lambda one: one.mode == "1", "black and white without greys"),
    (
        lambda one: one.mode == "P" and one.frames == 1,
        "with a palette of 256 colours at most; take the original",
    ),
)


def _kinds(looks: Sequence[PictureInfo]) -> list[str]:
    said = []
    for fits, words in KINDS:
        found = [one for one in looks if fits(one)]
        if found:
            said.append(f"data.folder: {_named(found)}: {words}")
    grey = [one for one in looks if _is_grey(one)]
    if grey and len(grey) < len(looks):
        said.append(
            f"data.folder: {_named(grey)}: greyscale among colour pictures; the model learns that too"
        )
    return said


def _is_grey(look: PictureInfo) -> bool:
    if look.mode in ("L", "LA"):
        return True
    return look.small is not None and float(np.ptp(look.small, axis=2).max()) < 2


# --- copies ---------------------------------------------------------------------------------------------


def _copies(train: Sequence[PictureInfo], heldout: Sequence[PictureInfo]) -> list[str]:
    warnings = []
    pairs = _pairs(train, train)
    if pairs:
        warnings.append(
            f"data.folder: {_paired(pairs)}: the same picture, or nearly, which counts twice in training; remove one"
        )
    leaked = _pairs(train, heldout)
    if leaked:
        warnings.append(
            f"data.folder: {_paired(leaked)}: the same picture, or nearly, trained on and held out, so similarity_heldout "
            "would reward a copy; remove one"
        )
    twice = _pairs(heldout, heldout)
    if twice:
        warnings.append(
            f"data.folder: {_paired(twice)}: the same picture, or nearly, held out twice; remove one"
        )
    return warnings


def _among_impostors(own: Sequence[PictureInfo], parent: Path, folder: Path) -> list[str]:
    """Pictures of the subject among those that a run reads of other subjects."""
    from diffusion_lab.data.subjects import IMPOSTOR_SUBJECTS, impostor_pictures

    others: list[PictureInfo] = []
    for place in sorted(path for path in parent.iterdir() if path.is_dir())[: 4 * IMPOSTOR_SUBJECTS]:
        if place.name.startswith(".") or place.samefile(folder):
            continue
        try:
            others += [inspect_picture(path) for path in impostor_pictures(place)]
        except UserError:
            continue  # the run reads it and reports the error
        if len(others) >= LOOKED_AT:
            break
    pairs = _pairs(own, others)
    if not pairs:
        return []
    named = [(one, f"{other.path.parent.name}/{other.path.name}") for one, other in pairs]
    names = _list([f"{one.path.name} and {other}" for one, other in named])
    return [
        f"data.impostors: {names}: the same picture, or nearly, for the subject and for another one; remove the latter"
    ]


def _pairs(
    ones: Sequence[PictureInfo], others: Sequence[PictureInfo]
) -> list[tuple[PictureInfo, PictureInfo]]:
    """Pairs of pictures that are the same, or nearly: saved again, resized, mirrored. Each pair once."""
    left = [one for one in ones if one.small is not None]
    right = [one for one in others if one.small is not None]
    if not left or not right:
        return []
    stacked = np.stack([one.small for one in right if one.small is not None])
    pairs = []
    for number, one in enumerate(left):
        assert one.small is not None
        if float(one.small.std()) < BLANK:
            continue  # of one colour: reported separately
        apart = np.minimum(
            np.abs(stacked - one.small).mean(axis=(1, 2, 3)),
            np.abs(stacked - one.small[:, ::-1]).mean(axis=(1, 2, 3)),
        )
        for place in np.flatnonzero(apart < SAME):
            if ones is others and place <= number:
                continue
            pairs.append((one, right[int(place)]))
    return pairs


def _paired(pairs: Sequence[tuple[PictureInfo, PictureInfo]]) -> str:
    named = (sorted((one.path.name, other.path.name), key=natural_key) for one, other in pairs)
    return _list([f"{one} and {other}" for one, other in named])


def _named(looks: Sequence[PictureInfo], more: Callable[[PictureInfo], str] | None = None) -> str:
    return _list([one.path.name + (f" ({more(one)})" if more else "") for one in looks])


def _list(names: Sequence[str]) -> str:
    left = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {left} more" if left > 0 else "")
