"""The DreamBooth set's prompts: 25 for objects, 25 for live subjects.

Ruiz et al. 2022, "DreamBooth" (arXiv:2208.12242), as published with their dataset. `{subject}` stands for
identifier and class noun. Each comes with the kind of change it asks for.
"""

from __future__ import annotations

Template = tuple[str, str, str]  # slot, phrase, template

_PLACES = (
    "in the jungle", "in the snow", "on the beach", "on a cobblestone street", "on top of pink fabric",
    "on top of a wooden floor", "with a city in the background", "with a mountain in the background",
    "with a blue house in the background", "on top of a purple rug in a forest",
)  # fmt: skip
_MORE_PLACES = (
    "with a wheat field in the background", "with a tree and autumn leaves in the background",
    "with the Eiffel Tower in the background", "floating on top of water", "floating in an ocean of milk",
    "on top of green grass with sunflowers around it", "on top of a mirror",
    "on top of the sidewalk in a crowded street", "on top of a dirt road", "on top of a white rug",
)  # fmt: skip
_OUTFITS = (
    "wearing a red hat", "wearing a santa hat", "wearing a rainbow scarf",
    "wearing a black top hat and a monocle", "in a chef outfit", "in a firefighter outfit",
    "in a police outfit", "wearing pink glasses", "wearing a yellow shirt", "in a purple wizard outfit",
)  # fmt: skip
_PROPERTIES = ("red", "purple", "shiny", "wet", "cube shaped")


def _after(slot: str, phrases: tuple[str, ...]) -> tuple[Template, ...]:
    return tuple((slot, phrase, f"a {{subject}} {phrase}") for phrase in phrases)


_CHANGED = tuple(("property", phrase, f"a {phrase} {{subject}}") for phrase in _PROPERTIES)

DREAMBOOTH_OBJECTS: tuple[Template, ...] = _after("place", _PLACES + _MORE_PLACES) + _CHANGED
DREAMBOOTH_LIVE: tuple[Template, ...] = _after("place", _PLACES) + _after("outfit", _OUTFITS) + _CHANGED
