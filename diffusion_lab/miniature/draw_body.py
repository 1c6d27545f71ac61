"""Neck, shoulders and clothes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from diffusion_lab.miniature.canvas import (
    SIZE,
    SUPER,
    Canvas,
    Colour,
    Points,
    curve,
    ellipse,
    flat,
    lerp,
    mix,
)
from diffusion_lab.miniature.draw_head import skin_colour
from diffusion_lab.miniature.identity import Identity
from diffusion_lab.miniature.scene import Scene

CLOTH: dict[str, Colour] = {
    "tshirt": (206, 38, 42), "shirt": (52, 104, 196), "suit": (34, 34, 42), "sweater": (40, 124, 66),
    "dress_shirt": (240, 242, 246), "raincoat": (246, 200, 30), "hoodie": (122, 62, 164),
    "striped": (240, 238, 230),
}  # fmt: skip
_WHITE: Colour = (242, 244, 248)


@dataclass(frozen=True, slots=True)
class Torso:
    """Measures of the body in pixels of the small picture."""

    cx: float
    top: float  # height of the neck's base
    neck: float  # half width
    u: float  # a head unit
    span: float  # half width of the shoulders
    body: Points
    cloth: Colour
    skin: Colour

    @property
    def dark(self) -> Colour:
        """Shaded cloth."""
        return mix(self.cloth, (0, 0, 0), 0.3)


def draw_body(canvas: Canvas, identity: Identity, scene: Scene) -> None:
    """Neck and clothed shoulders below the head; they stay upright when the head turns."""
    frame = canvas.frame
    u, cx = frame.unit / SUPER, frame.cx / SUPER
    chin = frame.cy / SUPER + u * 0.96
    neck = u * lerp(0.34, 0.52, identity.neck_width)
    span = u * lerp(1.45, 1.95, identity.shoulder_width)
    skin = mix(skin_colour(identity), (70, 30, 24), 0.14)
    top = chin + u * 0.2
    shade = mix(skin, (60, 24, 20), 0.2)
    canvas.pixels([(cx - neck, chin - u * 0.5), (cx + neck, chin - u * 0.5), (cx + neck * 1.15, top + 6),
                   (cx - neck * 1.15, top + 6)], shade)  # fmt: skip
    left = curve((cx - span * 1.08, SIZE + 8), (cx - span, top + u * 0.5), (cx - span * 0.62, top + u * 0.16),
                 (cx - neck * 1.1, top - u * 0.08))  # fmt: skip
    body = np.concatenate([left, (left * [-1, 1] + [2 * cx, 0])[::-1]])
    torso = Torso(cx, top, neck, u, span, body, CLOTH[scene.attire], skin)
    canvas.pixels(body, torso.cloth)
    _CLOTHES[scene.attire](canvas, torso)


def _tshirt(canvas: Canvas, t: Torso) -> None:
    canvas.pixels(ellipse(t.cx, t.top - 0.4, t.neck * 1.35, t.u * 0.44), t.dark)
    canvas.pixels(ellipse(t.cx, t.top - 0.4, t.neck * 1.12, t.u * 0.32), t.skin)
    for s in (-1, 1):
        x = t.cx + s * t.span * 0.78
        canvas.pixels(
            [(x, t.top + t.u * 0.6), (x + 0.8, t.top + t.u * 0.6), (x + 0.4, SIZE), (x - 0.4, SIZE)], t.dark
        )


def _collar(canvas: Canvas, t: Torso, colour: Colour, opening: float) -> None:
    """Two collar points with the skin's V between them, `opening` deep in head units."""
    canvas.pixels(
        [(t.cx - t.neck, t.top - 2), (t.cx + t.neck, t.top - 2), (t.cx, t.top + t.u * opening)], t.skin
    )
    for s in (-1, 1):
        canvas.pixels(
            [
                (t.cx + s * t.neck * 1.25, t.top - t.u * 0.2),
                (t.cx + s * t.neck * 0.85, t.top - t.u * 0.12),
                (t.cx, t.top + t.u * opening),
                (t.cx + s * t.neck * 0.75, t.top + t.u * 0.48),
            ],
            colour,
        )


def _buttons(canvas: Canvas, t: Torso, colour: Colour) -> None:
    for y in np.arange(t.top + t.u * 0.5, SIZE, 4.0):
        canvas.pixels(ellipse(t.cx, float(y), 0.6, 0.6, 8), colour)


def _shirt(canvas: Canvas, t: Torso) -> None:
    _collar(canvas, t, mix(t.cloth, (255, 255, 255), 0.35), 0.36)
    canvas.pixels(
        [
            (t.cx - 0.4, t.top + t.u * 0.4),
            (t.cx + 0.4, t.top + t.u * 0.4),
            (t.cx + 0.4, SIZE),
            (t.cx - 0.4, SIZE),
        ],
        t.dark,
    )
    _buttons(canvas, t, _WHITE)


