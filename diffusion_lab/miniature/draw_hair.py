"""Hair: what hangs behind the head, and what lies on it."""

from __future__ import annotations

import numpy as np

from diffusion_lab.miniature.canvas import Canvas, Colour, Points, curve, ellipse, lerp, mix, points
from diffusion_lab.miniature.draw_head import hair_colour, half_width
from diffusion_lab.miniature.identity import Identity

_LONG = ("long_straight", "long_wavy", "long_curly", "bob", "ponytail")


def draw_back_hair(canvas: Canvas, identity: Identity, covered: bool) -> None:
    """Hair behind head and shoulders; `covered`: hidden by a headscarf."""
    if covered:
        return
    cut, w = identity.hair_cut, half_width(identity)
    hair = hair_colour(identity)
    dark = mix(hair, (0, 0, 0), 0.22)
    v = lerp(0.10, 0.26, identity.hair_volume)
    if cut == "afro":
        r = lerp(1.0, 1.25, identity.hair_volume)
        canvas.fill(_cloud(0, -0.42, r * w * 1.45, r * 0.92, 0.1, 13), hair, depth=-0.2)
    elif cut in ("long_straight", "long_wavy", "long_curly"):
        bottom = lerp(1.35, 1.75, identity.hair_volume)
        y = np.linspace(-0.75, bottom, 24)
        x = (w * 0.97 + v * 1.3 * np.clip((y + 0.55) / 0.9, 0, 1)) * np.clip(
            1 - np.clip(-y - 0.2, 0, 1) ** 2 * 0.8, 0, 1
        )
        if cut == "long_wavy":
            x = x + (0.07 * np.sin(y * 9) + 0.05) * np.clip(y + 0.5, 0, 1)
        if cut == "long_curly":
            x = x + (0.07 * np.abs(np.sin(y * 7)) + 0.16) * np.clip(y + 0.7, 0, 1)
        canvas.fill(np.concatenate([np.stack([x, y], 1), np.stack([-x, y], 1)[::-1]]), dark, depth=-0.2)
    elif cut == "bob":
        y = np.linspace(-0.75, lerp(0.65, 0.98, identity.hair_volume), 16)
        x = w * 0.97 + v * 1.3 * np.clip((y + 0.55) / 0.8, 0, 1)
        x = x * (1 - np.clip(-y - 0.2, 0, 1) ** 2) + 0.06 * np.clip(y, 0, 1)
        canvas.fill(np.concatenate([np.stack([x, y], 1), np.stack([-x, y], 1)[::-1]]), dark, depth=-0.2)
    elif cut == "ponytail":
        s = 1.0 if identity.fringe > 0.5 else -1.0
        tail = curve((s * 0.3, -1.0), (s * (w + 0.42), -0.7), (s * (w + 0.5), 0.2), (s * (w + 0.25), 1.15),
                     (s * (w + 0.12), 0.3), (s * 0.4, -0.4), n=28)  # fmt: skip
        canvas.fill(tail, dark, depth=-0.25)
    elif cut == "bun":
        canvas.fill(ellipse(0, -1.0 - v - 0.14, 0.36, 0.32), dark, depth=-0.2)
        canvas.fill(ellipse(-0.04, -1.05 - v - 0.16, 0.24, 0.18), hair, depth=-0.2)


def draw_front_hair(canvas: Canvas, identity: Identity, covered: bool) -> None:
    """Hair over the forehead and sides; `covered`: only what a hat leaves free."""
    cut, w = identity.hair_cut, half_width(identity)
    hair = hair_colour(identity)
    v = lerp(0.06, 0.2, identity.hair_volume)
    line = lerp(-0.48, -0.68, identity.hairline)
    if cut == "bald":
        _sides(canvas, w, mix(hair, (120, 90, 80), 0.35))
        return
    if cut == "buzz":
        _cap(canvas, w, 0.03, _brow_line(w, line, -0.2), mix(hair, (150, 112, 92), 0.3))
        return
    if cut == "mohawk":
        _sides(canvas, w, mix(hair, (140, 104, 88), 0.45))
        top = -1.25 - v
        canvas.fill(
            points(
                (-0.26, line),
                (-0.3, -1.0),
                (-0.2, top),
                (0, top - 0.08),
                (0.2, top),
                (0.3, -1.0),
                (0.26, line),
            ),
            hair,
            depth=0.1,
        )
        return
    inner = _hairline(identity, w, line)
    if cut in ("curly", "long_curly", "afro"):
        _cap(canvas, w, v * 0.8, inner, hair)
        r = 0.15 + 0.06 * identity.hair_volume
        for a in np.linspace(-1.75, 1.75, 11):
            x, y = (w + v * 0.4) * np.sin(a), -(0.93 + v * 0.5) * np.cos(a)
            canvas.fill(
                ellipse(x, y, r, r, 10),
                mix(hair, (255, 240, 220), 0.05 if int(a * 10) % 2 else 0.12),
                depth=0.0,
            )
        return
    _cap(canvas, w, v, inner, hair)
    if cut in _LONG and cut != "ponytail":
        for s in (-1, 1):
            end = 0.9 if cut == "bob" else 1.3
            strand = curve(
                (s * (w + v * 0.9), -0.35),
                (s * (w + v), 0.3),
                (s * (w + v * 0.8), end),
                (s * (w * 0.93), end - 0.15),
                (s * (w * 0.97), 0.2),
                (s * w * 0.86, -0.42),
                n=22,
            )
            canvas.fill(strand, hair, depth=0.0)
    shine = mix(hair, (255, 246, 228), 0.22)
    arc = np.linspace(-0.9, 0.35, 10)
    outer = np.stack([(w + v * 0.4) * 0.86 * np.sin(arc), -(0.9 + v * 0.6) * np.cos(arc)], 1)
    if not covered:
        canvas.fill(np.concatenate([outer, (outer * np.array([0.97, 0.9]))[::-1]]), shine, depth=0.05)


