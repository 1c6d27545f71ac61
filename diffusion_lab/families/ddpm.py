"""Diffusion with a discrete noise schedule (DDPM, Ho et al. 2020, arXiv:2006.11239): training and sampling.

x_t = sqrt(abar_t) x + sqrt(1 - abar_t) noise, t uniform on 0..T-1. The noise schedule and the prediction type
are read from the config of the model's scheduler, whatever its class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from diffusers import DDPMScheduler
    from torch import Tensor

    from diffusion_lab.families.family import Config

PREDICTION_TYPES = ("epsilon", "v_prediction")

# Lu et al. 2022, "DPM-Solver++" (arXiv:2211.01095), algorithm 2 (2M). Explicit, so that neither a model's own
# scheduler config nor a library's new default changes the measurements.
SOLVER: dict[str, Any] = {
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
    "solver_type": "midpoint",
    "lower_order_final": True,
    "euler_at_final": False,
    "final_sigmas_type": "zero",
    "timestep_spacing": "linspace",
    "thresholding": False,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
    "use_flow_sigmas": False,
    "use_dynamic_shifting": False,
}


@dataclass(frozen=True, slots=True)
class Ddpm:
    """A `NoiseProcess`. Timesteps are int64, 0..T-1."""

    scheduler: DDPMScheduler

    def draw(self, generator: torch.Generator) -> Tensor:
        """int64 [1] on the CPU."""
        import torch

        return torch.randint(0, self.scheduler.config["num_train_timesteps"], (1,), generator=generator)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noisy latents [b, c, h, w]. Ho et al. 2020, eq. 4."""
        noisy: Tensor = self.scheduler.add_noise(latents, noise, timesteps)
        return noisy

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The noise, or v = sqrt(abar) noise - sqrt(1 - abar) x.

        v-prediction: Salimans and Ho 2022, arXiv:2202.00512, section 4. ValueError for other types.
        """
        prediction_type = self.scheduler.config["prediction_type"]
        if prediction_type == "epsilon":
            return noise
        if prediction_type == "v_prediction":
            velocity: Tensor = self.scheduler.get_velocity(latents, noise, timesteps)
            return velocity
        raise ValueError(f"prediction_type {prediction_type} is not epsilon or v_prediction")

    def weights(self, timesteps: Tensor, snr_gamma: float | None) -> Tensor | None:
        """Min-SNR weight [b]: min(SNR, gamma) / SNR, or min(SNR, gamma) / (SNR + 1) for v-prediction.

        Hang et al. 2023, arXiv:2303.09556, eq. 5 and appendix A: equivalent weights of the error in x for
        both targets.
        """
        if snr_gamma is None:
            return None
        from diffusers.training_utils import compute_snr

        snr: Tensor = compute_snr(self.scheduler, timesteps)
        is_v = self.scheduler.config["prediction_type"] == "v_prediction"
        return snr.clamp(max=snr_gamma) / (snr + 1 if is_v else snr)


def process(pipe: Any) -> Ddpm:
    """The training noise process, with the noise schedule and prediction type of the pipeline's scheduler."""
    from diffusers import DDPMScheduler

    return Ddpm(DDPMScheduler.from_config(pipe.scheduler.config))


def solver(pipe: Any, steps: int) -> Any:
    """A new DPM-Solver++ (it stores previous outputs) with its timesteps set, on the U-Net's device."""
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, **SOLVER)
    scheduler.set_timesteps(steps, device=pipe.unet.device)
    scheduler.set_begin_index(0)  # otherwise it looks up the index, which synchronises the device
    return scheduler


def unsupported(scheduler: Config) -> str | None:
    """Why a model with this scheduler config cannot be trained as DDPM; None if it can.

    EDM preconditions the denoiser (Karras et al. 2022, arXiv:2206.00364, section 5), but its configs also say
    "epsilon" or "v_prediction"; it is recognised by the class.
    """
    kind = str(scheduler.get("_class_name", ""))
    if kind.startswith("EDM"):
        return f"its scheduler is {kind}: the EDM formulation, which changes the denoiser's input and output"
    if kind.startswith("FlowMatch") or scheduler.get("prediction_type") == "flow_prediction":
        return f"its scheduler ({kind or 'of no class'}) is of flow matching, not of DDPM"
    prediction = scheduler.get("prediction_type", "epsilon")
    if prediction not in PREDICTION_TYPES:
        return f"prediction_type {prediction} of its scheduler is not one of {', '.join(PREDICTION_TYPES)}"
    return None
