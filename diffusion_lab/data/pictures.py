"""Reads a folder of pictures as found in practice: rotated, transparent, 16 bit, with other files in between.

Listing is cheap and imports no Pillow; decoding does.
"""

from __future__ import annotations

import functools
import hashlib
import io
import logging
import re
import unicodedata
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from diffusion_lab.families.family import Framing
from diffusion_lab.records import Picture, UserError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from diffusion_lab.records import Pixels

log = logging.getLogger(__name__)
MASK = re.compile(r"(?i)(.+)-(mask|cond)label")  # of OneTrainer, with the picture's stem before it

SUFFIXES = frozenset(
    {
        ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".avif", ".bmp",
        ".dib", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pnm",
    }
)  # fmt: skip
UNREADABLE = frozenset(
    {
        ".heic", ".heif", ".hif", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw",
        ".orf", ".rw2", ".psd", ".svg", ".pdf", ".mov", ".mp4", ".jxl",
    }
)  # fmt: skip
"""Picture formats that Pillow alone cannot decode: reported to the user, never skipped silently."""
COMPANIONS = frozenset(
    {
        ".txt", ".caption", ".csv", ".tsv", ".json", ".jsonl", ".yaml", ".yml", ".toml",
        ".md", ".xml", ".html", ".ini", ".db", ".lnk", ".npy", ".npz", ".zip",
    }
)  # fmt: skip
"""Files that are common beside pictures, skipped silently."""
JUNK = frozenset({"thumbs.db", "desktop.ini", "ehthumbs.db", "icon\r", "__macosx"})
KEPT_SHORT_SIDE = 1024
"""Large photos are box-reduced by a whole factor that keeps the short side at or above this, pixels."""


def mask_of(stem: str) -> str | None:
    """The stem of the picture that a file of this stem is the mask of; None where its name says no such thing."""
    found = MASK.fullmatch(stem)
    return found[1] if found else None


