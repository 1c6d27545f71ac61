"""From a person and a scene to a picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffusion_lab.miniature.canvas import SIZE, SUPER, Canvas, Frame
from diffusion_lab.miniature.draw_body import draw_body
from diffusion_lab.miniature.draw_face import draw_features
from diffusion_lab.miniature.draw_hair import draw_back_hair, draw_front_hair
from diffusion_lab.miniature.draw_head import draw_ears, draw_skin, half_width
from diffusion_lab.miniature.draw_place import draw_place
from diffusion_lab.miniature.draw_worn import draw_accessory
from diffusion_lab.miniature.effects import apply_light, apply_quality, apply_style, to_float, to_image
from diffusion_lab.miniature.identity import Identity
from diffusion_lab.miniature.scene import Scene

HEAD_X, HEAD_Y, HEAD_UNIT = 32.0, 30.0, 19.4  # pixels of 64: middle of the head, and half its height


def frame_of(identity: Identity, scene: Scene) -> Frame:
    """Head coordinates of this picture, in supersampled pixels."""
    return Frame(
        cx=(HEAD_X + scene.dx) * SUPER,
        cy=(HEAD_Y + scene.dy) * SUPER,
        unit=HEAD_UNIT * scene.scale * SUPER,
        width=half_width(identity),
        yaw=scene.yaw,
        pitch=scene.pitch,
        roll=scene.roll,
    )


def render(identity: Identity, scene: Scene, size: int = SIZE) -> NDArray[np.uint8]:
    """Draw `identity` in `scene`: uint8 [size, size, 3], the same bytes for the same arguments.

    The picture is composed at 64 pixels; another `size` is a bicubic enlargement of it.
    """
    canvas = Canvas(draw_place(scene.place, scene.place_seed), frame_of(identity, scene))
    wrapped = scene.accessory == "headscarf"
    draw_back_hair(canvas, identity, covered=wrapped)
    draw_body(canvas, identity, scene)
    draw_ears(canvas, identity)
    draw_skin(canvas, identity, scene)
    draw_features(canvas, identity, scene)
    if not wrapped:
        draw_front_hair(canvas, identity, covered=scene.accessory in ("hat", "cap"))
    draw_accessory(canvas, identity, scene)
    picture = to_float(canvas.image.reduce(SUPER))
    picture = apply_quality(apply_style(apply_light(picture, scene), scene), scene)
    image = to_image(picture)
    if size != SIZE:
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return np.array(image)


def face_box(identity: Identity, scene: Scene) -> tuple[float, float, float, float]:
    """Tight box of the face, brow line to chin (x0, y0, x1, y1), in pixels of the 64-pixel picture.

    May reach outside of the picture when the head does.
    """
    frame = frame_of(identity, scene)
    w = half_width(identity)
    t = np.linspace(0, 2 * np.pi, 24)
    rim = frame.at(np.stack([w * 0.95 * np.cos(t), 0.18 + 0.84 * np.sin(t)], 1), depth=0.1) / SUPER
    (x0, y0), (x1, y1) = rim.min(0), rim.max(0)
    return float(x0), float(y0), float(x1), float(y1)
