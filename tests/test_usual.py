"""What another tool's artefact is drawn with: the family's own numbers, in at most 30 steps."""

from __future__ import annotations

import pytest

from diffusion_lab.cli.compose import compose
from diffusion_lab.families import FAMILIES
from diffusion_lab.plan.defaults import fill_defaults
from diffusion_lab.plan.origin import usual


@pytest.mark.parametrize(
    ("family", "steps", "scale"), [("sd", 30, 7.5), ("sdxl", 30, 5.0), ("sd3", 30, 4.5), ("flux", 28, 3.5)]
)
def test_another_tools_artefact(family: str, steps: int, scale: float) -> None:
    found = usual(FAMILIES[family])
    assert (found["sampling_steps"], found["guidance_scale"]) == (steps, scale)


@pytest.mark.parametrize(
    ("model", "scale"), [("sd15", 7.5), ("sdxl", 5.0), ("sd35_medium", 4.5), ("flux_dev", 3.5)]
)
@pytest.mark.parametrize("prompts", ["full", "paper", "probes", "portrait_negative", "logo"])
def test_full_size_prompt_sets_take_the_familys_guidance(model: str, scale: float, prompts: str) -> None:
    data = ["data=folder", "data.folder=.", "data.class_noun=man"]
    config = compose([f"model={model}", f"prompts={prompts}", *data])
    steps = config.prompts.sampling_steps
    filled = fill_defaults(config)
    assert filled.prompts.guidance_scale == scale
    assert filled.prompts.sampling_steps == steps
    given = fill_defaults(
        compose([f"model={model}", f"prompts={prompts}", "prompts.guidance_scale=2", *data])
    )
    assert given.prompts.guidance_scale == 2


@pytest.mark.parametrize("model", ["sdxl", "sd35_medium", "sd35_large", "flux_dev"])
def test_the_large_models_are_known_before_they_are_fetched(model: str) -> None:
    data = ["data=folder", "data.folder=.", "data.class_noun=man"]
    config = fill_defaults(compose([f"model={model}", "experiment=full", *data]))
    assert config.model.resolution == 1024
    assert config.method.learning_rate == 1e-4  # the default of diffusers' three scripts for LoRA
    assert config.model.quantise is None
    assert config.method.targets == list(FAMILIES[str(config.model.family)].lora_targets)
