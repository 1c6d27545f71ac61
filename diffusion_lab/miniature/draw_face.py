"""What lies on the face: eyes, brows, nose, mouth, beard, marks."""

from __future__ import annotations

import numpy as np

from diffusion_lab.miniature.canvas import Canvas, Colour, Points, curve, ellipse, lerp, mix
from diffusion_lab.miniature.draw_head import MOODS, Layout, Mood, hair_colour, layout, outline, skin_colour
from diffusion_lab.miniature.identity import Identity
from diffusion_lab.miniature.scene import Scene

_IRIS: dict[str, Colour] = {
    "brown": (112, 66, 32), "dark": (44, 28, 22), "blue": (58, 124, 206),
    "green": (62, 138, 82), "grey": (124, 138, 148), "amber": (180, 118, 40),
}  # fmt: skip


def draw_features(canvas: Canvas, identity: Identity, scene: Scene) -> None:
    """Everything on the skin. Bad anatomy doubles features, deformity misplaces them."""
    at, mood = layout(identity), MOODS[scene.expression]
    odd = np.zeros(8)
    if scene.quality_kind in ("deformed", "bad_anatomy"):
        odd = np.random.default_rng(scene.place_seed).uniform(-1, 1, 8)
    bent = odd if scene.quality_kind == "deformed" else odd * 0
    _marks(canvas, identity, at)
    _beard(canvas, identity, at, mood)
    _nose(canvas, identity, at, 0.18 * bent[0])
    _mouth(canvas, identity, at, mood, 0.25 * bent[1], 0.12 * bent[2])
    for side, wide in ((-1, mood.left_eye), (1, mood.right_eye)):
        shift = bent[3 + (side > 0)] * 0.28
        size = 1.0 + 0.7 * bent[5] * side
        _eye(canvas, identity, at, wide, side, shift, max(0.35, size))
        _brow(canvas, identity, at, mood, side, shift * -0.6)
    if scene.quality_kind == "bad_anatomy":
        if odd[0] < 0:
            _eye(canvas, identity, at, 1.0, -1, -0.42 - at.eye_y, 1.0, x=0.15 * odd[1])
        _mouth(canvas, identity, at, mood, 0.3 * odd[2], 0.24)
        _eye(canvas, identity, at, 1.0, 1, 0.34, 0.9, x=0.55 * np.sign(odd[3]))


def _eye(
    canvas: Canvas,
    identity: Identity,
    at: Layout,
    wide: float,
    side: int,
    dy: float,
    size: float,
    x: float | None = None,
) -> None:
    """One eye; `wide` is the lids' opening, 0 closed. `dy`, `size` and `x` serve the flaws."""
    cx, cy = (side * at.eye_x if x is None else x), at.eye_y + dy
    slant = -side * lerp(-0.16, 0.30, identity.eye_slant)
    rx, ry = at.eye_rx * size, at.eye_ry * size * wide
    skin = skin_colour(identity)
    lash = mix((44, 26, 22), (12, 8, 8), identity.makeup)
    c, s = np.cos(slant), np.sin(slant)
    t = np.linspace(-1, 1, 11)
    arch = 1 - np.abs(t) ** 2.2

    def lid(height: float) -> Points:
        bx, by = rx * t, -height * arch
        return np.stack([cx + c * bx - s * by, cy + s * bx + c * by], 1)

    heavy = 0.035 + 0.03 * identity.makeup
    if wide < 0.1:
        canvas.line(lid(-0.05), lash, heavy + 0.02)
        return
    if identity.makeup > 0.3:
        shadow = mix(skin, (112, 62, 96), 0.5 * identity.makeup)
        canvas.fill(np.concatenate([lid(ry * 1.75), lid(0.0)[::-1]]), shadow)
    canvas.fill(np.concatenate([lid(ry), lid(-ry * 0.85)[::-1]]), mix((246, 244, 242), skin, 0.14))
    iris = _IRIS[identity.eye_colour]
    r = min(at.eye_rx * size * 0.56, ry * 1.05 + 0.01)
    canvas.fill(ellipse(cx, cy, r, min(r, ry * 0.97), 14), mix(iris, (0, 0, 0), 0.25))
    canvas.fill(ellipse(cx, cy + r * 0.12, r * 0.78, min(r, ry) * 0.72, 14), mix(iris, (255, 255, 255), 0.12))
    canvas.fill(ellipse(cx, cy, r * 0.46, min(r, ry) * 0.5, 10), (10, 8, 10))
    canvas.fill(ellipse(cx - r * 0.3, cy - r * 0.35, 0.038, 0.038, 8), (255, 255, 255))
    canvas.line(lid(ry), lash, heavy)
    canvas.line(lid(-ry * 0.85), mix(skin, (60, 24, 20), 0.6), 0.022)


