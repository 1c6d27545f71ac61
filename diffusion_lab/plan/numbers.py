"""How often a run evaluates and how many images it samples; used by the plan, the loop and the record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffusion_lab.config.schedule import evaluation_steps, sampler
from diffusion_lab.data.prompts import images_per_prompt
from diffusion_lab.families.guidance import is_guided
from diffusion_lab.models.which_family import which_family

if TYPE_CHECKING:
    from diffusion_lab.config.schema import Config
    from diffusion_lab.families.family import Family
    from diffusion_lab.records import PromptSet


@dataclass(frozen=True, slots=True)
class PlannedEvaluations:
    """The evaluations of a run."""

    evaluations: tuple[int, ...]  # the steps at which the model is evaluated
    per_evaluation: int  # images
    forwards: int  # images through the denoiser in all evaluations; counted twice with guidance

    @property
    def sampled(self) -> int:
        """Number of images in all evaluations."""
        return self.per_evaluation * len(self.evaluations)


def planned(config: Config, prompts: PromptSet) -> PlannedEvaluations:
    """The evaluations of a run with these prompts; `config` has its defaults filled."""
    evaluations = evaluation_steps(config.steps)
    per_evaluation = len(prompts) * images_per_prompt(config.prompts, prompts)
    steps, _ = sampler(config.prompts)
    passes = steps * passes_a_step(config, which_family(config.model))
    return PlannedEvaluations(evaluations, per_evaluation, per_evaluation * len(evaluations) * passes)


def passes_a_step(config: Config, family: Family) -> int:
    """Denoiser passes per image and step: two with classifier-free guidance."""
    return 2 if is_guided(family, sampler(config.prompts)[1]) else 1
