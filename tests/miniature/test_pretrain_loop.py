"""The training loop: a run that was killed ends as one that was not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diffusion_lab.recipes.miniature.loop import Schedule, Step, train
from diffusion_lab.recipes.miniature.vae import new_vae

States = Mapping[str, Mapping[str, Tensor]]


def small_vae_run(folder: Path, steps: int, kill_at: int | None = None) -> dict[str, dict[str, Tensor]]:
    torch.manual_seed(0)
    net = new_vae((8, 8, 8))

    def loss(step: Step) -> tuple[Tensor, dict[str, float]]:
        images = torch.from_numpy(step.numpy.normal(size=(2, 3, 16, 16)).astype(np.float32))
        noise = torch.randn(2, 4, 4, 4, generator=step.torch)
        out = net.decode(net.encode(images).latent_dist.mean + 0.1 * noise).sample
        return (out - images).abs().mean(), {}

    def every(step: int, _: States) -> None:
        if step == kill_at:
            raise KeyboardInterrupt

    schedule = Schedule(steps=steps, lr=1e-3, ema=0.9, checkpoint_seconds=0.0)
    return train("small", folder, {"net": net}, loss, schedule, progress=False, every=every)


def test_resumes_to_the_same_weights(tmp_path: Path) -> None:
    whole = small_vae_run(tmp_path / "whole", 6)
    with pytest.raises(KeyboardInterrupt):
        small_vae_run(tmp_path / "killed", 6, kill_at=3)
    resumed = small_vae_run(tmp_path / "killed", 6)
    for key, value in whole["net"].items():
        torch.testing.assert_close(resumed["net"][key], value, rtol=0, atol=0)


def test_finished_run_returns_its_average(tmp_path: Path) -> None:
    first, again = small_vae_run(tmp_path, 3), small_vae_run(tmp_path, 3)
    assert all(torch.equal(first["net"][key], again["net"][key]) for key in first["net"])


@pytest.mark.parametrize("decay", [0.3, 0.999])
def test_average_is_the_formula(tmp_path: Path, decay: float) -> None:
    """Every step by min(decay, n / (n + 9)), weights and running statistics alike, from the untrained net on."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    expected = {key: value.double() for key, value in net.state_dict().items()}
    seen = 0

    def loss(step: Step) -> tuple[Tensor, dict[str, float]]:
        return net(torch.randn(8, 3, generator=step.torch)).pow(2).mean(), {}

    def compare(step: int, states: States) -> None:
        nonlocal seen
        rate = min(decay, step / (step + 9))
        for key, value in net.state_dict().items():
            if value.is_floating_point():
                expected[key] = rate * expected[key] + (1 - rate) * value.double()
                torch.testing.assert_close(states["net"][key].double(), expected[key], rtol=1e-5, atol=1e-6)
            else:
                assert torch.equal(states["net"][key], value)
        seen += 1

    schedule = Schedule(steps=30, lr=1e-2, ema=decay)
    averaged = train("average", tmp_path, {"net": net}, loss, schedule, progress=False, every=compare)
    assert seen == 30
    moved = (averaged["net"]["0.weight"] - net.state_dict()["0.weight"]).abs().max()
    assert moved > 1e-4  # the average is not the net itself


def test_nan_stops(tmp_path: Path) -> None:
    net = nn.Linear(1, 1)
    with pytest.raises(FloatingPointError, match="step 0"):
        train(
            "nan",
            tmp_path,
            {"net": net},
            lambda _: (net.weight.sum() * torch.nan, {}),
            Schedule(steps=2, lr=1.0),
        )
    assert not (tmp_path / "checkpoints" / "nan.pt").exists()


def test_learning_rate() -> None:
    schedule = Schedule(steps=1000, lr=1.0, warmup=100)
    rates = [schedule.lr_at(step) for step in range(1000)]
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) == pytest.approx(1.0)
    assert np.argmax(rates) in (99, 100)
    assert rates[-1] == pytest.approx(0.02, abs=1e-3)