def _brow(canvas: Canvas, identity: Identity, at: Layout, mood: Mood, side: int, dy: float) -> None:
    thick = lerp(0.025, 0.085, identity.brow_thickness)
    tilt = lerp(-0.07, 0.09, identity.brow_angle)
    y = at.brow_y - mood.brow_up + dy
    colour = mix(hair_colour(identity), (30, 20, 16), 0.55)
    inner, outer = side * (at.eye_x - at.eye_rx * 0.95), side * (at.eye_x + at.eye_rx * 1.15)
    middle = (inner + 2 * outer) / 3
    top = curve(
        (inner, y + tilt - mood.brow_in), (middle, y - 0.05 - tilt * 0.4), (outer, y + 0.05 - tilt), n=9
    )
    low = top[::-1] + np.stack([np.zeros(9), thick * np.linspace(0.3, 1, 9)], 1)
    canvas.fill(np.concatenate([top, low]), colour)


def _nose(canvas: Canvas, identity: Identity, at: Layout, dx: float) -> None:
    skin = skin_colour(identity)
    dark, w, y = mix(skin, (60, 20, 14), 0.5), at.nose_w, at.nose_y
    canvas.line(
        curve(
            (dx - w, y - 0.04),
            (dx - w * 0.8, y + 0.035),
            (dx, y + 0.06),
            (dx + w * 0.8, y + 0.035),
            (dx + w, y - 0.04),
        ),
        dark,
        0.022,
    )
    for s in (-1, 1):
        canvas.fill(ellipse(dx + s * w * 0.52, y + 0.035, w * 0.25, 0.022, 8), mix(skin, (50, 12, 8), 0.7))
    canvas.fill(ellipse(dx, y - 0.03, w * 0.36, 0.04, 10), mix(skin, (255, 248, 240), 0.28))


def _mouth(canvas: Canvas, identity: Identity, at: Layout, mood: Mood, dx: float, dy: float) -> None:
    w, y, lip, gap = at.mouth_w * mood.width, at.mouth_y + dy, at.lip, mood.gap
    skin = skin_colour(identity)
    red = mix(mix(skin, (150, 62, 58), 0.5), (196, 28, 52), 0.85 * identity.lip_red)
    left, right = (dx - w, y - mood.lift), (dx + w, y - mood.lift)
    drop = mood.lift * 0.35
    upper_out = curve(left, (dx - w * 0.4, y - gap * 0.5 - lip * 1.1), (dx, y - gap * 0.5 - lip * 0.8),
                      (dx + w * 0.4, y - gap * 0.5 - lip * 1.1), right)  # fmt: skip
    upper_in = curve(left, (dx, y - gap * 0.5 + drop * 0.3), right)
    lower_in = curve(left, (dx, y + gap * 1.5 + drop * 0.6), right)
    lower_out = curve(left, (dx, y + gap * 1.5 + drop + lip * 1.6), right)
    canvas.fill(np.concatenate([upper_out, lower_out[::-1]]), red)
    if gap > 0:
        canvas.fill(np.concatenate([upper_in, lower_in[::-1]]), (88, 18, 24))
        if mood.teeth:
            teeth = upper_in * 0.45 + lower_in * 0.55 if gap > 0.06 else lower_in * 0.9 + upper_in * 0.1
            canvas.fill(np.concatenate([upper_in[1:-1], teeth[1:-1][::-1]]), (250, 248, 242))
        if gap > 0.1:
            canvas.fill(ellipse(dx, y + gap * 1.2, w * 0.45, gap * 0.35, 10), (206, 88, 92))
    else:
        canvas.line(upper_in, mix(red, (40, 0, 0), 0.65), 0.024)


