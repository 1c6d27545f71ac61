"""Rectified flow against scipy's logit-normal, diffusers' training script and diffusers' schedulers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3
from scipy import stats

from diffusion_lab.families.flow import Flow, dynamic_mu, euler, flow, shift_of
from diffusion_lab.records import UserError

DYNAMIC = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}


def drawn(process: Flow, n: int = 4000) -> np.ndarray[Any, Any]:
    generator = torch.Generator().manual_seed(1)
    return torch.cat([process.draw(generator) for _ in range(n)]).double().numpy()


@pytest.mark.parametrize("shift", [1.0, 3.0, math.exp(1.15)])
def test_timesteps_are_logit_normal_and_shifted_once(shift: float) -> None:
    """In logits the shift is an addition: logit(shift u / (1 + (shift - 1) u)) = logit(u) + log(shift)."""
    sigmas = drawn(Flow(shift)) / 1000
    logits = np.log(sigmas / (1 - sigmas))
    assert stats.kstest(logits, stats.norm(loc=math.log(shift), scale=1).cdf).pvalue > 0.01
    # The test can tell: shifted twice, or not at all, is another distribution.
    wrong = 2 * math.log(shift) if shift > 1 else math.log(1.2)
    assert stats.kstest(logits, stats.norm(loc=wrong, scale=1).cdf).pvalue < 1e-6


def test_timesteps_follow_the_training_script_of_diffusers() -> None:
    """train_dreambooth_lora_sd3.py: logit-normal positions in the scheduler's own table, which is shifted."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    generator = torch.Generator().manual_seed(2)
    u = compute_density_for_timestep_sampling("logit_normal", 4000, 0.0, 1.0, generator=generator)
    script = scheduler.timesteps[(u * 1000).long()].numpy()
    assert stats.ks_2samp(script, drawn(flow(scheduler.config, 1024))).pvalue > 0.01
    assert stats.ks_2samp(script, drawn(Flow(1.0))).pvalue < 1e-6


def test_a_draw_takes_one_normal_number_from_the_generator() -> None:
    first, second = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    timestep = Flow(3.0).draw(first)
    u = torch.sigmoid(torch.randn(1, generator=second))
    assert timestep.shape == (1,)
    assert timestep.dtype == torch.float32
    assert torch.equal(first.get_state(), second.get_state())
    torch.testing.assert_close(timestep, 1000 * 3 * u / (1 + 2 * u))


def test_noise_and_target_are_those_of_the_training_script() -> None:
    """scale_noise of the scheduler at timesteps of its table; target = noise - model_input; weights of 1."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    latents, noise = torch.randn(3, 16, 4, 6), torch.randn(3, 16, 4, 6)
    timesteps = scheduler.timesteps[[0, 400, 999]]
    process = flow(scheduler.config, 6)
    torch.testing.assert_close(
        process.add_noise(latents, noise, timesteps), scheduler.scale_noise(latents, timesteps, noise)
    )
    assert torch.equal(process.add_noise(latents, noise, timesteps)[0], noise[0])  # index 0 is sigma 1
    assert torch.equal(process.target(latents, noise, timesteps), noise - latents)
    assert process.weights(timesteps, None) is None
    assert torch.equal(compute_loss_weighting_for_sd3("logit_normal", scheduler.sigmas[:3]), torch.ones(3))


def test_the_target_leads_from_noise_to_the_picture() -> None:
    """One Euler step over the whole path with the true velocity."""
    latents, noise = torch.randn(1, 16, 4, 4), torch.randn(1, 16, 4, 4)
    process = Flow(3.0)
    start = torch.tensor([700.0])
    noisy = process.add_noise(latents, noise, start)
    torch.testing.assert_close(noisy - 0.7 * process.target(latents, noise, start), latents)


def test_noise_keeps_the_dtype_of_latents() -> None:
    latents = torch.zeros(1, 16, 2, 2, dtype=torch.bfloat16)
    noisy = Flow().add_noise(latents, torch.ones_like(latents), torch.tensor([500.0]))
    assert noisy.dtype == torch.bfloat16
    assert torch.equal(noisy, torch.full_like(latents, 0.5))


def test_min_snr_is_refused_by_its_key() -> None:
    with pytest.raises(UserError, match=r"steps\.snr_gamma=5: .*set steps\.snr_gamma=null"):
        Flow().weights(torch.tensor([500.0]), 5.0)


@pytest.mark.parametrize("tokens", [256, 1024, 4096, 100])
def test_dynamic_shift_is_that_of_the_pipelines(tokens: int) -> None:
    assert dynamic_mu(DYNAMIC, tokens) == pytest.approx(calculate_shift(tokens, 256, 4096, 0.5, 1.15))
    assert shift_of(DYNAMIC, tokens) == pytest.approx(math.exp(calculate_shift(tokens, 256, 4096, 0.5, 1.15)))


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_training_shifts_as_the_scheduler_does(kind: str) -> None:
    config = {**DYNAMIC, "time_shift_type": kind}
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
    u = torch.linspace(0.05, 1, 20, dtype=torch.float64)
    shift = shift_of(scheduler.config, 1024)
    torch.testing.assert_close(
        shift * u / (1 + (shift - 1) * u), scheduler.time_shift(dynamic_mu(config, 1024), 1.0, u)
    )


@pytest.mark.parametrize("config", [{"shift": 3.0}, DYNAMIC, {"shift": 1.0}])
def test_the_solver_goes_from_noise_to_the_picture(config: dict[str, Any]) -> None:
    """With the velocity of one picture, Euler is exact whatever the steps."""
    picture, noise = torch.randn(1, 16, 4, 4), torch.randn(1, 16, 4, 4)
    config = dict(FlowMatchEulerDiscreteScheduler.from_config(config).config)
    for sigmas in (None, np.linspace(1.0, 1 / 5, 5).tolist()):
        scheduler = euler(config, 5, 1024, "cpu", sigmas)
        assert len(scheduler.timesteps) == 5
        assert scheduler.timesteps[0] == 1000
        assert scheduler.begin_index == 0
        latents = noise
        for t in scheduler.timesteps:
            latents = scheduler.step(noise - picture, t, latents, return_dict=False)[0]
        torch.testing.assert_close(latents, picture)


def test_the_solver_shifts_given_levels_once() -> None:
    config = FlowMatchEulerDiscreteScheduler.from_config(DYNAMIC).config
    levels = np.linspace(1.0, 1 / 4, 4)
    shift = math.exp(calculate_shift(1024, 256, 4096, 0.5, 1.15))
    expected = torch.tensor(1000 * shift * levels / (1 + (shift - 1) * levels), dtype=torch.float32)
    torch.testing.assert_close(euler(config, 4, 1024, "cpu", levels.tolist()).timesteps, expected)
