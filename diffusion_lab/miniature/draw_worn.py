"""What is worn on the head: glasses, hats, headphones."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from diffusion_lab.miniature.canvas import Canvas, Colour, Points, curve, ellipse, flat, mix, points
from diffusion_lab.miniature.draw_head import half_width, layout
from diffusion_lab.miniature.identity import Identity
from diffusion_lab.miniature.scene import Scene


def draw_accessory(canvas: Canvas, identity: Identity, scene: Scene) -> None:
    """What is worn on the head, over hair and face."""
    w, at = half_width(identity), layout(identity)
    kind = scene.accessory
    if kind in ("glasses", "sunglasses"):
        _glasses(canvas, at.eye_x, at.eye_y + 0.01, at.eye_rx, w, kind == "sunglasses")
    elif kind == "hat":
        _dome(canvas, w, 1.02, 1.34, -0.42, (190, 28, 38))
        _band(canvas, w * 1.5, -0.52, 0.13, (160, 18, 30))
        _band(canvas, w * 1.04, -0.64, 0.09, (250, 228, 170))
    elif kind == "cap":
        _dome(canvas, w, 1.06, 1.2, -0.42, (40, 84, 190))
        brim = curve(
            (-w * 1.02, -0.5),
            (0, -0.66),
            (w * 1.02, -0.5),
            (w * 0.66, -0.36),
            (0, -0.42),
            (-w * 0.66, -0.36),
            n=24,
        )
        canvas.fill(brim, (24, 54, 140))
        canvas.fill(ellipse(0, -0.82, 0.15, 0.13, 12), (240, 240, 244))
    elif kind == "headscarf":
        _scarf(canvas, w)
    elif kind == "earrings":
        for s in (-1, 1):
            canvas.fill(ellipse(s * w * 1.06, 0.44, 0.11, 0.15, 14), (168, 118, 20), depth=0.0)
            canvas.fill(ellipse(s * w * 1.06, 0.43, 0.08, 0.12, 14), (255, 212, 70), depth=0.0)
    elif kind == "headphones":
        a = np.linspace(-1.45, 1.45, 20)
        arc = np.stack([(w + 0.2) * np.sin(a), -1.18 * np.cos(a) + 0.02], 1)
        canvas.line(arc, (40, 42, 48), 0.11, depth=0.0)
        for s in (-1, 1):
            canvas.fill(ellipse(s * (w + 0.08), 0.1, 0.17, 0.3, 16), (40, 42, 48), depth=0.0)
            canvas.fill(ellipse(s * (w + 0.12), 0.1, 0.1, 0.2, 16), (226, 60, 60), depth=0.0)


def _glasses(canvas: Canvas, x: float, y: float, rx: float, w: float, dark: bool) -> None:
    r = rx * 1.28
    frame: Colour = (26, 24, 28) if dark else (62, 40, 26)
    for s in (-1, 1):
        if dark:
            # Lenses let the eyes shine through: the person stays recognisable to a detector.
            _lens(canvas, ellipse(s * x, y + 0.02, r * 1.12, r * 0.86), (22, 22, 32), 0.68)
        rim = ellipse(s * x, y + 0.02 * dark, r * (1.12 if dark else 1.0), r * (0.86 if dark else 1.0))
        canvas.line(np.concatenate([rim, rim[:2]]), frame, 0.045)
        canvas.line(points((s * (x + r), y - 0.03), (s * w * 0.99, y - 0.05)), frame, 0.045)
    canvas.line(curve((-x + r, y - 0.02), (0, y - 0.07), (x - r, y - 0.02), n=6), frame, 0.045)


def _lens(canvas: Canvas, rim: Points, colour: Colour, opacity: float) -> None:
    mask = Image.new("L", canvas.image.size)
    ImageDraw.Draw(mask).polygon(flat(canvas.frame.at(rim)), fill=round(255 * opacity))
    canvas.image.paste(colour, mask=mask)


def _dome(canvas: Canvas, w: float, wide: float, high: float, base: float, colour: Colour) -> None:
    """Crown of a hat over the hair: half width `w * wide + hair`, top at -high."""
    a = np.linspace(-np.pi / 2, np.pi / 2, 20)
    top = np.stack([(w * wide + 0.12) * np.sin(a), base - (high + base) * np.cos(a) ** 0.7], 1)
    canvas.fill(top, colour, depth=0.05)
    shine = np.stack(
        [(w * wide) * np.sin(a[4:11]) * 0.8, base - (high + base) * 0.85 * np.cos(a[4:11]) ** 0.7], 1
    )
    canvas.line(shine, mix(colour, (255, 255, 255), 0.25), 0.07, depth=0.05)


def _band(canvas: Canvas, half: float, y: float, thick: float, colour: Colour) -> None:
    line = curve(
        (-half, y),
        (0, y - 0.05),
        (half, y),
        (half, y + thick),
        (0, y + thick * 0.9),
        (-half, y + thick),
        n=24,
    )
    canvas.fill(line, colour, depth=0.12)


def _scarf(canvas: Canvas, w: float) -> None:
    """A teal scarf around head and chin."""
    a = np.linspace(-2.5, 2.5, 30)
    outer = np.stack([(w + 0.17) * np.sin(a), -1.15 * np.cos(a)], 1)
    inner = np.stack(
        [w * 0.93 * np.sin(a * 0.98), -0.66 * np.cos(a * 0.98) + 0.1 * np.clip(np.cos(a) * -1, 0, 1)], 1
    )
    inner[:, 1] = np.where(inner[:, 1] > 0, inner[:, 1] * 1.45, inner[:, 1])
    frame = canvas.frame
    edge = np.concatenate([frame.at(outer, depth=0.0), frame.at(inner, depth=0.12)[::-1]])
    canvas.pen.polygon(flat(edge), fill=(24, 138, 142))
    ring = np.stack([(w + 0.06) * np.sin(a), -0.95 * np.cos(a)], 1)[6:24]
    canvas.line(ring, (246, 214, 120), 0.06, depth=0.05)
    canvas.fill(
        curve((-0.34, 0.95), (0, 1.02), (0.34, 0.95), (0.4, 1.3), (0, 1.2), (-0.4, 1.3), n=20),
        (18, 110, 116),
        depth=0.05,
    )