def _suit(canvas: Canvas, t: Torso) -> None:
    c, y, u = t.cx, t.top, t.u
    canvas.pixels([(c - t.neck * 1.2, y - u * 0.15), (c + t.neck * 1.2, y - u * 0.15), (c, SIZE + 6)], _WHITE)
    canvas.pixels(
        [(c - 1.6, y + u * 0.1), (c + 1.6, y + u * 0.1), (c + 2.2, SIZE), (c - 2.2, SIZE)], (176, 28, 44)
    )
    for s in (-1, 1):
        canvas.pixels(
            [
                (c + s * t.neck * 1.25, y - u * 0.2),
                (c + s * t.neck * 2.0, y + u * 0.32),
                (c + s * t.neck * 1.4, y + u * 0.42),
                (c + s * 0.5, SIZE + 4),
            ],
            (66, 66, 78),
        )


def _sweater(canvas: Canvas, t: Torso) -> None:
    roll = mix(t.cloth, (255, 255, 255), 0.18)
    c, y, u, n = t.cx, t.top, t.u, t.neck * 1.2
    canvas.pixels(
        curve(
            (c - n, y - u * 0.28),
            (c, y - u * 0.14),
            (c + n, y - u * 0.28),
            (c + n * 1.1, y + u * 0.14),
            (c, y + u * 0.3),
            (c - n * 1.1, y + u * 0.14),
            n=22,
        ),
        roll,
    )
    for k in (0.62, 0.9):
        yy = y + u * k
        band = [
            (c - t.span * 1.1, yy),
            (c, yy + 1.2),
            (c + t.span * 1.1, yy),
            (c + t.span * 1.1, yy + 1.3),
            (c, yy + 2.5),
            (c - t.span * 1.1, yy + 1.3),
        ]
        _clipped(canvas, t, [band], mix(t.cloth, (0, 0, 0), 0.28))


def _dress_shirt(canvas: Canvas, t: Torso) -> None:
    _collar(canvas, t, (212, 216, 226), 0.62)
    _buttons(canvas, t, (140, 144, 154))


def _raincoat(canvas: Canvas, t: Torso) -> None:
    c, y, u = t.cx, t.top, t.u
    canvas.pixels(
        curve(
            (c - t.neck * 1.9, y + u * 0.1),
            (c - t.neck, y - u * 0.3),
            (c, y - u * 0.05),
            (c + t.neck, y - u * 0.3),
            (c + t.neck * 1.9, y + u * 0.1),
            (c, y + u * 0.5),
            n=24,
        ),
        (214, 160, 12),
    )
    canvas.pixels(
        [(c - 0.6, y + u * 0.3), (c + 0.6, y + u * 0.3), (c + 0.6, SIZE), (c - 0.6, SIZE)], (150, 104, 8)
    )
    for yy in np.arange(y + u * 0.55, SIZE, 5.0):
        canvas.pixels(
            [(c - 3, float(yy)), (c + 3, float(yy)), (c + 3, float(yy) + 1.3), (c - 3, float(yy) + 1.3)],
            (92, 60, 12),
        )


def _hoodie(canvas: Canvas, t: Torso) -> None:
    c, y, u = t.cx, t.top, t.u
    canvas.pixels(
        curve(
            (c - t.neck * 2.1, y + u * 0.2),
            (c - t.neck * 1.3, y - u * 0.36),
            (c, y + u * 0.1),
            (c + t.neck * 1.3, y - u * 0.36),
            (c + t.neck * 2.1, y + u * 0.2),
            (c, y + u * 0.6),
            n=26,
        ),
        t.dark,
    )
    for s in (-1, 1):
        x = c + s * u * 0.22
        canvas.pixels(
            [
                (x - 0.5, y + u * 0.42),
                (x + 0.5, y + u * 0.42),
                (x + 0.6, y + u * 0.95),
                (x - 0.4, y + u * 0.95),
            ],
            _WHITE,
        )


def _striped(canvas: Canvas, t: Torso) -> None:
    heights: list[float] = np.arange(t.top + t.u * 0.18, SIZE, 4.4).tolist()
    bands = [[(0.0, y), (SIZE, y), (SIZE, y + 2.2), (0.0, y + 2.2)] for y in heights]
    _clipped(canvas, t, bands, (24, 48, 102))
    canvas.pixels(ellipse(t.cx, t.top - 0.4, t.neck * 1.4, t.u * 0.3), (24, 48, 102))
    canvas.pixels(ellipse(t.cx, t.top - 0.6, t.neck * 1.2, t.u * 0.2), t.skin)


def _clipped(canvas: Canvas, t: Torso, shapes: list[list[tuple[float, float]]], colour: Colour) -> None:
    """Fill shapes, but only on the clothes."""
    inside, drawn = Image.new("1", canvas.image.size), Image.new("1", canvas.image.size)
    ImageDraw.Draw(inside).polygon(flat(t.body * SUPER), fill=1)
    pen = ImageDraw.Draw(drawn)
    for shape in shapes:
        pen.polygon([(x * SUPER, y * SUPER) for x, y in shape], fill=1)
    canvas.image.paste(colour, mask=ImageChops.logical_and(inside, drawn))


_CLOTHES = {
    "tshirt": _tshirt, "shirt": _shirt, "suit": _suit, "sweater": _sweater, "dress_shirt": _dress_shirt,
    "raincoat": _raincoat, "hoodie": _hoodie, "striped": _striped,
}  # fmt: skip
