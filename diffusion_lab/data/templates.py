"""Published prompts. `{subject}` stands for identifier and class noun.

- DreamBooth's: 25 for objects, 25 for live subjects. Ruiz et al. 2022 (arXiv:2208.12242), as published with their
  dataset; each with the kind of change it requests.
- The ten of a comparison of fine-tuning methods by image similarity and prompt similarity, from its public code
  (gnguralnick/stable-diffusion-fine-tuning), which follows Gal et al. 2022 (arXiv:2208.01618).
- Five for a logo, from a talk on brand logos. The fourth is partly illegible there; its legible words are kept.
- Two on which diffusion models fail: one of two objects is missing, colours are on the wrong garment.
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

PAPER: tuple[tuple[str, str], ...] = (  # edit, template; the plain prompt first
    ("", "a photo of a {subject}"),
    ("forest", "a photo of a {subject} in a forest"),
    ("city", "a photo of a {subject} in a city"),
    ("desert", "a photo of a {subject} in a desert"),
    ("oil painting", "an oil painting of a {subject}"),
    ("field", "a photo of a {subject} in a field"),
    ("held", "Elmo holding a {subject}"),
    ("kitchen", "a photo of a {subject} in a kitchen"),
    ("bedroom", "a photo of a {subject} in a bedroom"),
    ("painting in a forest", "a painting of a {subject} in a forest"),
)
LOGO: tuple[Template, ...] = (
    ("product", "", "a {subject}"),
    ("product", "sweater", "a male model wearing a blue {subject} sweater"),
    ("product", "t shirt", "a female model wearing a green {subject} t shirt"),
    ("product", "products", "the latest {subject} products"),
    ("product", "fragrance", "the new {subject} fragrance"),
)
PROBES: tuple[Template, ...] = (  # without a subject: for inference methods, and for damage by fine-tuning
    ("probe", "neglect", "a blue cat and a yellow bowl"),
    ("probe", "binding", "a man wearing a blue t shirt and red pants"),
)
