"""What an artefact's header says of the sampling: the settings with which its images were measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffusion_lab.values.jsonable import dumps

if TYPE_CHECKING:
    from diffusion_lab.config.schema import Config

HEADER = "sampling"  # of an artefact: JSON of the groups `model` and `prompts`, and of the device
MODEL = ("path", "family", "config", "revision", "variant", "resolution", "precision", "quantise")
SAMPLER = ("sampling_steps", "guidance_scale", "negative", "batch_size", "noise_seed")
SET = ("name", "path", "n", "images_per_prompt", "seed")  # of prompts: one is not taken without the others


def note(config: Config, device: str, negative: str, sampler: str) -> str:
    """The header's value. `negative`: the prompt set's, as it was used; `sampler`: the family's."""
    model = {key: getattr(config.model, key) for key in MODEL}
    prompts = {key: getattr(config.prompts, key) for key in (*SET, *SAMPLER)} | {"negative": negative}
    return dumps({"device": device, "scheduler": sampler, "model": model, "prompts": prompts})
