"""What surrounds a person in one picture: chosen phrase values and continuous nuisance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from diffusion_lab.miniature.phrases import SLOTS, Phrase

QUALITY_RANGE = {"magic": (0.88, 1.0), "none": (0.52, 0.74), "spoilt": (0.02, 0.36)}


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything but the person. Pixels are those of the 64-pixel picture, angles are radians."""

    style: str = "photo"
    expression: str = "serious"
    pose: str = "front"
    attire: str = "tshirt"
    accessory: str = "none"
    place: str = "studio"
    lighting: str = "soft"
    quality_kind: str = "none"  # "none", "magic" or the value of a spoilt phrase
    quality: float = 0.6  # 0 ruined, < 0.4 spoilt, 0.6 ordinary, 1 flawless
    dx: float = 0.0  # head centre, pixels right of the middle
    dy: float = 0.0  # pixels below the usual height
    scale: float = 1.0  # head size relative to the usual one
    yaw: float = 0.0  # > 0: nose towards the right edge of the picture
    pitch: float = 0.0  # > 0: looking up
    roll: float = 0.0  # > 0: clockwise
    light_strength: float = 0.7  # in [0, 1]
    light_side: float = -1.0  # -1: from the left, 1: from the right
    place_seed: int = 0  # layout of the background, and of flaws

    def __post_init__(self) -> None:
        for slot in SLOTS:
            value = self.quality_kind if slot == "quality" else getattr(self, slot)
            if value not in {phrase.value for phrase in SLOTS[slot]}:
                raise ValueError(f"scene.{slot}: unknown value {value!r}")
        if not 0.0 <= self.quality <= 1.0:
            raise ValueError(f"scene.quality must be in [0, 1], got {self.quality}")


_POSES = {  # yaw, pitch, roll
    "front": (0.0, 0.0, 0.0),
    "left": (-0.45, 0.0, 0.0),
    "right": (0.45, 0.0, 0.0),
    "tilted": (0.0, 0.0, 0.26),
    "up": (0.0, 0.30, 0.0),
}


def sample_scene(rng: np.random.Generator, phrases: Mapping[str, Phrase]) -> Scene:
    """Scene showing `phrases` (absent slots take the plain default) with random nuisance.

    The same number of draws is made whatever the phrases, so that changing one phrase under the same
    seed changes that attribute only.
    """
    values = {slot: phrase.value for slot, phrase in phrases.items()}
    kind = values.pop("quality", "none")
    normal = np.clip(rng.normal(size=6), -2, 2)
    uniform = rng.uniform(size=4)
    place_seed = int(rng.integers(2**31))
    low, high = QUALITY_RANGE[kind if kind in QUALITY_RANGE else "spoilt"]
    yaw, pitch, roll = _POSES[values.get("pose", "front")]
    side = -1.0 if uniform[1] < 0.5 else 1.0
    dx, dy = 1.7 * normal[0], 1.2 * normal[1]
    if kind == "out_of_frame":
        dx, dy = dx + 21 * side * (uniform[3] < 0.6), dy - 25 * (uniform[3] >= 0.6)
    return Scene(
        **values,
        quality_kind=kind,
        quality=float(low + (high - low) * uniform[0]),
        dx=float(dx),
        dy=float(dy),
        scale=float(1.0 + 0.05 * normal[2]),
        yaw=float(yaw + 0.05 * normal[3]),
        pitch=float(pitch + 0.04 * normal[4]),
        # A tilt goes either way; the other poses have a fixed direction because they name it.
        roll=float(roll * side + 0.03 * normal[5]),
        light_strength=float(0.45 + 0.55 * uniform[2]),
        light_side=side,
        place_seed=place_seed,
    )
