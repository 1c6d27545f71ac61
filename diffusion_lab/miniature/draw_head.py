"""The head: its measures, colours, ears, and skin with soft shading."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from diffusion_lab.miniature.canvas import (
    BIG,
    SIZE,
    SUPER,
    Canvas,
    Colour,
    Frame,
    Points,
    ellipse,
    flat,
    lerp,
    mix,
    points,
)
from diffusion_lab.miniature.identity import Identity
from diffusion_lab.miniature.scene import Scene

Grid = NDArray[np.floating[Any]]  # [64, 64] or [64, 64, 3], on the small grid
_SKIN: tuple[Colour, ...] = ((252, 226, 206), (238, 194, 160), (208, 154, 114), (164, 110, 76), (124, 82, 58))
_HAIR: dict[str, Colour] = {
    "black": (28, 24, 26), "dark_brown": (60, 38, 26), "brown": (104, 66, 38), "auburn": (126, 52, 32),
    "red": (186, 84, 36), "blond": (218, 174, 96), "platinum": (236, 218, 172), "grey": (156, 156, 162),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Mood:
    """How an expression moves the face; lengths in head units, openings relative to the person's own."""

    lift: float = 0.0  # of the mouth's corners
    gap: float = 0.0  # half the mouth's opening
    width: float = 1.0
    teeth: bool = False
    brow_in: float = 0.0  # > 0: inner ends up
    brow_up: float = 0.0
    left_eye: float = 1.0
    right_eye: float = 1.0


MOODS = {
    "smiling": Mood(lift=0.085, gap=0.03, width=1.15, teeth=True),
    "laughing": Mood(lift=0.09, gap=0.12, width=1.2, teeth=True, brow_up=0.03, left_eye=0.72, right_eye=0.72),
    "serious": Mood(),
    "sad": Mood(lift=-0.085, brow_in=0.10, width=0.9, left_eye=0.8, right_eye=0.8),
    "angry": Mood(
        lift=-0.05, gap=0.035, teeth=True, brow_in=-0.13, brow_up=-0.05, left_eye=0.8, right_eye=0.8
    ),
    "surprised": Mood(gap=0.105, width=0.70, brow_up=0.11, left_eye=1.3, right_eye=1.3),
    "winking": Mood(lift=0.08, width=1.08, brow_up=0.02, right_eye=0.0),
}


def skin_colour(identity: Identity) -> Colour:
    """Base colour of the skin."""
    t = identity.skin_tone * (len(_SKIN) - 1)
    i = min(int(t), len(_SKIN) - 2)
    base = mix(_SKIN[i], _SKIN[i + 1], t - i)
    w = identity.skin_warmth - 0.5
    return mix(base, (base[0], base[1] + round(12 * w), base[2] - round(22 * w)), 1.0)


def hair_colour(identity: Identity) -> Colour:
    """Base colour of the hair."""
    base = _HAIR[identity.hair_colour]
    return mix(
        base,
        (255, 236, 200) if identity.hair_shade > 0.5 else (0, 0, 0),
        abs(identity.hair_shade - 0.5) * 0.4,
    )


def outline(identity: Identity, gap: float = 0.0) -> Points:
    """Head's contour [48, 2] in head coordinates; an open mouth (`gap`) lowers the chin."""
    w = half_width(identity)
    y = np.linspace(-1, 1, 25)
    power = lerp(1.7, 3.6, identity.jaw_width)
    blunt = lerp(0.62, 0.42, identity.chin)
    upper = np.sqrt(np.clip(1 - y**2, 0, 1)) ** 0.9
    lower = np.clip(1 - np.abs(y) ** power, 0, 1) ** blunt
    x = w * np.where(y < 0, upper, lower)
    y = np.where(y > 0.4, y + gap * 0.6 * (y - 0.4) / 0.6, y)
    return np.concatenate([np.stack([x, y], 1), np.stack([-x, y], 1)[::-1][1:-1]])


def half_width(identity: Identity) -> float:
    """Half the head's width in head units."""
    return lerp(0.68, 0.84, identity.face_width)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the features lie, in head units."""

    eye_x: float
    eye_y: float
    eye_rx: float
    eye_ry: float
    brow_y: float
    nose_y: float
    nose_w: float
    mouth_y: float
    mouth_w: float
    lip: float


def layout(identity: Identity) -> Layout:
    """Lengths of the face from the person's parameters."""
    w = half_width(identity)
    eye_y = lerp(-0.13, 0.05, identity.eye_height)
    rx = lerp(0.145, 0.205, identity.eye_size)
    nose_y = eye_y + lerp(0.33, 0.45, identity.nose_length)
    return Layout(
        eye_x=w * lerp(0.42, 0.52, identity.eye_distance),
        eye_y=eye_y,
        eye_rx=rx,
        eye_ry=rx * lerp(0.44, 0.68, identity.eye_open),
        brow_y=eye_y - lerp(0.19, 0.29, identity.brow_height),
        nose_y=nose_y,
        nose_w=lerp(0.10, 0.20, identity.nose_width),
        mouth_y=nose_y + lerp(0.19, 0.27, identity.mouth_height),
        mouth_w=lerp(0.20, 0.34, identity.mouth_width),
        lip=lerp(0.028, 0.075, identity.lip_thickness),
    )