def _marks(canvas: Canvas, identity: Identity, at: Layout) -> None:
    """Freckles, mole and wrinkles."""
    skin = skin_colour(identity)
    if identity.freckles > 0.7:
        for i in range(7):
            for s in (-1, 1):
                x = s * (at.nose_w + 0.06 + 0.055 * i * (1 - 0.35 * (i % 2)))
                y = at.nose_y - 0.09 + 0.055 * (i % 3) + 0.02 * s
                canvas.fill(ellipse(x, y, 0.022, 0.022, 6), mix(skin, (128, 62, 24), 0.55))
    if identity.mole_y > 0.55:
        x = lerp(-0.42, 0.42, identity.mole_x)
        x = x + 0.16 * np.sign(x)
        canvas.fill(
            ellipse(x, lerp(at.nose_y, at.mouth_y + 0.12, (identity.mole_y - 0.55) / 0.45), 0.036, 0.036, 8),
            mix(skin, (44, 22, 16), 0.8),
        )
    if identity.wrinkles > 0.5:
        dark = mix(skin, (84, 40, 26), 0.55 * (identity.wrinkles - 0.3))
        for s in (-1, 1):
            canvas.line(
                curve(
                    (s * (at.nose_w + 0.04), at.nose_y - 0.02),
                    (s * (at.mouth_w + 0.05), at.mouth_y - 0.08),
                    (s * (at.mouth_w + 0.06), at.mouth_y + 0.04),
                ),
                dark,
                0.022,
            )
        for y in (-0.5, -0.6):
            canvas.line(curve((-0.28, y + 0.02), (0, y), (0.28, y + 0.02)), dark, 0.02)


def _beard(canvas: Canvas, identity: Identity, at: Layout, mood: Mood) -> None:
    hair = hair_colour(identity)
    y, w = at.mouth_y, max(at.mouth_w, 0.24)
    if identity.beard == "full":
        edge = outline(identity, mood.gap)
        low = edge[edge[:, 1] > 0.16] * np.array([1.02, 1.05])
        right, left = low[low[:, 0] >= 0], low[low[:, 0] < 0]
        inner = curve(
            (-w - 0.24, 0.5),
            (-w - 0.06, y - 0.02),
            (-w * 0.8, y + 0.1),
            (0, y + 0.13 + mood.gap * 1.5),
            (w * 0.8, y + 0.1),
            (w + 0.06, y - 0.02),
            (w + 0.24, 0.5),
            n=28,
        )
        # Contour order: right side downwards, left side upwards, then back over the moustache.
        canvas.fill(np.concatenate([right, left, inner]), mix(hair, skin_colour(identity), 0.12), depth=0.12)
    if identity.beard == "goatee":
        canvas.fill(
            curve(
                (-w * 0.85, y + 0.02),
                (-w * 0.7, 0.95),
                (0, 1.06),
                (w * 0.7, 0.95),
                (w * 0.85, y + 0.02),
                n=16,
            ),
            hair,
        )
    if identity.beard in ("moustache", "goatee", "full"):
        canvas.fill(
            curve(
                (-w * 1.15, y + 0.02),
                (-w * 0.6, at.nose_y + 0.09),
                (0, at.nose_y + 0.085),
                (w * 0.6, at.nose_y + 0.09),
                (w * 1.15, y + 0.02),
                (0, y - at.lip * 0.3),
                n=26,
            ),
            hair,
        )
