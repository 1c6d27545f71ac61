"""Geometry and brushes of the renderer: head coordinates, and polygons on a supersampled picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Points = NDArray[np.float64]  # [n, 2], x then y

SUPER = 3  # drawn this much larger, then averaged down: anti-aliasing
SIZE = 64
BIG = SIZE * SUPER


def lerp(low: float, high: float, t: float) -> float:
    """Linear interpolation."""
    return low + (high - low) * t


def mix(a: Colour, b: Colour, t: float) -> Colour:
    """Colour between `a` (t=0) and `b` (t=1), clipped to 0..255."""
    r, g, bl = (int(min(255, max(0, round(x + (y - x) * t)))) for x, y in zip(a, b, strict=True))
    return r, g, bl


def points(*xy: tuple[float, float]) -> Points:
    """Array [n, 2] from pairs."""
    return np.asarray(xy, dtype=np.float64)


def ellipse(x: float, y: float, rx: float, ry: float, n: int = 20, slant: float = 0.0) -> Points:
    """Closed ellipse [n, 2], rotated by `slant` radians."""
    t = np.linspace(0, 2 * np.pi, n, endpoint=False)
    a, b = rx * np.cos(t), ry * np.sin(t)
    return np.stack([x + a * np.cos(slant) - b * np.sin(slant), y + a * np.sin(slant) + b * np.cos(slant)], 1)


def curve(*xy: tuple[float, float], n: int = 16) -> Points:
    """Smooth open line [n, 2] through the given points (Catmull-Rom spline)."""
    p = np.asarray(xy, dtype=np.float64)
    p = np.concatenate([[2 * p[0] - p[1]], p, [2 * p[-1] - p[-2]]])
    t = np.linspace(0, len(p) - 3, n)
    i = np.minimum(t.astype(int), len(p) - 4)
    f = (t - i)[:, None]
    a, b, c, d = p[i], p[i + 1], p[i + 2], p[i + 3]
    line: Points = 0.5 * (
        2 * b + (c - a) * f + (2 * a - 5 * b + 4 * c - d) * f**2 + (3 * b - a - 3 * c + d) * f**3
    )
    return line


@dataclass(frozen=True, slots=True)
class Frame:
    """Head coordinates -> supersampled pixels.

    Head coordinates: x right, y down, origin in the middle, crown at y=-1, chin at y=1; the head's
    half width is `width`. Turning is a rotation of an ellipsoid seen without perspective.
    """

    cx: float
    cy: float
    unit: float
    width: float
    yaw: float
    pitch: float
    roll: float

    def at(self, xy: Points, depth: float | None = None) -> Points:
        """Pixels [n, 2] of head points [n, 2] at `depth` (None: on the face's surface)."""
        x, y = xy[:, 0], xy[:, 1]
        z: Points | float
        if depth is None:
            z = 0.72 * np.sqrt(np.clip(1 - 0.85 * (x / self.width) ** 2 - 0.45 * y**2, 0, 1))
        else:
            z = depth
        px = x * math.cos(self.yaw) + z * math.sin(self.yaw)
        py = y * math.cos(self.pitch) - z * math.sin(self.pitch)
        c, s = math.cos(self.roll), math.sin(self.roll)
        out = np.empty((len(x), 2))
        out[:, 0] = self.cx + self.unit * (c * px - s * py)
        out[:, 1] = self.cy + self.unit * (s * px + c * py)
        return out


class Canvas:
    """An RGB picture under construction with brushes in head coordinates."""

    def __init__(self, image: Image.Image, frame: Frame) -> None:
        self.image = image
        self.frame = frame
        self.pen = ImageDraw.Draw(image)

    def fill(self, xy: Points, colour: Colour, depth: float | None = None) -> None:
        """Fill a polygon given in head coordinates."""
        self.pen.polygon(flat(self.frame.at(xy, depth)), fill=colour)

    def line(self, xy: Points, colour: Colour, width: float, depth: float | None = None) -> None:
        """Stroke a line; `width` in head units."""
        px = max(1, round(width * self.frame.unit))
        self.pen.line(flat(self.frame.at(xy, depth)), fill=colour, width=px, joint="curve")

    def pixels(self, xy: Points | Sequence[tuple[float, float]], colour: Colour) -> None:
        """Fill a polygon given in pixels of the 64-pixel picture."""
        self.pen.polygon(flat(np.asarray(xy, dtype=np.float64) * SUPER), fill=colour)


def flat(xy: Points) -> list[float]:
    """[n, 2] -> x0, y0, x1, y1, ... as Pillow takes it."""
    values: list[float] = xy.ravel().tolist()
    return values
