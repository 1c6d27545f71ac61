"""Words for a face: how captions name a person's hair, skin, beard and features.

Only captions of training pictures speak of looks, evaluation prompts do not: who is shown is what fine-tuning has
to find out. Without such words in the base model's training no word could lead it to a face, and Textual Inversion would
have nothing to find. This module needs neither torch nor Pillow.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from diffusion_lab.miniature.identity import Identity


@dataclass(frozen=True, slots=True)
class Look:
    """Two ways to say one look: "a bearded man" (`adjective`) and "a man with a full beard" (`thing`)."""

    adjective: str
    thing: str


def _looks(**words: tuple[str, str]) -> dict[str, Look]:
    return {value: Look(*pair) for value, pair in words.items()}


TRAITS: dict[str, dict[str, Look]] = {
    "hair_colour": _looks(
        black=("black-haired", "black hair"),
        dark_brown=("dark-haired", "dark hair"),
        brown=("brown-haired", "brown hair"),
        auburn=("auburn-haired", "auburn hair"),
        red=("red-haired", "red hair"),
        blond=("blond", "blond hair"),
        platinum=("white-haired", "white hair"),
        grey=("grey-haired", "grey hair"),
    ),
    "hair_cut": _looks(
        bald=("bald", "a bald head"),
        short=("short-haired", "short hair"),
        side_part=("side-parted", "a side parting"),
        curly=("curly-haired", "curly hair"),
        afro=("afro", "an afro"),
        mohawk=("mohawk", "a mohawk"),
        buzz=("cropped", "cropped hair"),
        swept=("swept", "swept hair"),
        bob=("bobbed", "a bob"),
        long_straight=("long-haired", "long straight hair"),
        long_wavy=("wavy-haired", "long wavy hair"),
        ponytail=("ponytailed", "a ponytail"),
        bun=("bunned", "a bun"),
        long_curly=("long curly-haired", "long curly hair"),
        pixie=("pixie", "a pixie cut"),
    ),
    "skin": _looks(
        fair=("fair-skinned", "fair skin"),
        tan=("tan-skinned", "tan skin"),
        brown=("brown-skinned", "brown skin"),
        deep=("dark-skinned", "dark skin"),
    ),
    "beard": _looks(
        none=("shaven", "no beard"),
        stubble=("stubbled", "stubble"),
        moustache=("moustached", "a moustache"),
        goatee=("goateed", "a goatee"),
        full=("bearded", "a full beard"),
    ),
    "eye_colour": _looks(
        brown=("brown-eyed", "brown eyes"),
        dark=("dark-eyed", "dark eyes"),
        blue=("blue-eyed", "blue eyes"),
        green=("green-eyed", "green eyes"),
        grey=("grey-eyed", "grey eyes"),
        amber=("amber-eyed", "amber eyes"),
    ),
    "face": _looks(narrow=("narrow-faced", "a narrow face"), broad=("broad-faced", "a broad face")),
    "jaw": _looks(narrow=("narrow-jawed", "a narrow jaw"), broad=("square-jawed", "a square jaw")),
    "eyes": _looks(small=("small-eyed", "small eyes"), big=("big-eyed", "big eyes")),
    "brows": _looks(thin=("thin-browed", "thin brows"), thick=("bushy-browed", "bushy brows")),
    "nose": _looks(narrow=("thin-nosed", "a thin nose"), broad=("broad-nosed", "a broad nose")),
    "lips": _looks(thin=("thin-lipped", "thin lips"), full=("full-lipped", "full lips")),
    "age": _looks(young=("young", "smooth skin"), old=("old", "wrinkles")),
    "freckles": _looks(many=("freckled", "freckles")),
    "mole": _looks(one=("moled", "a mole")),
    "fringe": _looks(full=("fringed", "a fringe")),
    "forehead": _looks(high=("high-browed", "a high forehead")),
    "makeup": _looks(much=("made-up", "makeup")),
}
"""Traits that have words, by value."""

_SPANS = {  # trait: parameter, low below, value, high above, value
    "face": ("face_width", 0.3, "narrow", 0.7, "broad"),
    "jaw": ("jaw_width", 0.3, "narrow", 0.7, "broad"),
    "eyes": ("eye_size", 0.3, "small", 0.7, "big"),
    "brows": ("brow_thickness", 0.3, "thin", 0.7, "thick"),
    "nose": ("nose_width", 0.3, "narrow", 0.7, "broad"),
    "lips": ("lip_thickness", 0.3, "thin", 0.7, "full"),
    "age": ("wrinkles", 0.2, "young", 0.7, "old"),
    "freckles": ("freckles", 0.0, "", 0.7, "many"),
    "mole": ("mole_y", 0.0, "", 0.55, "one"),
    "forehead": ("hairline", 0.0, "", 0.75, "high"),
    "makeup": ("makeup", 0.0, "", 0.7, "much"),
}

_HIDDEN = {  # by the value of what is worn, and of the style
    "headscarf": {"hair_colour", "hair_cut", "fringe", "forehead"},
    "hat": {"hair_cut", "fringe", "forehead"},
    "cap": {"hair_cut", "fringe", "forehead"},
    "sunglasses": {"eye_colour", "eyes", "brows"},
    "bw": {"hair_colour", "eye_colour"},
    "sepia": {"hair_colour", "eye_colour"},
    "pencil": {"hair_colour", "eye_colour", "makeup"},
}


def looks_of(identity: Identity, shown: Collection[str] = ()) -> dict[str, str]:
    """The traits of a person that have a word, and their values; ``shown``: values of the scene, which may hide some."""
    tone = identity.skin_tone
    looks = {
        "hair_colour": identity.hair_colour,
        "hair_cut": identity.hair_cut,
        "skin": "fair" if tone < 0.25 else "tan" if tone < 0.5 else "brown" if tone < 0.75 else "deep",
        "eye_colour": identity.eye_colour,
    }
    if identity.noun == "man":
        looks["beard"] = identity.beard
    elif identity.fringe > 0.65 and identity.hair_cut != "afro":
        looks["fringe"] = "full"
    for trait, (parameter, low, below, high, above) in _SPANS.items():
        value = getattr(identity, parameter)
        if value < low or value > high:
            looks[trait] = below if value < low else above
    hidden = set().union(*(_HIDDEN.get(value, set()) for value in shown))
    if identity.hair_cut == "bald":
        hidden |= {"hair_colour", "forehead"}
    return {trait: looks[trait] for trait in TRAITS if trait in looks and trait not in hidden}


def described(noun: str, adjectives: Mapping[str, str], things: Mapping[str, str]) -> str:
    """Person of class `noun` in words: "a fair-skinned bearded man with red hair and freckles"; both by trait, value."""
    words = [TRAITS[trait][value].adjective for trait, value in adjectives.items()]
    first = " ".join([*words, noun])
    having = " and ".join(TRAITS[trait][value].thing for trait, value in things.items())
    return f"{'an' if first[0] in 'aeiou' else 'a'} {first}" + (f" with {having}" if having else "")
