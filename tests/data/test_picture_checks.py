"""What the plan says about a subject's pictures: a folder for every kind, and good ones that stay unnamed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_lab.cli.compose import compose
from diffusion_lab.config.schema import Data
from diffusion_lab.data.picture_checks import check_pictures, inspect_picture
from diffusion_lab.data.subsets import nested_order
from diffusion_lab.jobs import check
from diffusion_lab.miniature.subjects import subject_portrait
from diffusion_lab.plan.defaults import fill_defaults
from diffusion_lab.records import UserError


def photo(number: int, width: int = 96, height: int = 96) -> Image.Image:
    image = Image.fromarray(subject_portrait("anna", number).image)
    return image.resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six good pictures: 00.png to 05.png."""
    place = tmp_path / "anna"
    place.mkdir()
    for number in range(6):
        photo(number).save(place / f"{number:02d}.png")
    return place


def said(folder: Path, *, resolution: int = 64, n_heldout: int = 1, n_images: int | None = None) -> list[str]:
    total = len([path for path in folder.iterdir() if path.is_file()])
    data = Data(
        source="folder", folder=str(folder), class_noun="woman", n_images=n_images or total - n_heldout,
        n_heldout=n_heldout,
    )  # fmt: skip
    return check_pictures(data, resolution, folder, "anna")


def test_good_pictures_are_not_named(folder: Path) -> None:
    assert said(folder) == []


def test_photographs_as_phones_make_them_are_not_named(folder: Path) -> None:
    """3:4, 9:16 and 16:9, JPEG with a rotation in EXIF, MPO."""
    for number, (width, height) in enumerate(((600, 800), (450, 800), (800, 450))):
        exif = Image.Exif()
        exif[0x0112] = 6
        photo(10 + number, width, height).save(folder / f"p{number}.jpg", exif=exif)
    photo(20, 400, 300).save(folder / "q.mpo", save_all=True, append_images=[photo(21, 400, 300)])
    (folder / "q.mpo").rename(folder / "q.jpg")
    assert inspect_picture(folder / "q.jpg").frames == 1
    assert said(folder, resolution=256) != [], "96 pixels enlarged to 256"
    assert said(folder, resolution=128) == []


Save = Callable[[Path], None]


def saved(image: Image.Image, name: str, **options: object) -> Save:
    return lambda folder: image.save(folder / name, **options)  # type: ignore[arg-type]


def grey16(folder: Path) -> None:
    Image.fromarray(np.asarray(photo(9).convert("L")).astype(np.uint16) * 257).save(folder / "x.png")


def animated(name: str) -> Save:
    return saved(photo(9), name, save_all=True, append_images=[photo(10), photo(11)], duration=50)


