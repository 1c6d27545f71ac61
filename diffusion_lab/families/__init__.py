"""Model families, one file each.

`of(pipe)` is the family of a loaded pipeline. Imports neither torch nor diffusers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diffusion_lab.families.flux import Flux
from diffusion_lab.families.sd import StableDiffusion
from diffusion_lab.families.sd3 import StableDiffusion3
from diffusion_lab.families.sdxl import StableDiffusionXL

if TYPE_CHECKING:
    from diffusion_lab.families.family import Family

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        StableDiffusion(),
        StableDiffusionXL(),
        StableDiffusion3(),
        Flux(),
    )
}  # fmt: skip


def by_pipeline(class_name: str) -> Family | None:
    """The family with this pipeline class, `_class_name` of model_index.json; None if there is none."""
    return next((family for family in FAMILIES.values() if family.pipeline == class_name), None)


def of(pipe: Any) -> Family:
    """The family of a loaded pipeline, by its class. ValueError if no family supports it."""
    for kind in type(pipe).__mro__:
        family = by_pipeline(kind.__name__)
        if family is not None:
            return family
    raise ValueError(f"{type(pipe).__name__} is a pipeline of none of {', '.join(FAMILIES)}")
