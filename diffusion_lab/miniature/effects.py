"""What happens to the finished drawing: light, style of the picture, flaws. Float32 [64, 64, 3] in [0, 1]."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from diffusion_lab.miniature.canvas import SIZE
from diffusion_lab.miniature.scene import Scene
from diffusion_lab.system.images import encoded

Picture = NDArray[np.floating[Any]]  # [64, 64, 3]
_YX = (np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) + 0.5) / SIZE
_GREY = np.asarray([0.299, 0.587, 0.114], np.float32)


def blur(picture: Picture, sigma: float) -> Picture:
    """Gaussian blur, sigma in pixels."""
    return to_float(to_image(picture).filter(ImageFilter.GaussianBlur(sigma)))


def to_image(picture: Picture) -> Image.Image:
    """Clip to [0, 1] and round to 8 bits."""
    return Image.fromarray((np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8))


def to_float(image: Image.Image) -> Picture:
    """8 bits to [0, 1]."""
    return np.asarray(image, dtype=np.float32) / 255


def grey(picture: Picture) -> Picture:
    """Luma [64, 64, 1]."""
    value: Picture = (picture @ _GREY)[..., None]
    return value


def _smooth_noise(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
    """Noise [64, 64, 1] in about [-1, 1] of the given number of cells."""
    cells = Image.fromarray(rng.uniform(-1, 1, (height, width)).astype(np.float32))
    return np.asarray(cells.resize((SIZE, SIZE), Image.Resampling.BICUBIC))[..., None]


def apply_light(picture: Picture, scene: Scene) -> Picture:
    """Colour and direction of the light; `light_strength` scales the effect."""
    out: Picture
    s, (y, x) = scene.light_strength, _YX
    toward = (x - 0.5) * 2 * scene.light_side  # 1 at the edge the light comes from
    tint: tuple[float, float, float]
    match scene.lighting:
        case "soft":
            out = picture * (1.0 - 0.03 * s)
        case "side":
            ramp = 0.76 + (0.20 + 0.16 * s) * np.tanh(1.8 * toward)
            out = picture * ramp[..., None]
        case "sunset":
            tint = (1.16, 0.90, 0.62)
            glow = (0.16 * s * np.clip(toward, 0, 1) * (1 - y))[..., None] * np.asarray(
                (1.0, 0.62, 0.2), np.float32
            )
            out = _tinted(picture, tint, 0.6 + 0.4 * s) + glow
        case "neon":
            # Tubes stand left and right: the middle, where the face is, keeps more of its colours.
            amount = (0.45 + 0.2 * s + 0.4 * np.abs(x - 0.5))[..., None]
            lit = picture * (1 + (np.asarray((0.55, 0.78, 1.34), np.float32) - 1) * amount)
            pink = (0.22 * s * np.clip(-toward, 0, 1))[..., None] * np.asarray((1.0, 0.1, 0.7), np.float32)
            out = lit + pink * (0.3 + grey(picture)) + np.asarray((0.0, 0.02, 0.09), np.float32)
        case "daylight":
            out = 1 - (1 - np.clip(picture, 0, 1)) ** (1.25 + 0.25 * s)
        case _:
            out = picture * (0.64 - 0.1 * s) * np.asarray((0.98, 0.98, 1.06), np.float32)
    return out


def _tinted(picture: Picture, tint: tuple[float, float, float], amount: float) -> Picture:
    return picture * (1 + (np.asarray(tint, np.float32) - 1) * np.float32(amount))


def apply_style(picture: Picture, scene: Scene) -> Picture:
    """Turn the drawing into the named kind of picture."""
    out: Picture
    rng = np.random.default_rng(scene.place_seed + 1)
    match scene.style:
        case "bw":
            value = grey(picture)
            out = np.repeat(0.5 + (value - 0.48) * 1.18, 3, axis=2)
        case "sepia":
            value = np.clip(0.10 + 1.15 * grey(picture), 0, 1)
            y, x = _YX
            edge = 1 - 0.85 * np.clip((x - 0.5) ** 2 + (y - 0.5) ** 2 - 0.16, 0, 1)[..., None]
            out = value ** np.asarray((0.72, 1.0, 1.5), np.float32) * edge
        case "oil":
            flat = to_float(to_image(picture).filter(ImageFilter.MedianFilter(3)))
            flat = 0.45 * flat + 0.55 * picture + 0.35 * (picture - blur(picture, 2.0))
            value = grey(flat)
            vivid = value + (flat - value) * 1.4
            # Strokes are broad and slanted one way or the other; thick paint is lighter on its edge.
            strokes = 0.10 * _smooth_noise(rng, 22, 8) + 0.08 * _smooth_noise(rng, 7, 20)
            out = vivid * (1 + strokes) * np.asarray((1.06, 0.98, 0.84), np.float32)
        case "pencil":
            value = grey(picture)
            lines = value / np.clip(blur(np.repeat(value, 3, axis=2), 2.2)[..., :1], 0.08, 1)
            tone = 0.62 + 0.38 * np.clip(value * 1.15, 0, 1)
            hatch = (
                1 - 0.05 * (value < 0.45) * (0.5 + 0.5 * np.sin((_YX[0] + _YX[1]) * SIZE * 1.5))[..., None]
            )
            paper = np.asarray((0.99, 0.98, 0.95), np.float32)
            out = np.clip(lines, 0.1, 1.0) ** 1.7 * tone * hatch * paper
        case "watercolour":
            soft = 0.4 * to_float(to_image(picture).filter(ImageFilter.MedianFilter(3))) + 0.6 * picture
            washed = 1 - (1 - soft) * (0.70 + 0.16 * _smooth_noise(rng, 9, 9))
            edge = np.clip(blur(soft, 1.4) - soft, -0.05, 0.05)
            y, x = _YX
            border = np.minimum(np.minimum(x, 1 - x), np.minimum(y, 1 - y))[
                ..., None
            ] * 9 + 0.5 * _smooth_noise(rng, 12, 12)
            paper = np.clip(border, 0, 1)
            out = (washed - 1.2 * edge) * paper + np.asarray((0.99, 0.98, 0.95), np.float32) * (1 - paper)
        case "cartoon":
            value = grey(picture)
            step = (np.floor(value * 5) + 0.55) / 5
            vivid = picture * (0.35 + 0.65 * step / np.clip(value, 0.06, 1))
            vivid = step + (vivid - step) * 1.4
            gx = np.abs(np.roll(value, -1, 1) - np.roll(value, 1, 1))
            gy = np.abs(np.roll(value, -1, 0) - np.roll(value, 1, 0))
            ink = np.clip(((gx + gy) - 0.22) * 3.0, 0, 0.85)
            out = vivid * (1 - ink)
        case _:
            out = picture
    return out


def apply_quality(picture: Picture, scene: Scene) -> Picture:
    """Sharpness and contrast by `quality`, then the named flaw."""
    out: Picture
    q, kind = scene.quality, scene.quality_kind
    rng = np.random.default_rng(scene.place_seed + 2)
    if kind == "magic":
        picture = np.clip(picture, 0, 1)
        crisp = picture + (0.35 + 0.5 * (q - 0.88) / 0.12) * (picture - blur(picture, 1.3))
        value = grey(crisp)
        out = np.clip(value + (crisp - value) * 1.12 - 0.5, -0.6, 0.6) * 1.08 + 0.5
        return out
    if kind == "none":
        soft = blur(picture, 0.35 + 0.9 * (0.74 - q))
        out = 0.5 + (soft - 0.5) * 0.93
        return out
    bad = (0.36 - q) / 0.34  # 0 mild .. 1 worst
    match kind:
        case "blurry":
            out = blur(picture, 1.9 + 1.8 * bad)
        case "low_quality":
            # Few pixels, few colours, no contrast.
            n = 25 - round(8 * bad)
            small = (
                to_image(picture)
                .resize((n, n), Image.Resampling.BOX)
                .resize((SIZE, SIZE), Image.Resampling.NEAREST)
            )
            dull = to_float(small)
            out = 0.42 + (0.5 * dull + 0.5 * grey(dull) - 0.45) * (0.72 - 0.2 * bad)
        case "noisy":
            grain = rng.normal(size=(SIZE, SIZE, 3)).astype(np.float32)
            out = 0.5 + (picture - 0.5) * 0.85 + (0.07 + 0.06 * bad) * grain
        case "jpeg":
            content = encoded(to_image(picture), "JPEG", quality=12 - round(7 * bad), subsampling=2)
            out = to_float(Image.open(io.BytesIO(content)).convert("RGB"))
        case "deformed":
            out = _warp(picture, rng, 4.0 + 3.0 * bad)
        case _:
            out = 0.5 + (blur(picture, 0.6) - 0.5) * 0.85
    return out


def _warp(picture: Picture, rng: np.random.Generator, pixels: float) -> Picture:
    """Displace by smooth noise of amplitude `pixels`."""
    dx, dy = _smooth_noise(rng, 5, 5)[..., 0], _smooth_noise(rng, 5, 5)[..., 0]
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    sx = np.clip(x + pixels * dx, 0, SIZE - 1.001)
    sy = np.clip(y + pixels * dy, 0, SIZE - 1.001)
    ix, iy = sx.astype(int), sy.astype(int)
    fx, fy = (sx - ix)[..., None].astype(np.float32), (sy - iy)[..., None].astype(np.float32)
    upper = picture[iy, ix] * (1 - fx) + picture[iy, ix + 1] * fx
    lower = picture[iy + 1, ix] * (1 - fx) + picture[iy + 1, ix + 1] * fx
    warped: Picture = upper * (1 - fy) + lower * fy
    return warped