@pytest.mark.parametrize(
    ("add", "told"),
    [
        (saved(photo(9, 1, 1), "x.png"), "x.png (1x1): enlarged up to 64 times to 64 pixels"),
        (saved(photo(9, 16, 16), "x.jpg"), "x.jpg (16x16): enlarged up to 4 times"),
        (saved(photo(9, 2, 8000), "x.png"), "x.png (2x8000): far from square"),
        (saved(photo(9, 4000, 100), "x.jpg"), "x.jpg (4000x100): far from square, and only the square in the middle is used (up to 97.5 %"),
        (saved(Image.new("RGB", (80, 80), "red"), "x.png"), "x.png: of a single colour"),
        (saved(Image.new("L", (80, 80), 0), "x.bmp"), "x.bmp: of a single colour"),
        (animated("x.gif"), "x.gif: animated or of several pages"),
        (animated("x.webp"), "x.webp: animated or of several pages"),
        (animated("x.png"), "x.png: animated or of several pages"),
        (saved(photo(9).convert("CMYK"), "x.jpg"), "x.jpg: CMYK for print"),
        (grey16, "x.png: of 16 bits or more"),
        (saved(photo(9).convert("1"), "x.png"), "x.png: black and white without greys"),
        (saved(photo(9).quantize(64), "x.png"), "x.png: with a palette"),
        (saved(Image.merge("RGBA", (*photo(9).split(), Image.linear_gradient("L").resize((96, 96)))), "x.png"), "x.png: partly transparent"),
        (saved(photo(9).convert("L"), "x.jpg"), "x.jpg: greyscale among colour pictures"),
        (saved(photo(2), "x.png"), "02.png and x.png: the same picture"),
        (saved(photo(2), "x.jpg", quality=60), "02.png and x.jpg: the same picture"),
        (saved(photo(2, 150, 150), "x.webp", quality=70), "02.png and x.webp: the same picture"),
        (saved(photo(2).transpose(Image.Transpose.FLIP_LEFT_RIGHT), "x.png"), "02.png and x.png: the same picture"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_each_kind_is_named_in_one_line(folder: Path, add: Save, told: str) -> None:
    add(folder)
    lines = said(folder, n_heldout=0)
    names = told.partition(":")[0].split(" (")[0].split(" and ")
    line = next(line for line in lines if told.partition(": ")[2] in line)
    assert all(name in line for name in names), lines
    assert told.split("(")[-1].split(":")[0] in line
    assert line.startswith("data.folder: ")
    assert "\n" not in line


def test_an_alpha_channel_that_hides_nothing_is_not_named(folder: Path) -> None:
    photo(9).convert("RGBA").save(folder / "opaque.png")
    photo(8).convert("RGBA").save(folder / "opaque.webp", lossless=True)
    assert not any("transparent" in line for line in said(folder, n_heldout=0))


def test_many_are_three_names_and_a_count(folder: Path) -> None:
    for number in range(9):
        photo(10 + number, 8, 8).save(folder / f"tiny{number}.png")
    (line,) = [line for line in said(folder, n_heldout=0) if "enlarged" in line]
    assert line.count(".png (8x8)") == 3
    assert "and 6 more" in line


def test_trained_on_and_held_out(folder: Path) -> None:
    """A copy on either side of the split, saved again as JPEG, which a comparison of bytes or pixels would miss."""
    copied = 0
    for number in range(6):
        name = f"copy{number}.jpg"
        photo(number).save(folder / name, quality=70)
        names = sorted(path.name for path in folder.iterdir())
        ranked = [names[i] for i in nested_order(names, "anna", 0)]
        lines = said(folder, n_heldout=2)
        leaked = (name in ranked[-2:]) != (f"{number:02d}.png" in ranked[-2:])
        assert any("trained on and held out" in line for line in lines) == leaked
        assert any("counts twice" in line or "held out twice" in line for line in lines) != leaked
        copied += leaked
        (folder / name).unlink()
    assert copied, "no case of a leak among them"


def test_among_the_impostors(folder: Path, tmp_path: Path) -> None:
    others = tmp_path / "others"
    for name in ("bea", "carla"):
        (others / name).mkdir(parents=True)
        for number in range(3):
            Image.fromarray(subject_portrait(name, number).image).save(others / name / f"{number}.png")
    data = Data(
        source="folder",
        folder=str(folder),
        class_noun="woman",
        n_images=5,
        n_heldout=1,
        impostors=str(others),
    )
    assert check_pictures(data, 64, folder, "anna") == []
    photo(3).save(others / "carla" / "1.png")
    (line,) = check_pictures(data, 64, folder, "anna")
    assert line.startswith("data.impostors: 03.png and carla/1.png: the same picture")


# --- what cannot be read --------------------------------------------------------------------------------


def huge_png(path: Path) -> None:
    """60,000 x 60,000 pixels in a header, and hardly a byte more."""
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    ends = chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + ends)


def truncated(path: Path) -> None:
    whole = path.with_name("whole.png")
    photo(9).save(whole)
    path.write_bytes(whole.read_bytes()[:-200])
    whole.unlink()


def truncated_jpeg(path: Path) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (400, 400, 3), dtype=np.uint8)).save(path, format="JPEG")
    path.write_bytes(path.read_bytes()[:5000])


def truncated_large_png(path: Path) -> None:
    photo(9, 2100, 2100).save(path, format="PNG", compress_level=1)
    path.write_bytes(path.read_bytes()[:-1000])


BROKEN: dict[str, Callable[[Path], object]] = {
    "huge": huge_png,
    "text": lambda path: path.write_text("no picture"),
    "empty": lambda path: path.write_bytes(b""),
    "truncated": truncated,
    "truncated JPEG": truncated_jpeg,
    "truncated large PNG": truncated_large_png,
}


@pytest.mark.parametrize("kind", list(BROKEN))
def test_what_cannot_be_read_is_refused_before_the_run(folder: Path, tmp_path: Path, kind: str) -> None:
    BROKEN[kind](folder / "x.png")
    words = [
        "data=folder",
        f"data.folder={folder}",
        "data.class_noun=woman",
        "data.n_images=6",
        "data.n_heldout=1",
    ]
    config = fill_defaults(compose(words))
    started = time.perf_counter()
    with pytest.raises(UserError, match=r"x\.png.*data\.on_corrupt=skip"):
        check(config, tmp_path / "run")
    assert time.perf_counter() - started < 5
    config.data.on_corrupt = "skip"
    with pytest.raises(UserError, match=r"data.n_images=6, but there are 6 pictures"):
        check(config, tmp_path / "run")
    config.data.n_images = 5
    check(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_images_to_score_are_looked_at_too(folder: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in range(3):
        photo(number).save(images / f"{number}.png")
    huge_png(images / "x.png")
    words = [
        "job=score",
        f"job.images={images}",
        "data=folder",
        f"data.folder={folder}",
        "data.class_noun=woman",
    ]
    with pytest.raises(UserError, match=r"x\.png: unpacks to more than"):
        check(fill_defaults(compose(words)), tmp_path / "run")


def test_a_look_is_fast(tmp_path: Path) -> None:
    """28 photographs of 12 megapixels, as a camera makes them."""
    large = photo(0, 4000, 3000)
    large.save(tmp_path / "00.jpg", quality=90)
    for number in range(1, 28):
        (tmp_path / f"{number:02d}.jpg").hardlink_to(tmp_path / "00.jpg")
    started = time.perf_counter()
    said(tmp_path, resolution=512)
    assert time.perf_counter() - started < 6, "about 1 s alone on a machine"
