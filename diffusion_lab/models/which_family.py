"""Which family a model is of, by `model.family` or its own model_index.json; asked before anything is loaded."""

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
    """Of what cannot be known before it is fetched: Stable Diffusion."""
    if model.family is not None:
        return FAMILIES[model.family]
    found = None if model.path in MINIATURES else by_pipeline(_pipeline_name(model))
    return found or FAMILIES[DEFAULT]


def _pipeline_name(model: Model) -> str:
    """What model_index.json calls the pipeline's class; "" where no such file is on this machine."""
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
