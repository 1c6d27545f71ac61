"""Short names of a run's subject, method and model, from its flat configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

WOMEN = ("woman", "girl", "lady", "female")
MEN = ("man", "boy", "gentleman", "male", "guy")
MODELS: Mapping[str, str] = {  # published repositories by their last part -> the names in conf/model
    "stable-diffusion-v1-5": "sd15",
    "stable-diffusion-2-base": "sd20",
    "stable-diffusion-2-1-base": "sd21",
    "stable-diffusion-2-1": "sd21_768",
}


def gender_of(class_noun: str) -> str | None:
    """ "woman" or "man", if the class noun's last word says so."""
    last = class_noun.lower().split()[-1:]
    if not last:
        return None
    return "woman" if last[0] in WOMEN else "man" if last[0] in MEN else None


def method_of(flat: Mapping[str, Any]) -> str:
    """The method's name, then its variant and other choices if they are not the default ones."""
    name = str(flat.get("method.name") or "")
    variant = flat.get("method.variant")
    words = [name]
    if variant and variant != name:
        words.append(str(variant))
    if flat.get("method.dora"):
        words.append("dora")
    return " ".join(words)


def model_of(flat: Mapping[str, Any]) -> str:
    """The name of a published or shipped model, else the last part of its path."""
    last = PurePath(str(flat.get("model.path") or "")).name
    return MODELS.get(last, last)
