"""DDPM against its formulas in float64, and against diffusers' schedulers to the bit."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, PNDMScheduler

from diffusion_lab.families import ddpm, losses

T = 1000
BETAS = np.linspace(0.00085**0.5, 0.012**0.5, T) ** 2
ABAR = np.cumprod(1 - BETAS)


def pipe_of(prediction_type: str) -> Any:
    scheduler = PNDMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type=prediction_type,
        set_alpha_to_one=False, skip_prk_steps=True, steps_offset=1,
    )  # fmt: skip
    return SimpleNamespace(scheduler=scheduler, unet=SimpleNamespace(device=torch.device("cpu")))


@pytest.fixture
def drawn() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn((2, 4, 4, 8, 8), generator=generator)
    return latents, noise, torch.tensor([0, 20, 500, 999])


def test_draws_are_those_of_the_loss() -> None:
    process = ddpm.process(pipe_of("epsilon"))
    ours, theirs = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    latents = torch.zeros(64, 1, 2, 2)
    found = losses.draw_noise(latents, process, theirs)
    timesteps = []
    for row in range(len(latents)):
        assert torch.equal(torch.randn((1, 2, 2), generator=ours), found.noise[row])
        timesteps.append(torch.randint(0, T, (1,), generator=ours))
    assert torch.equal(torch.cat(timesteps), found.timesteps)
    assert found.timesteps.min() < 100
    assert found.timesteps.max() > 900


@pytest.mark.parametrize("prediction_type", ddpm.PREDICTION_TYPES)
def test_noise_target_and_weights(prediction_type: str, drawn: tuple[torch.Tensor, ...]) -> None:
    latents, noise, timesteps = drawn
    process = ddpm.process(pipe_of(prediction_type))
    x, e = latents.double().numpy(), noise.double().numpy()
    abar = ABAR[timesteps.numpy()]
    a, b = (np.sqrt(v)[:, None, None, None] for v in (abar, 1 - abar))
    assert np.allclose(process.add_noise(latents, noise, timesteps), a * x + b * e, atol=1e-4)
    target = e if prediction_type == "epsilon" else a * e - b * x
    assert np.allclose(process.target(latents, noise, timesteps), target, atol=1e-4)
    assert process.weights(timesteps, None) is None
    snr = abar / (1 - abar)
    weights = np.minimum(snr, 5) / (snr if prediction_type == "epsilon" else snr + 1)
    found = process.weights(timesteps, 5.0)
    assert found is not None
    assert np.allclose(found, weights, rtol=1e-3)

    scheduler = DDPMScheduler.from_config(pipe_of(prediction_type).scheduler.config)
    assert torch.equal(
        process.add_noise(latents, noise, timesteps), scheduler.add_noise(latents, noise, timesteps)
    )
    velocity = scheduler.get_velocity(latents, noise, timesteps)
    assert torch.equal(
        process.target(latents, noise, timesteps), noise if prediction_type == "epsilon" else velocity
    )


def test_another_prediction_type_has_no_target(drawn: tuple[torch.Tensor, ...]) -> None:
    process = ddpm.process(pipe_of("sample"))
    with pytest.raises(ValueError, match="prediction_type sample is not"):
        process.target(*drawn)


@pytest.mark.parametrize("prediction_type", ddpm.PREDICTION_TYPES)
def test_the_solver_is_the_samplers(prediction_type: str) -> None:
    pipe = pipe_of(prediction_type)
    found = ddpm.solver(pipe, 7)
    expected = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, **ddpm.SOLVER)
    expected.set_timesteps(7, device="cpu")
    assert type(found) is DPMSolverMultistepScheduler
    assert dict(found.config) == dict(expected.config)
    assert torch.equal(found.timesteps, expected.timesteps)
    assert torch.equal(found.sigmas, expected.sigmas)
    assert found.begin_index == 0
    assert isinstance(pipe.scheduler, PNDMScheduler)
    assert ddpm.solver(pipe, 7) is not found


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({}, None),
        ({"_class_name": "EulerDiscreteScheduler", "prediction_type": "v_prediction"}, None),
        ({"_class_name": "EDMDPMSolverMultistepScheduler", "prediction_type": "epsilon"}, "EDM formulation"),
        ({"_class_name": "EDMEulerScheduler"}, "EDM formulation"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "flow matching"),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "prediction_type": "flow_prediction"},
            "flow matching",
        ),
        (
            {"prediction_type": "sample"},
            "prediction_type sample of its scheduler is not one of epsilon, v_pred",
        ),
    ],
)
def test_schedulers_that_are_refused(config: dict[str, str], reason: str | None) -> None:
    found = ddpm.unsupported(config)
    assert found is None if reason is None else reason in str(found)