def without_masks(pictures: list[Path]) -> list[Path]:
    """`pictures` less the masks (`01-masklabel.png`) of others among them."""
    stems = {path.stem for path in pictures}
    return [path for path in pictures if mask_of(path.stem) not in stems]


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key that puts 2.png before 10.png, whatever the case and the Unicode form of the name."""
    parts = re.split(r"(\d+)", unicodedata.normalize("NFC", name).casefold())
    return tuple((0, int(p), p) if p.isdecimal() else (1, 0, p) for p in parts if p)


def list_pictures(folder: Path, key: str = "data.folder") -> list[Path]:
    """The picture files directly in `folder`, in natural order of their names.

    Hidden files, system files, subfolders and text files are skipped; picture formats that cannot be decoded are
    named in the log.
    Raises UserError, naming `key`, if the folder is missing, is not a folder, or contains no picture.
    """
    folder = Path(folder)
    try:
        entries = sorted(folder.iterdir(), key=lambda path: (natural_key(path.name), path.name))
    except FileNotFoundError:
        raise UserError(f"{key}: {folder} does not exist") from None
    except NotADirectoryError:
        raise UserError(f"{key}: {folder} is a file; give the folder that contains the pictures") from None
    except OSError as error:
        raise UserError(f"{key}: {folder} cannot be read ({error.strerror or error})") from error
    visible = [p for p in entries if not p.name.startswith(".") and p.name.casefold() not in JUNK]
    files = [path for path in visible if path.is_file()]
    pictures = without_masks([path for path in files if path.suffix.casefold() in SUFFIXES])
    unreadable = [path.name for path in files if path.suffix.casefold() in UNREADABLE]
    others = [p.name for p in files if p.suffix.casefold() not in SUFFIXES | UNREADABLE | COMPANIONS]
    if unreadable:
        count = _count(len(unreadable), "file")
        _warn_once(f"{folder}: {count} cannot be decoded; save as JPEG or PNG to use: {_names(unreadable)}")
    if others:
        _warn_once(f"{folder}: skipped, their suffixes are not those of pictures: {_names(others)}")
    if not pictures:
        raise UserError(f"{key}: no pictures in {folder}{_why_empty(visible, files, unreadable)}")
    return pictures


@functools.lru_cache(maxsize=256)
def _warn_once(message: str) -> None:
    """Several checks list the same folder; a problem with it is reported once."""
    log.warning("%s", message)


def _why_empty(visible: list[Path], files: list[Path], unreadable: list[str]) -> str:
    if unreadable:
        return f"; save {_names(unreadable)} as JPEG or PNG"
    if dead := [path.name for path in visible if path.is_symlink() and not path.exists()]:
        return f"; these links point to missing files: {_names(dead)}; copy the pictures themselves there"
    folders = [path.name for path in visible if path.is_dir()]
    if folders:
        return f" itself; did you mean one of its folders: {_names(folders)}?"
    return f" ({_count(len(files), 'other file')}); known suffixes: {' '.join(sorted(SUFFIXES))}"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _names(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def read_picture(path: Path) -> Picture:
    """Decodes one file upright as sRGB: EXIF orientation, alpha over white, 16 bit scaled, first frame.

    The sha256 is of the file's bytes. Raises UserError, naming the file, for anything that is not a complete
    picture, or that decodes to more pixels than Pillow's limit (about 89 million).
    """
    from PIL import Image, UnidentifiedImageError

    path = Path(path)
    try:
        data = path.read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's warnings about unusual metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data)) as image:
                image.load()
                upright = rgb_upright(image)
        short = min(upright.size) // KEPT_SHORT_SIDE
        pixels = np.array(upright.reduce(short) if short > 1 else upright, dtype=np.uint8)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise UserError(
            f"{path}: unpacks to more than {Image.MAX_IMAGE_PIXELS} pixels, which is refused. "
            "Make it smaller or remove it, or set data.on_corrupt=skip to skip such files."
        ) from None
    except Exception as error:  # Pillow's decoders raise different errors: OSError, SyntaxError, ...
        reason = "no picture format is recognised" if isinstance(error, UnidentifiedImageError) else error
        raise UserError(
            f"{path}: cannot be read as a picture ({reason}). "
            "Replace or remove it, or set data.on_corrupt=skip to skip such files."
        ) from error
    return Picture(path=path, sha256=hashlib.sha256(data).hexdigest(), pixels=pixels)


def rgb_upright(image: Image) -> Image:
    """A decoded picture of any mode as RGB, rotated according to its EXIF data."""
    return _upright(image, _rgb(image))


def _upright(source: Image, converted: Image) -> Image:
    """`converted`, rotated according to the EXIF data of `source`; unchanged if the EXIF data cannot be read."""
    from PIL.Image import Transpose

    try:
        orientation = source.getexif().get(0x0112)
    except Exception:  # damaged metadata does not affect the pixels
        return converted
    turn = {
        2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE, 6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90,
    }.get(orientation or 1)  # fmt: skip
    return converted if turn is None else converted.transpose(turn)


def _rgb(image: Image) -> Image:
    """A decoded frame of any mode as mode RGB."""
    from PIL import Image as image_module

    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _deep_grey(image)
    profile = image.info.get("icc_profile")
    if not image.has_transparency_data:
        if image.mode in ("P", "1"):
            image = image.convert("RGB")
        return _srgb(image, profile)
    image = image.convert("RGBA")
    white = image_module.new("RGB", image.size, "white")
    white.paste(_srgb(image.convert("RGB"), profile), mask=image.getchannel("A"))
    return white


def _srgb(image: Image, profile: bytes | None) -> Image:
    """Mode RGB, converted with the embedded ICC profile if it is usable and not sRGB."""
    from PIL import ImageCms

    srgb = ImageCms.createProfile("sRGB")
    if image.mode == "LAB":
        lab = ImageCms.createProfile("LAB")
        return _converted(ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB"))
    space = {"RGB": "RGB ", "CMYK": "CMYK", "L": "GRAY"}.get(image.mode)
    if profile and space:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            described = ImageCms.getProfileDescription(source)
            if source.profile.xcolor_space == space and "srgb" not in described.casefold():
                return _converted(ImageCms.profileToProfile(image, source, srgb, outputMode="RGB"))
        except (ImageCms.PyCMSError, OSError):  # a damaged profile: use the plain conversion
            pass
    return image.convert("RGB")


def _converted(image: Image | None) -> Image:
    assert image is not None  # profileToProfile returns None only when it works in place
    return image


def _deep_grey(image: Image) -> Image:
    """Grey of 16 bits or more, or float, as RGB of 8 bits; full scale maps to 255, no stretching."""
    from PIL import Image as image_module

    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("pixels are not finite")
    if image.mode == "F":
        scales: tuple[float, ...] = (1.0, 255.0, 65535.0)
    elif image.mode == "I":
        scales = (65535.0, 2.0**31 - 1)
    else:
        bits = getattr(image, "tag_v2", {}).get(258, (16,))[0]  # TIFF also has grey of 12 bits
        scales = (2.0**bits - 1,)
    top = next((scale for scale in scales if values.max() <= scale), scales[-1])
    grey = np.rint(np.clip(values / top, 0, 1) * 255).astype(np.uint8)
    return image_module.fromarray(grey).convert("RGB")


def read_pictures(paths: list[Path], on_corrupt: str = "error") -> list[Picture]:
    """Reads `paths` in order; on_corrupt=skip skips files that cannot be read and names them in the log."""
    if on_corrupt not in ("error", "skip"):
        raise UserError(f"data.on_corrupt={on_corrupt!r} is neither error nor skip")
    pictures: list[Picture] = []
    skipped: list[str] = []
    for path in paths:
        try:
            pictures.append(read_picture(path))
        except UserError:
            if on_corrupt == "error":
                raise
            skipped.append(path.name)
    if skipped:
        log.warning("skipped %s that cannot be read: %s", _count(len(skipped), "file"), ", ".join(skipped))
    return pictures


def read_folder(folder: Path, on_corrupt: str = "error") -> list[Picture]:
    """All pictures of `folder`, in natural order. Raises UserError if none can be read."""
    paths = list_pictures(folder)
    pictures = read_pictures(paths, on_corrupt)
    if not pictures:
        raise UserError(f"data.folder: none of the {len(paths)} pictures in {folder} can be read")
    return pictures


def center_crop_resize(pixels: Pixels, resolution: int) -> Pixels:
    """Largest centred square of uint8 [h, w, 3], resized antialiased (Lanczos) to uint8 [r, r, 3]."""
    from PIL import Image

    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = pixels[top : top + side, left : left + side]
    if side == resolution:
        return square.copy()
    # Cropped first: resize(box=...) would let pixels outside of the square into its margin.
    resized = Image.fromarray(np.ascontiguousarray(square)).resize(
        (resolution, resolution), Image.Resampling.LANCZOS
    )
    return np.array(resized, dtype=np.uint8)


def framing(pixels: Pixels, resolution: int) -> Framing:
    """How `fit` cuts the photograph: the corner is that of the square in the photograph resized to `resolution`."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    scale = resolution / side
    top, left = (height - side) // 2, (width - side) // 2
    return Framing(
        original=(height, width),
        crop=(round(top * scale), round(left * scale)),
        target=(resolution, resolution),
    )


def to_tensor(pixels: Pixels) -> Tensor:
    """uint8 [r, r, 3] as float32 [3, r, r] in [-1, 1], the input of a VAE."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).float() / 127.5 - 1.0
