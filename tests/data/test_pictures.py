"""Odd pictures made on the fly, each read as what a person would see."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, features

from diffusion_lab.data import pictures
from diffusion_lab.data.pictures import (
    center_crop_resize,
    list_pictures,
    read_folder,
    read_picture,
    to_tensor,
)
from diffusion_lab.records import UserError

RED, GREEN, BLUE, WHITE = (220, 40, 30), (30, 180, 60), (40, 60, 200), (255, 255, 255)


def quarters(size: int = 32) -> Image.Image:
    """Red, green over blue, white: tells every rotation and flip apart. Wider than high."""
    pixels = np.zeros((size, size * 2, 3), np.uint8)
    half = size // 2
    pixels[:half, :size], pixels[:half, size:] = RED, GREEN
    pixels[half:, :size], pixels[half:, size:] = BLUE, WHITE
    return Image.fromarray(pixels)


def corners(pixels: np.ndarray) -> list[tuple[int, ...]]:
    h, w = pixels.shape[:2]
    return [tuple(int(v) for v in pixels[y, x]) for y in (h // 4, h - h // 4) for x in (w // 4, w - w // 4)]


def close(found: list[tuple[int, ...]], wanted: list[tuple[int, ...]], tolerance: int = 4) -> bool:
    return bool(np.abs(np.array(found, int) - np.array(wanted, int)).max() <= tolerance)


FORMATS = ["png", "jpg", "jpeg", "webp", "bmp", "tiff", "tif", "gif", "ppm", "JPG", "Png"]


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_listed_format_is_listed_and_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    image = quarters()
    image.save(path, **({"quality": 98, "subsampling": 0} if suffix.lower() in ("jpg", "jpeg") else {}))
    assert list_pictures(tmp_path) == [path]
    picture = read_picture(path)
    assert picture.pixels.dtype == np.uint8
    assert picture.pixels.shape == (32, 64, 3)
    assert close(corners(picture.pixels), [RED, GREEN, BLUE, WHITE], 40 if suffix == "webp" else 4)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff", "webp"])
def test_exif_orientation(tmp_path: Path, suffix: str, orientation: int) -> None:
    """Undoes what a camera does: stores the upright picture turned, and says how in EXIF."""
    inverse = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    stored = quarters()
    if orientation in inverse:
        stored = stored.transpose(inverse[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    stored.save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    picture = read_picture(path)
    assert picture.pixels.shape == (32, 64, 3)
    assert close(corners(picture.pixels), [RED, GREEN, BLUE, WHITE], 30)


def test_damaged_exif_leaves_the_pixels(tmp_path: Path) -> None:
    quarters().save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xffgarbage", quality=98)
    assert read_picture(tmp_path / "a.jpg").pixels.shape == (32, 64, 3)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_on_white(tmp_path: Path, mode: str) -> None:
    """Left half opaque black, right half a fully transparent black that must not show, the edge half-way."""
    rgba = np.zeros((8, 12, 4), np.uint8)
    rgba[:, :4, 3], rgba[:, 4:8, 3] = 255, 128
    image = Image.fromarray(rgba)
    path = tmp_path / "a.png"
    half = 127
    if mode == "P":
        indexed = Image.fromarray(
            np.repeat([[0] * 4 + [1] * 4 + [2] * 4], 8, 0).astype(np.uint8), "L"
        ).convert("P")
        indexed.putpalette([0] * 768)
        indexed.save(path, transparency=bytes([255, 128, 0]))
    else:
        image.convert(mode).save(path)
    pixels = read_picture(path).pixels
    assert close([tuple(pixels[0, x]) for x in (1, 6, 10)], [(0,) * 3, (half,) * 3, WHITE], 1)


def test_a_colour_declared_transparent(tmp_path: Path) -> None:
    quarters().save(tmp_path / "a.png", transparency=RED)
    assert close(corners(read_picture(tmp_path / "a.png").pixels), [WHITE, GREEN, BLUE, WHITE], 0)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "LAB"])
def test_other_modes(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.tiff"
    if mode == "LAB":
        image = ImageCms.profileToProfile(
            quarters(), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
        )
        assert image is not None
    elif mode == "P":
        image = quarters().quantize()
    else:
        image = quarters().convert(mode)
    image.save(path)
    wanted = [RED, GREEN, BLUE, WHITE]
    if mode in ("1", "L"):
        wanted = [(int(v),) * 3 for v in (quarters().convert("L").resize((2, 2), 0)).tobytes()]
    found = corners(read_picture(path).pixels)
    if mode == "1":  # dithered: black and white only, and white stays white
        assert set(sum(found, ())) <= {0, 255}
        assert found[3] == WHITE
    else:
        assert close(found, wanted, 10 if mode == "LAB" else 6)  # Lab of 8 bits is coarse in blue


def test_cmyk_jpeg_is_not_inverted(tmp_path: Path) -> None:
    quarters().convert("CMYK").save(tmp_path / "a.jpg", quality=98)
    assert close(corners(read_picture(tmp_path / "a.jpg").pixels), [RED, GREEN, BLUE, WHITE], 8)


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_sixteen_bit_grey_keeps_its_scale(tmp_path: Path, suffix: str) -> None:
    """Neither clipped at 255 nor stretched: 0, a quarter, half and full scale."""
    values = np.array([[0, 16448, 32896, 65535]], np.uint16).repeat(4, 0)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    assert read_picture(tmp_path / f"a.{suffix}").pixels[0, :, 0].tolist() == [0, 64, 128, 255]
    dark = np.full((4, 4), 257 * 9, np.uint16)
    Image.fromarray(dark).save(tmp_path / f"b.{suffix}")
    assert set(read_picture(tmp_path / f"b.{suffix}").pixels.ravel().tolist()) == {9}


def test_float_grey(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32)).save(tmp_path / "a.tiff")
    assert read_picture(tmp_path / "a.tiff").pixels[0, :, 0].tolist() == [0, 128, 255]
    Image.fromarray(np.array([[0.0, np.nan]], np.float32)).save(tmp_path / "b.tiff")
    with pytest.raises(UserError, match=r"b\.tiff.*not finite"):
        read_picture(tmp_path / "b.tiff")


def test_sixteen_bit_colour(tmp_path: Path) -> None:
    """Pillow does not write it, so the file is put together by hand: one row of three pixels."""
    row = b"\0" + struct.pack(">9H", 65535, 0, 0, 0, 32896, 0, 257, 257, 257)

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    header = struct.pack(">IIBBBBB", 3, 1, 16, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    assert read_picture(tmp_path / "a.png").pixels[0].tolist() == [[255, 0, 0], [0, 128, 0], [1, 1, 1]]


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tiff"])
def test_animated_gives_its_first_frame(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN, BLUE)]
    lossless = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], **lossless)
    with Image.open(tmp_path / f"a.{suffix}") as image:
        assert getattr(image, "n_frames", 1) == 3
    assert close(corners(read_picture(tmp_path / f"a.{suffix}").pixels), [RED] * 4, 4)


def test_icc_profile_is_applied(tmp_path: Path) -> None:
    """A profile whose red and blue primaries are exchanged: read as sRGB, red must turn blue."""
    srgb = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    swapped = bytes(srgb).replace(b"rXYZ", b"tXYZ").replace(b"bXYZ", b"rXYZ").replace(b"tXYZ", b"bXYZ")
    swapped = swapped.replace("sRGB".encode("utf-16-be"), "mine".encode("utf-16-be"))
    image = Image.new("RGB", (8, 8), (255, 0, 0))
    image.save(tmp_path / "swapped.png", icc_profile=swapped)
    image.save(tmp_path / "srgb.png", icc_profile=bytes(srgb))
    image.save(tmp_path / "damaged.png", icc_profile=b"no profile")
    assert close([tuple(read_picture(tmp_path / "swapped.png").pixels[0, 0])], [(0, 0, 255)], 8)
    assert close([tuple(read_picture(tmp_path / "srgb.png").pixels[0, 0])], [(255, 0, 0)], 0)
    assert close([tuple(read_picture(tmp_path / "damaged.png").pixels[0, 0])], [(255, 0, 0)], 0)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tiff"])
def test_truncated_file_is_named(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    path = tmp_path / f"half.{suffix}"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=rf"half\.{suffix}.*data\.on_corrupt=skip"):
        read_picture(path)


@pytest.mark.parametrize("content", [b"", b"just some text, no picture", b"\xff\xd8\xff\xe0", b"<svg></svg>"])
def test_what_is_no_picture_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "text.jpg"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"text\.jpg.*data\.on_corrupt=skip"):
        read_picture(path)


def test_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (200, 200)).save(tmp_path / "bomb.png")
    for limit in (30_000, 15_000):  # Pillow warns above the limit and raises above twice the limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(UserError, match=rf"bomb\.png.*{limit} pixels"):
            read_picture(tmp_path / "bomb.png")


def test_sha256_is_of_the_file(tmp_path: Path) -> None:
    quarters().save(tmp_path / "a.png")
    picture = read_picture(tmp_path / "a.png")
    assert picture.sha256 == hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest()
    assert picture.path == tmp_path / "a.png"


def test_large_photographs_are_reduced_evenly(tmp_path: Path) -> None:
    Image.new("RGB", (2400, 2100), RED).save(tmp_path / "a.bmp")
    assert read_picture(tmp_path / "a.bmp").pixels.shape == (1050, 1200, 3)
    Image.new("RGB", (3000, 2047), RED).save(tmp_path / "b.bmp")
    assert read_picture(tmp_path / "b.bmp").pixels.shape == (2047, 3000, 3)


# --- folders --------------------------------------------------------------------------------------------


def test_listing_is_natural_and_skips_junk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("10.png", "9.jpg", "2.PNG", "b1.webp", "A2.png"):
        (tmp_path / name).touch()
    for name in (
        ".DS_Store",
        "Thumbs.db",
        "._9.jpg",
        ".hidden.png",
        "desktop.ini",
        "class_noun.txt",
        "9.txt",
    ):
        (tmp_path / name).touch()
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x.png").touch()
    (tmp_path / "folder.png").mkdir()
    assert [p.name for p in list_pictures(tmp_path)] == ["2.PNG", "9.jpg", "10.png", "A2.png", "b1.webp"]
    assert not caplog.records
    for name in ("photo.HEIC", "raw.cr2"):
        (tmp_path / name).touch()
    list_pictures(tmp_path)
    assert "photo.HEIC, raw.cr2" in caplog.text
    assert "JPEG or PNG" in caplog.text


def test_listing_does_not_depend_on_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(12):
        (tmp_path / f"img{i}.png").touch()
    wanted = [f"img{i}.png" for i in range(12)]
    assert [p.name for p in list_pictures(tmp_path)] == wanted
    entries = list(tmp_path.iterdir())
    monkeypatch.setattr(Path, "iterdir", lambda self: iter(sorted(entries, reverse=True)))
    assert [p.name for p in list_pictures(tmp_path)] == wanted


def test_folders_without_pictures(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.folder.*does not exist"):
        list_pictures(tmp_path / "missing")
    with pytest.raises(UserError, match=r"data\.folder: no pictures"):
        list_pictures(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=r"1 other file\).*\.jpg"):
        list_pictures(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        list_pictures(tmp_path / "notes.txt")
    (tmp_path / "dog").mkdir()
    with pytest.raises(UserError, match="did you mean one of its folders: dog"):
        list_pictures(tmp_path)
    (tmp_path / "a.heic").touch()
    with pytest.raises(UserError, match=r"save a\.heic as JPEG or PNG"):
        list_pictures(tmp_path)


def test_the_cheap_checks_import_nothing_heavy(tmp_path: Path) -> None:
    quarters().save(tmp_path / "a.png")
    quarters().save(tmp_path / "b.png")
    program = (
        "import sys; from diffusion_lab.config.schema import Data, Prompts\n"
        "from diffusion_lab.data import prompts, subjects, tokens\n"
        f"data = Data(source='folder', folder={str(tmp_path)!r}, class_noun='dog', n_images=1)\n"
        "assert subjects.check_subject(data) == 'dog'\n"
        "assert len(prompts.load_prompts(Prompts(), identifier='customcls', class_noun='man')) == 100\n"
        "heavy = {'PIL', 'torch', 'diffusers', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_corrupt_files_are_refused_or_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for i in range(3):
        quarters().save(tmp_path / f"{i}.png")
    (tmp_path / "bad.jpg").write_text("no picture")
    with pytest.raises(UserError, match=r"bad\.jpg"):
        read_folder(tmp_path)
    assert [p.path.name for p in read_folder(tmp_path, "skip")] == ["0.png", "1.png", "2.png"]
    assert "bad.jpg" in caplog.text
    with pytest.raises(UserError, match=r"data\.on_corrupt"):
        read_folder(tmp_path, "ignore")
    for i in range(3):
        (tmp_path / f"{i}.png").unlink()
    with pytest.raises(UserError, match="none of the 1 pictures"):
        read_folder(tmp_path, "skip")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(tmp_path: Path) -> None:
    quarters().save(tmp_path / "a.png")
    (tmp_path / "a.png").chmod(0)
    with pytest.raises(UserError, match=r"a\.png"):
        read_picture(tmp_path / "a.png")


# --- fitting --------------------------------------------------------------------------------------------


def test_fit_crops_the_centre_and_keeps_the_aspect() -> None:
    """A circle in the middle of a wide picture stays a circle, and the sides are gone."""
    y, x = np.mgrid[:120, :300]
    pixels = np.zeros((120, 300, 3), np.uint8)
    pixels[(y - 59.5) ** 2 + (x - 149.5) ** 2 < 40**2] = 255
    pixels[:, :80] = pixels[:, 220:] = RED
    small = center_crop_resize(pixels, 48)
    assert small.shape == (48, 48, 3)
    inside = small[..., 1] > 127
    assert abs(int(inside.any(0).sum()) - int(inside.any(1).sum())) <= 1
    assert abs(int(inside.any(0).sum()) - 32) <= 1
    assert np.array_equal(small[..., 0], small[..., 1])  # nothing red reached the square
    tall = center_crop_resize(np.ascontiguousarray(pixels.transpose(1, 0, 2)), 48)
    # One axis is resized and clipped before the other, so edges differ by a few grey levels.
    difference = np.abs(tall.astype(int) - small.transpose(1, 0, 2))
    assert difference.max() <= 12
    assert difference.mean() < 0.2


def test_fit_is_antialiased_and_leaves_what_fits() -> None:
    checkers = np.indices((256, 256)).sum(0) % 2 * 255
    pixels = np.repeat(checkers[..., None], 3, 2).astype(np.uint8)
    grey = center_crop_resize(pixels, 32)
    assert (
        np.abs(grey.astype(int) - 127).max() <= 3
    )  # nearest neighbour or plain bicubic would leave 0 or 255
    same = center_crop_resize(pixels, 256)
    assert np.array_equal(same, pixels)
    assert same is not pixels
    assert center_crop_resize(pixels[:8, :8], 64).shape == (64, 64, 3)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 64), st.integers(0, 255))
def test_fit_of_any_shape(height: int, width: int, resolution: int, value: int) -> None:
    out = center_crop_resize(np.full((height, width, 3), value, np.uint8), resolution)
    assert out.shape == (resolution, resolution, 3)
    assert np.abs(out.astype(int) - value).max() <= 1


def test_to_tensor() -> None:
    import torch

    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[0, 1] = (255, 0, 51)
    tensor = to_tensor(pixels)
    assert tensor.dtype == torch.float32
    assert tensor.shape == (3, 4, 4)
    assert tensor.is_contiguous()
    assert torch.allclose(tensor[:, 0, 1], torch.tensor([1.0, -1.0, -0.6]), atol=1e-6)
    assert tensor.min() == -1


def test_tables_of_suffixes_do_not_overlap() -> None:
    assert not pictures.SUFFIXES & pictures.UNREADABLE
    assert not pictures.SUFFIXES & pictures.COMPANIONS
    assert not pictures.UNREADABLE & pictures.COMPANIONS


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow decodes no AVIF")
def test_avif(tmp_path: Path) -> None:
    quarters().save(tmp_path / "a.avif", quality=95)
    assert close(corners(read_folder(tmp_path)[0].pixels), [RED, GREEN, BLUE, WHITE], 12)


# --- real photographs -----------------------------------------------------------------------------------

PHOTOS = os.environ.get("DIFFUSION_LAB_PHOTOS", "")


@pytest.mark.skipif(not PHOTOS, reason="DIFFUSION_LAB_PHOTOS names no folder of subjects' folders")
def test_real_photographs(tmp_path: Path) -> None:
    folders = [path for path in sorted(Path(PHOTOS).iterdir()) if path.is_dir()]
    assert folders
    for folder in folders:
        read = read_folder(folder)
        assert len(read) >= 2
        for picture in read:
            square = center_crop_resize(picture.pixels, 64)
            assert square.std() > 5, picture.path
    rotated = tmp_path / "rotated.jpg"
    first = read[0].path
    shutil.copy(first, rotated)
    with Image.open(first) as image:
        exif = image.getexif()
        exif[0x0112] = 6
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", exif=exif, quality=95)
    rotated.write_bytes(buffer.getvalue())
    plain = read[0].pixels.astype(int)
    assert np.abs(np.rot90(plain, -1) - read_picture(rotated).pixels.astype(int)).mean() < 6