def draw_ears(canvas: Canvas, identity: Identity) -> None:
    """Ears; drawn before the head, which covers their inner half."""
    w, skin = half_width(identity), skin_colour(identity)
    r = lerp(0.12, 0.21, identity.ear_size)
    for side in (-1, 1):
        canvas.fill(ellipse(side * w, 0.08, r * 0.75, r * 1.25), mix(skin, (90, 30, 20), 0.12), depth=-0.1)
        canvas.fill(
            ellipse(side * w * 1.02, 0.08, r * 0.4, r * 0.8), mix(skin, (90, 30, 20), 0.3), depth=-0.1
        )


def draw_skin(canvas: Canvas, identity: Identity, scene: Scene) -> None:
    """Head with its shading, computed on the small grid and enlarged: smooth, and fast."""
    frame, at, mood = canvas.frame, layout(identity), MOODS[scene.expression]
    skin = np.asarray(skin_colour(identity), dtype=np.float32) / 255
    light = np.ones((SIZE, SIZE), np.float32)
    axis = np.arange(SIZE) + 0.5
    x, y = _grid(frame)
    side = scene.light_side * 0.10 * (1.9 if scene.lighting == "side" else 1.0)
    light += side * x / frame.width - 0.09 * y * np.abs(y) - 0.13 * (x / frame.width) ** 4

    def blob(bx: float, by: float, rx: float, ry: float) -> Grid:
        """Gaussian [64, 64] of height 1 at a head point, radii in head units."""
        cx, cy = frame.at(points((bx, by)))[0] / SUPER
        u = frame.unit / SUPER
        across = np.exp(-(((axis - cx) / (rx * u)) ** 2))
        down = np.exp(-(((axis - cy) / (ry * u)) ** 2))
        return np.outer(down, across).astype(np.float32)

    bridge = lerp(0.11, 0.26, identity.nose_bridge)
    for s in (-1, 1):
        light -= 0.20 * blob(s * at.eye_x * 0.92, at.eye_y - 0.04, at.eye_rx * 1.25, 0.13)
        light -= bridge * blob(s * at.nose_w * 0.75, (at.eye_y + at.nose_y) / 2, 0.05, 0.2)
        light += 0.07 * blob(s * at.eye_x * 1.1, at.nose_y - 0.1, 0.16, 0.1)
    light += 0.19 * blob(0.0, (at.eye_y + at.nose_y) / 2 + 0.04, 0.06, 0.26)
    light += 0.08 * blob(0.0, -0.5, 0.4, 0.2)
    light -= 0.16 * blob(0.0, at.nose_y + 0.09, at.nose_w * 1.2, 0.06)
    light -= 0.13 * blob(0.0, at.mouth_y + at.lip + mood.gap + 0.08, at.mouth_w * 0.6, 0.05)
    colour: Grid = skin[None, None] * light[..., None]
    blush = np.zeros((SIZE, SIZE), np.float32)
    for s in (-1, 1):
        blush += blob(s * at.eye_x * 1.2, at.nose_y + 0.0, 0.2, 0.13)
    strength = 0.10 + 0.28 * identity.cheek * (0.45 + 0.55 * identity.makeup)
    colour = _tint(colour, blush * strength, (0.82, 0.30, 0.28))
    colour = _tint(colour, 0.16 * blob(0.0, at.nose_y, 0.13, 0.08), (0.80, 0.30, 0.24))
    if identity.beard == "stubble":
        low = np.clip((y - at.nose_y - 0.04) / 0.3, 0, 1) * np.clip((1.02 - y) / 0.1, 0, 1)
        colour = _tint(colour, 0.42 * low, tuple(c / 255 for c in hair_colour(identity)))
    shaded = Image.fromarray((np.clip(colour, 0, 1) * 255).astype(np.uint8)).resize(
        (BIG, BIG), Image.Resampling.BILINEAR
    )
    mask = Image.new("L", (BIG, BIG))
    ImageDraw.Draw(mask).polygon(flat(frame.at(outline(identity, mood.gap), depth=0.0)), fill=255)
    canvas.image.paste(shaded, mask=mask)


def _grid(frame: Frame) -> tuple[Grid, Grid]:
    """Head coordinates x and y of the small picture, each [64, 64]."""
    py, px = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) + 0.5
    dx, dy = (px * SUPER - frame.cx) / frame.unit, (py * SUPER - frame.cy) / frame.unit
    c, s = np.cos(frame.roll), np.sin(frame.roll)
    return np.clip(c * dx + s * dy, -1, 1), np.clip(-s * dx + c * dy, -1.2, 1.2)


def _tint(colour: Grid, weight: Grid, goal: tuple[float, ...]) -> Grid:
    """Move colours [64, 64, 3] towards `goal` by `weight` [64, 64]."""
    w = np.clip(weight, 0, 1)[..., None]
    tinted: Grid = colour * (1 - w) + np.asarray(goal, np.float32) * w
    return tinted
