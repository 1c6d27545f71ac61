"""Backgrounds: smooth gradients with a few distinct things, laid out by a seed."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from diffusion_lab.miniature.canvas import BIG, Colour, mix

_N = 128  # drawn at this size: soft after enlargement, like an unfocused background


def _gradient(top: Colour, bottom: Colour) -> Image.Image:
    """Vertical gradient [128, 128]."""
    ramp = np.linspace(0, 1, _N)[:, None]
    rows = np.asarray(top) * (1 - ramp) + np.asarray(bottom) * ramp
    return Image.fromarray(np.broadcast_to(rows[:, None, :], (_N, _N, 3)).astype(np.uint8).copy())


def draw_place(place: str, seed: int) -> Image.Image:
    """RGB picture [192, 192] of `place`; `seed` moves its things about."""
    rng = np.random.default_rng(seed)
    u = rng.uniform(size=24)
    image, pen = _start(place, u)
    _DRAW[place](pen, u)
    return image.filter(ImageFilter.BoxBlur(1.0)).resize((BIG, BIG), Image.Resampling.BILINEAR)


_SKY: dict[str, tuple[Colour, Colour]] = {
    "forest": ((150, 190, 140), (54, 92, 48)),
    "beach": ((92, 172, 232), (200, 230, 244)),
    "city": ((178, 190, 206), (142, 146, 152)),
    "mountains": ((88, 142, 214), (204, 224, 244)),
    "library": ((92, 60, 38), (66, 42, 28)),
    "studio": ((176, 178, 184), (132, 134, 142)),
    "night": ((12, 14, 46), (44, 42, 96)),
    "kitchen": ((240, 234, 216), (226, 214, 190)),
}
_STUDIO: tuple[Colour, ...] = (
    (180, 182, 188),
    (166, 178, 192),
    (196, 182, 168),
    (172, 186, 176),
    (186, 172, 184),
)


def _start(place: str, u: np.ndarray) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    top, bottom = _SKY[place]
    if place == "studio":
        top = _STUDIO[int(u[0] * len(_STUDIO))]
        bottom = mix(top, (70, 70, 76), 0.4)
    image = _gradient(top, bottom)
    return image, ImageDraw.Draw(image)


def _forest(pen: ImageDraw.ImageDraw, u: np.ndarray) -> None:
    pen.rectangle((0, 98, _N, _N), fill=(62, 84, 36))
    for i in range(5):
        x, w = i * 28 + 16 * u[i] - 8, 6 + 5 * u[5 + i]
        pen.polygon(
            [(x, 0), (x + w, 0), (x + w + 2, 104), (x - 2, 104)], fill=mix((70, 46, 28), (98, 68, 42), u[i])
        )
        green = mix((34, 84, 36), (84, 136, 56), u[10 + i])
        pen.ellipse((x - 15, -14 + 16 * u[5 + i], x + 19, 18 + 20 * u[5 + i]), fill=green)


def _beach(pen: ImageDraw.ImageDraw, u: np.ndarray) -> None:
    horizon = 52 + 10 * u[0]
    pen.rectangle((0, horizon, _N, 86), fill=(28, 124, 178))
    pen.rectangle((0, horizon + 14, _N, 88), fill=(52, 158, 190))
    pen.polygon([(0, 84), (60, 80), (_N, 86), (_N, _N), (0, _N)], fill=(238, 214, 156))
    sun = 10 + 12 * u[1] if u[2] < 0.5 else 104 + 12 * u[1]
    pen.ellipse((sun - 9, 9, sun + 9, 27), fill=(255, 244, 190))
    x = 112 if u[2] < 0.5 else 12
    pen.line([(x, 92), (x + 3, 60), (x, 32)], fill=(122, 86, 52), width=5)
    for dx, dy in ((-18, 8), (-15, -8), (0, -14), (15, -8), (18, 8)):
        pen.polygon([(x - 3, 32), (x + dx, 32 + dy), (x + 3, 34)], fill=(36, 124, 60))


def _city(pen: ImageDraw.ImageDraw, u: np.ndarray) -> None:
    x = -6.0
    for i in range(6):
        w, top = 20 + 8 * u[i], 4 + 44 * u[6 + i]
        wall = ((150, 92, 76), (112, 118, 132), (172, 152, 124), (92, 98, 116))[int(u[12 + i] * 4)]
        pen.rectangle((x, top, x + w, 106), fill=wall)
        for row in range(int((100 - top) // 15)):
            for column in (0.2, 0.6):
                lit = (244, 222, 146) if (row + int(column * 10) + i) % 3 else (70, 84, 104)
                left, up = x + column * w, top + 5 + 15 * row
                pen.rectangle((left, up, left + w * 0.22, up + 8), fill=lit)
        x += w
    pen.rectangle((0, 106, _N, _N), fill=(88, 88, 92))


def _mountains(pen: ImageDraw.ImageDraw, u: np.ndarray) -> None:
    for i, x in enumerate((8, 118, 62)):
        x, top, half = x + 14 * u[i] - 7, 14 + 18 * u[3 + i] + 8 * (i == 2), 46 + 10 * u[6 + i]
        pen.polygon(
            [(x - half, 104), (x, top), (x + half, 104)], fill=mix((96, 108, 134), (122, 130, 150), u[i])
        )
        snow = [
            (x - half * 0.42, top + 38),
            (x, top),
            (x + half * 0.42, top + 38),
            (x + 8, top + 29),
            (x - 5, top + 39),
        ]
        pen.polygon(snow, fill=(250, 252, 255))
    pen.polygon([(0, 96), (50, 90), (_N, 98), (_N, _N), (0, _N)], fill=(226, 236, 246))


_BOOKS: tuple[Colour, ...] = (
    (168, 48, 44), (42, 84, 134), (206, 166, 72), (52, 112, 74), (122, 62, 112), (214, 202, 176)
)  # fmt: skip


def _library(pen: ImageDraw.ImageDraw, u: np.ndarray) -> None:
    for row in range(4):
        base, x = 30 + 32 * row, -4 - 6 * u[row]
        k = row * 5
        while x < _N:
            k += 1
            w = 6 + 5 * u[k % 24]
            colour = _BOOKS[int(u[(3 * k + 1) % 24] * len(_BOOKS))]
            pen.rectangle((x, base - 18 - 7 * u[(k + 7) % 24], x + w - 1, base), fill=colour)
            x += w
        pen.rectangle((0, base, _N, base + 4), fill=(124, 82, 48))


def _studio(pen: ImageDraw.ImageDraw, u: np.ndarray) -> None:
    """A plain backdrop has nothing on it."""


def _night(pen: ImageDraw.ImageDraw, u: np.ndarray) -> None:
    for i in range(14):
        x, y, r = (u[i] * 997 % 1) * _N, (u[i] * 313 % 1) * 84, 1.2 + 1.2 * u[(i + 5) % 24]
        pen.ellipse((x - r, y - r, x + r, y + r), fill=(248, 246, 220))
    x = 18 + 10 * u[15] if u[16] < 0.5 else 100 + 10 * u[15]
    pen.ellipse((x - 11, 10, x + 11, 32), fill=(246, 238, 198))
    pen.ellipse((x - 5, 6, x + 15, 28), fill=(16, 18, 52))
    pen.polygon([(0, 112), (30, 98), (64, 108), (98, 96), (_N, 110), (_N, _N), (0, _N)], fill=(10, 14, 28))


def _kitchen(pen: ImageDraw.ImageDraw, u: np.ndarray) -> None:
    for i in range(4):
        left = i * 32 + 1
        pen.rectangle((left, 0, left + 29, 36), fill=mix((96, 150, 148), (126, 176, 168), u[0]))
        pen.rectangle((left + 12, 28, left + 17, 31), fill=(232, 226, 206))
    pen.rectangle((0, 84, _N, 91), fill=(150, 106, 70))
    pen.rectangle((0, 91, _N, _N), fill=(204, 190, 166))
    x = 8 + 14 * u[1]
    pen.rectangle((x, 62, x + 18, 84), fill=(200, 58, 50))
    pen.line([(x + 18, 66), (x + 24, 68), (x + 18, 78)], fill=(200, 58, 50), width=3)
    x = 98 + 12 * u[2]
    pen.rectangle((x, 56, x + 14, 84), fill=(214, 216, 220))
    pen.ellipse((x - 1, 52, x + 15, 60), fill=(158, 162, 170))


_DRAW = {
    "forest": _forest,
    "beach": _beach,
    "city": _city,
    "mountains": _mountains,
    "library": _library,
    "studio": _studio,
    "night": _night,
    "kitchen": _kitchen,
}
