"""The sampling settings in an artefact's header, with which its images were measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffusion_lab.values.jsonable import dumps

if TYPE_CHECKING:
    from diffusion_lab.config.schema import Config

# key in an artefact's header: JSON of the groups `model` and `prompts`, and of the device
HEADER = "sampling"
MODEL = ("path", "family", "config", "revision", "variant", "resolution", "precision", "quantise")
SAMPLER = ("sampling_steps", "guidance_scale", "negative", "batch_size", "noise_seed")
SET = ("name", "path", "n", "images_per_prompt", "seed")  # settings of prompts that are only used together


def note(config: Config, device: str, negative: str, sampler: str) -> str:
    """The header's value. `negative`: the prompt set's, as used; `sampler`: the family's."""
    model = {key: getattr(config.model, key) for key in MODEL}
    prompts = {key: getattr(config.prompts, key) for key in (*SET, *SAMPLER)} | {"negative": negative}
    return dumps({"device": device, "scheduler": sampler, "model": model, "prompts": prompts})
