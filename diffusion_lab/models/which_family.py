"""Determines a model's family from `model.family` or its model_index.json, before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion_lab.families import FAMILIES, by_pipeline
from diffusion_lab.miniature.shipped import MINIATURES
from diffusion_lab.models.hub import HUB_ID, cached

if TYPE_CHECKING:
    from diffusion_lab.config.schema import Model
    from diffusion_lab.families.family import Family

DEFAULT = "sd"


def which_family(model: Model) -> Family:
    """The model's family; Stable Diffusion if it cannot be determined before the download."""
    if model.family is not None:
        return FAMILIES[model.family]
    found = None if model.path in MINIATURES else by_pipeline(_pipeline_name(model))
    return found or FAMILIES[DEFAULT]


def _pipeline_name(model: Model) -> str:
    """The pipeline class named in model_index.json; "" if there is no such file on this machine."""
    place = Path(model.config or model.path).expanduser()
    index: Path | None = place / "model_index.json"
    if not place.is_dir() and HUB_ID.fullmatch(str(model.config or model.path)):
        index = cached(
            str(model.config or model.path), "model_index.json", None if model.config else model.revision
        )
    try:
        return str(json.loads(index.read_text("utf-8"))["_class_name"]) if index is not None else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""
