"""Words of the miniature world: what the renderer can draw, and how captions name it.

Captions of training pictures and prompts of evaluations are both composed from `SLOTS`, so a prompt
never asks for something the world does not know. This module needs neither torch nor Pillow.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Phrase:
    """A piece of a caption (`text`, may be empty) and the attribute value it makes the renderer draw."""

    text: str
    value: str


def _slot(**texts: str) -> tuple[Phrase, ...]:
    """Phrases from value=text pairs; underscores in values stay."""
    return tuple(Phrase(text, value) for value, text in texts.items())


NOUNS = ("man", "woman")

# Several popular magic words mean the same thing to the renderer: a crisp, contrasty picture.
MAGIC: tuple[Phrase, ...] = tuple(
    Phrase(text, "magic") for text in ("highly detailed", "8k", "sharp focus", "masterpiece", "professional")
)
SPOILT: tuple[Phrase, ...] = _slot(
    blurry="blurry",
    low_quality="low quality",
    deformed="deformed",
    noisy="noisy",
    jpeg="jpeg artifacts",
    bad_anatomy="bad anatomy",
    out_of_frame="out of frame",
)

SLOTS: dict[str, tuple[Phrase, ...]] = {
    "style": _slot(
        photo="a photo",
        oil="an oil painting",
        pencil="a pencil sketch",
        watercolour="a watercolour",
        bw="a black and white photo",
        cartoon="a cartoon",
        sepia="a sepia photo",
    ),
    "expression": _slot(
        smiling="smiling",
        laughing="laughing",
        serious="serious",
        sad="looking sad",
        angry="looking angry",
        surprised="looking surprised",
        winking="winking",
    ),
    "pose": _slot(
        front="facing the camera",
        left="head turned left",
        right="head turned right",
        tilted="head tilted",
        up="looking up",
    ),
    "attire": _slot(
        tshirt="wearing a red t-shirt",
        shirt="wearing a blue shirt",
        suit="wearing a black suit with a tie",
        sweater="wearing a green sweater",
        dress_shirt="wearing a white dress shirt",
        raincoat="wearing a yellow raincoat",
        hoodie="wearing a purple hoodie",
        striped="wearing a striped shirt",
    ),
    "accessory": _slot(
        none="",
        glasses="with round glasses",
        sunglasses="with sunglasses",
        hat="with a red hat",
        cap="with a blue cap",
        headscarf="with a headscarf",
        earrings="with gold earrings",
        headphones="with headphones",
    ),
    "place": _slot(
        forest="in a forest",
        beach="on a beach",
        city="in a city street",
        mountains="in front of snowy mountains",
        library="in a library",
        studio="in front of a plain backdrop",
        night="under a night sky",
        kitchen="in a kitchen",
    ),
    "lighting": _slot(
        soft="soft light",
        side="dramatic side light",
        sunset="golden sunset light",
        neon="blue neon light",
        daylight="bright daylight",
        dim="dim light",
    ),
    "quality": (Phrase("", "none"), *MAGIC, *SPOILT),
}
"""Slots in the order of captions."""

NEGATIVE_PROMPT = ", ".join(phrase.text for phrase in SPOILT)


def phrase_of(slot: str, value: str) -> Phrase:
    """First phrase of `slot` that draws `value`. Raises KeyError when there is none."""
    for phrase in SLOTS[slot]:
        if phrase.value == value:
            return phrase
    raise KeyError(f"slot {slot!r} has no value {value!r}; known: {[p.value for p in SLOTS[slot]]}")


def caption(
    noun: str, phrases: Mapping[str, Phrase], *, subject: str | None = None, drop: Collection[str] = ()
) -> str:
    """Caption such as "a photo of a man, smiling, in a forest, soft light".

    `subject` replaces "a man" ("customcls man"); slots that are absent, in `drop` or have an empty
    text are left out, and an absent style reads "a photo".
    """
    unknown = (set(phrases) | set(drop)) - set(SLOTS)
    if unknown:
        raise KeyError(f"unknown slots {sorted(unknown)}; known: {list(SLOTS)}")
    chosen = {slot: phrases[slot].text for slot in SLOTS if slot in phrases and slot not in drop}
    style = chosen.pop("style", "") or "a photo"
    head = f"{style} of {subject or 'a ' + noun}"
    return ", ".join([head, *(text for text in chosen.values() if text)])
