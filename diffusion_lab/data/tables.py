"""Prompts from a template with slots and a table of phrases: the set `portrait`, and user tables.

    template: a photo of {subject}, {attire}, {place}
    slots:
      attire: [wearing a suit, wearing a red dress]
      place: ["", in a forest, on a beach]
    negative: blurry        # optional

An empty phrase is removed together with the comma before it. Every slot has its own generator, seeded with its name:
adding a slot or a phrase does not change what was drawn for the other slots (except for prompts that were drawn again
because they already existed).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion_lab.records import UserError

MOST_BYTES = 1_000_000  # PyYAML reads them in about ten seconds
SUBJECT = "subject"  # the slot for identifier and class noun


@dataclass(frozen=True, slots=True)
class Table:
    """``template`` has a {name} for every slot, and {subject}; ``slots``: phrases by slot, each phrase once."""

    template: str
    slots: Mapping[str, tuple[str, ...]]
    negative: str = ""

    def __post_init__(self) -> None:
        named = re.findall(r"\{([^{}]*)\}", self.template)
        if SUBJECT not in named:
            raise ValueError("the template does not name {subject}")
        for name in named:
            if name not in {*self.slots, SUBJECT}:
                raise ValueError(f"the template names {{{name}}}, and slots has no {name}")
            if named.count(name) > 1:
                raise ValueError(f"the template names {{{name}}} twice")
        for name, phrases in self.slots.items():
            if name not in named:
                raise ValueError(f"the template does not name the slot {{{name}}}")
            if not phrases:
                raise ValueError(f"slots.{name} has no phrase")
            if len(set(phrases)) < len(phrases):
                raise ValueError(f"slots.{name} has a phrase twice")

    def text(self, chosen: Mapping[str, str]) -> str:
        """The template with ``chosen`` phrases; {subject} stays for `prompts.fill` to fill.

        >>> Table("a photo of {subject}, {place}", {"place": ("", "at sea")}).text({"place": ""})
        'a photo of {subject}'
        """
        text = self.template
        for slot, phrase in chosen.items():
            text = text.replace(f"{{{slot}}}", phrase)
        return re.sub(r"(?:\s*,)+", ",", " ".join(text.split())).strip(" ,")


def read_table(path: Path) -> Table:
    """Reads a YAML file as above. Raises UserError, naming prompts.path, for anything else."""
    import yaml  # type: ignore[import-untyped]

    where = f"prompts.path: {path}"
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UserError(
                f"{where} has more than {MOST_BYTES:,} bytes: a template and its phrases are a page of text"
            )
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{where} does not exist") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{where} cannot be read as YAML ({error})") from error
    if not isinstance(content, dict) or not {"template", "slots"} <= set(content) <= {
        "template",
        "slots",
        "negative",
    }:
        raise UserError(f"{where} needs template and slots, and may have negative, and nothing else")
    template, slots, negative = content["template"], content["slots"], content.get("negative", "")
    if not isinstance(template, str) or not isinstance(negative, str):
        raise UserError(f"{where}: template and negative are texts")
    if not isinstance(slots, dict) or not all(isinstance(phrases, list) for phrases in slots.values()):
        raise UserError(f"{where}: slots has a list of phrases for each slot's name")
    for name, phrases in slots.items():
        for phrase in phrases:
            if not isinstance(phrase, str):
                raise UserError(f"{where}: slots.{name}: {phrase!r} is no text; put it into quotes")
    try:
        return Table(template, {str(name): tuple(phrases) for name, phrases in slots.items()}, negative)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


_PORTRAIT_NEGATIVE = (
    "ugly, deformed, disfigured, blurry, low quality, bad anatomy, bad proportions, extra limbs, "
    "poorly drawn face, out of frame, watermark, text, jpeg artifacts"
)

PORTRAIT = Table(
    template="{shot} of {subject}, {attire}, {place}, {lighting}, {style}, {quality}",
    slots={
        "shot": (
            "a photo", "a close-up portrait", "a medium shot", "a full body shot", "a candid photo",
            "an oil painting", "a watercolor painting", "a pencil sketch", "a digital illustration",
            "a black and white photograph",
        ),
        "attire": (
            "wearing a black suit", "wearing a white t-shirt", "wearing a denim jacket", "wearing a red dress",
            "wearing a leather jacket", "wearing a wool sweater", "wearing a chef outfit",
            "wearing an astronaut suit", "wearing medieval armor", "wearing sunglasses and a hat",
        ),
        "place": (
            "in a forest", "on a beach", "in a busy city street", "in front of snowy mountains", "in a library",
            "in a kitchen", "in a desert", "at the Eiffel Tower", "in a cafe", "in a photo studio",
        ),
        "lighting": (
            "soft natural light", "golden hour", "dramatic side lighting", "neon lights", "candlelight",
            "overcast daylight", "studio lighting", "backlit",
        ),
        "style": (
            "", "in the style of a fashion magazine", "in the style of film noir", "cyberpunk", "art deco",
            "impressionist", "35mm film", "fantasy concept art",
        ),
        "quality": (
            "", "highly detailed", "8k", "sharp focus", "masterpiece", "award-winning", "professional",
            "trending on artstation",
        ),
    },
    negative=_PORTRAIT_NEGATIVE,
)  # fmt: skip
"""For full-size models: medium and shot, attire, place, lighting, style and magic words; the negative prompt is the
popular kind. The phrase table of the original study is not available; this one is our own.
"""