def _hairline(identity: Identity, w: float, line: float) -> Points:
    """Lower edge of the front hair, from right temple to left."""
    cut = identity.hair_cut
    if cut == "side_part":
        return curve(
            (w * 0.99, -0.02),
            (w * 0.86, -0.36),
            (0.42, line),
            (-0.1, line + 0.12),
            (-w * 0.74, line + 0.2),
            (-w * 0.99, -0.08),
            n=22,
        )
    if cut == "swept":
        return curve(
            (w * 0.99, -0.05),
            (w * 0.9, -0.45),
            (0.3, line - 0.14),
            (-0.3, line - 0.12),
            (-w * 0.9, -0.45),
            (-w * 0.99, -0.05),
            n=22,
        )
    if cut == "pixie":
        return curve(
            (w * 0.99, 0.1),
            (w * 0.84, -0.3),
            (0.3, line + 0.22),
            (-0.25, line + 0.02),
            (-w * 0.8, -0.4),
            (-w * 0.99, 0.12),
            n=22,
        )
    if identity.fringe > 0.65 and identity.noun == "woman" and cut != "afro":
        return curve(
            (w * 0.97, 0.05),
            (w * 0.88, -0.28),
            (0.35, -0.38),
            (0, -0.41),
            (-0.35, -0.38),
            (-w * 0.88, -0.28),
            (-w * 0.97, 0.05),
            n=22,
        )
    if identity.noun == "woman" and cut in _LONG:
        s = 0.25 * (1 if identity.fringe > 0.33 else -1)
        return curve(
            (w * 0.97, 0.05),
            (w * 0.84, -0.36),
            (s + 0.2, line - 0.02),
            (s, line - 0.16),
            (s - 0.2, line - 0.02),
            (-w * 0.84, -0.36),
            (-w * 0.97, 0.05),
            n=24,
        )
    return _brow_line(w, line, -0.12)


def _brow_line(w: float, line: float, temple: float) -> Points:
    return curve((w * 0.99, temple), (w * 0.84, line + 0.14), (0.3, line), (0, line + 0.02), (-0.3, line),
                 (-w * 0.84, line + 0.14), (-w * 0.99, temple), n=22)  # fmt: skip


def _cap(canvas: Canvas, w: float, v: float, inner: Points, colour: Colour) -> None:
    """Fill between the head's top, enlarged by `v`, and the hairline."""
    a = np.linspace(-1.65, 1.65, 24)
    outer = np.stack([(w + v * 0.6) * np.sin(a), -(1.0 + v) * np.cos(a)], 1)
    lower = inner.copy()
    frame = canvas.frame
    # The hairline lies on the face and turns with it, the outer contour does not.
    edge = np.concatenate([frame.at(outer, depth=0.0), frame.at(lower)])
    canvas.pen.polygon(edge.ravel().tolist(), fill=colour)


def _sides(canvas: Canvas, w: float, colour: Colour) -> None:
    for s in (-1, 1):
        strip = points(
            (s * w * 1.01, -0.5),
            (s * w * 1.04, -0.1),
            (s * w * 0.97, 0.08),
            (s * w * 0.9, -0.1),
            (s * w * 0.86, -0.42),
        )
        canvas.fill(strip, colour, depth=0.0)


def _cloud(x: float, y: float, rx: float, ry: float, bump: float, n: int) -> Points:
    """Ellipse [n*6, 2] with a bumpy rim."""
    t = np.linspace(0, 2 * np.pi, n * 6, endpoint=False)
    r = 1 + bump * np.abs(np.sin(t * n / 2))
    return np.stack([x + rx * r * np.cos(t), y + ry * r * np.sin(t)], 1)
