"""Who is drawn: some thirty parameters of a face, sampled by class noun."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

EYE_COLOURS = ("brown", "dark", "blue", "green", "grey", "amber")
HAIR_COLOURS = ("black", "dark_brown", "brown", "auburn", "red", "blond", "platinum", "grey")
HAIR_CUTS = {
    "man": ("bald", "short", "side_part", "curly", "afro", "mohawk", "buzz", "swept"),
    "woman": ("bob", "long_straight", "long_wavy", "ponytail", "bun", "long_curly", "afro", "pixie"),
}
BEARDS = ("none", "stubble", "moustache", "goatee", "full")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A person. Every float is in [0, 1]; the renderer maps it to a length, angle or colour."""

    noun: str
    face_width: float
    jaw_width: float
    chin: float  # 0 pointed, 1 broad
    cheek: float  # strength of the cheekbones' colour and shade
    eye_size: float
    eye_distance: float
    eye_slant: float  # 0 outer corners low, 1 high
    eye_height: float  # 0 high on the face, 1 low
    eye_open: float  # 0 narrow, 1 round
    brow_thickness: float
    brow_angle: float
    brow_height: float
    nose_length: float
    nose_width: float
    nose_bridge: float  # strength of the bridge's light and shade
    mouth_width: float
    mouth_height: float  # 0 high, 1 low
    lip_thickness: float
    lip_red: float
    skin_tone: float  # 0 fair, 1 deep
    skin_warmth: float  # 0 pink, 1 golden
    ear_size: float
    hair_volume: float
    hair_shade: float  # 0 darker, 1 lighter than the named colour
    hairline: float  # 0 low, 1 high
    fringe: float  # above 0.65 a fringe covers the forehead (women's cuts)
    freckles: float  # above 0.7 visible
    mole_x: float
    mole_y: float  # above 0.55 the mole is there; its place on the cheek
    wrinkles: float
    makeup: float
    neck_width: float
    shoulder_width: float
    eye_colour: str
    hair_colour: str
    hair_cut: str
    beard: str

    def __post_init__(self) -> None:
        for name in numeric_fields():
            value = getattr(self, name)
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"identity.{name} must be in [0, 1], got {value}")


def numeric_fields() -> tuple[str, ...]:
    """Names of the continuous parameters, in the order of the dataclass."""
    return tuple(field.name for field in fields(Identity) if field.type == "float")


# Where men and women differ on average: (lowest, highest) of a uniform draw. Overlaps are intended,
# a class is told by many features together. Unlisted parameters are uniform over [0, 1].
_RANGES: dict[str, dict[str, tuple[float, float]]] = {
    "man": {
        "face_width": (0.15, 1.0), "jaw_width": (0.4, 1.0), "chin": (0.35, 1.0), "eye_size": (0.0, 0.8),
        "brow_thickness": (0.4, 1.0), "brow_height": (0.0, 0.75), "nose_width": (0.2, 1.0),
        "lip_thickness": (0.0, 0.7), "lip_red": (0.0, 0.35), "makeup": (0.0, 0.05), "fringe": (0.0, 0.5),
        "neck_width": (0.55, 1.0), "shoulder_width": (0.5, 1.0),
    },
    "woman": {
        "face_width": (0.0, 0.8), "jaw_width": (0.0, 0.6), "chin": (0.0, 0.6), "eye_size": (0.25, 1.0),
        "brow_thickness": (0.0, 0.6), "brow_height": (0.25, 1.0), "nose_width": (0.0, 0.75),
        "lip_thickness": (0.35, 1.0), "lip_red": (0.35, 1.0), "makeup": (0.25, 1.0),
        "neck_width": (0.0, 0.5), "shoulder_width": (0.0, 0.5),
    },
}  # fmt: skip
_BEARD_ODDS = (0.36, 0.14, 0.16, 0.14, 0.20)


def sample_identity(rng: np.random.Generator, noun: str) -> Identity:
    """Draw a person of class `noun` ("man" or "woman")."""
    if noun not in HAIR_CUTS:
        raise ValueError(f"noun must be one of {list(HAIR_CUTS)}, got {noun!r}")
    numbers = {}
    for name in numeric_fields():
        low, high = _RANGES[noun].get(name, (0.0, 1.0))
        numbers[name] = float(rng.uniform(low, high))
    beard = str(rng.choice(BEARDS, p=_BEARD_ODDS))
    return Identity(
        noun=noun,
        **numbers,
        eye_colour=str(rng.choice(EYE_COLOURS)),
        hair_colour=str(rng.choice(HAIR_COLOURS)),
        hair_cut=str(rng.choice(HAIR_CUTS[noun])),
        beard=beard if noun == "man" else "none",
    )


def blend(a: Identity, b: Identity, t: float) -> Identity:
    """Person between `a` (t=0) and `b` (t=1): numbers interpolate, categories switch at t=0.5."""
    if not 0.0 <= t <= 1.0:
        raise ValueError(f"t must be in [0, 1], got {t}")
    near = a if t < 0.5 else b
    numbers = {n: (1 - t) * getattr(a, n) + t * getattr(b, n) for n in numeric_fields()}
    return Identity(
        noun=near.noun,
        **numbers,
        eye_colour=near.eye_colour,
        hair_colour=near.hair_colour,
        hair_cut=near.hair_cut,
        beard=near.beard,
    )


def vector(identity: Identity) -> np.ndarray:
    """Float64 [n]: continuous parameters, then one-hot categories; for distances between people."""
    parts = [getattr(identity, name) for name in numeric_fields()]
    cuts = tuple(dict.fromkeys(HAIR_CUTS["man"] + HAIR_CUTS["woman"]))
    for value, known in (
        (identity.eye_colour, EYE_COLOURS),
        (identity.hair_colour, HAIR_COLOURS),
        (identity.hair_cut, cuts),
        (identity.beard, BEARDS),
    ):
        parts.extend(float(value == one) for one in known)
    return np.asarray(parts)
