"""Every optimizer trains, keeps its groups and says what it lacks."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion_lab.cli.compose import compose
from diffusion_lab.config.schema import OPTIMIZERS, Steps
from diffusion_lab.jobs import check
from diffusion_lab.methods.dreambooth import DreamBooth
from diffusion_lab.methods.lora import Lora
from diffusion_lab.methods.method import ParamGroup
from diffusion_lab.plan.defaults import fill_defaults
from diffusion_lab.records import UserError
from diffusion_lab.training import checkpoint
from diffusion_lab.training.loop import train, training_step
from diffusion_lab.training.optimizers import build_optimizer

PACKAGES = {"adamw8bit": "bitsandbytes", "prodigy": "prodigyopt"}
NAMES = [
    pytest.param(name, marks=pytest.mark.skipif(
        name in PACKAGES and not importlib.util.find_spec(PACKAGES[name]),
        reason=f"{PACKAGES.get(name)} is not installed",
    ))
    for name in OPTIMIZERS
]  # fmt: skip


def group(name: str, rate: float, decay: float, *shape: int) -> ParamGroup:
    values = torch.linspace(-1, 1, int(torch.tensor(shape).prod())).reshape(shape)
    return ParamGroup(name, [torch.nn.Parameter(values)], rate, decay)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_with_it_learns_and_repeats_to_the_bit(make_state, monkeypatch, name: str) -> None:
    weights = []
    for _ in range(2):
        rate = 1.0 if name == "prodigy" else 1e-2
        state = make_state(
            method=Lora(rank=16, targets=["ff.net.0.proj"], learning_rate=rate), optimizer=name
        )
        batch = state.next_batch(2)
        monkeypatch.setattr(type(state), "next_batch", lambda self, size, batch=batch: batch)
        losses = []
        for _ in range(20):
            state.noise_stream.manual_seed(0)
            losses.append(training_step(state, Steps(batch_size=2))[0])
        assert losses[-1] < losses[0] - (0 if name == "prodigy" else 0.001)  # it begins at a rate of 1e-6
        weights.append([p.detach().clone() for p in state.trained])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


@pytest.mark.parametrize("name", [p for p in NAMES if p.values[0] != "prodigy"])
def test_the_first_step_is_adamws(name: str) -> None:
    """p <- p - lr (wd p + m / (sqrt(v) + eps)), and the first m / sqrt(v) is the gradient's sign."""
    groups = [group("a", 0.1, 0.0, 64, 128), group("b", 0.02, 0.5, 16)]
    before = [g.params[0].detach().clone() for g in groups]
    optimizer = build_optimizer(name, groups, torch.device("cpu"))
    assert [g["name"] for g in optimizer.param_groups] == ["a", "b"]
    for g in groups:
        g.params[0].grad = torch.sin(40 * g.params[0].detach()) + 1.5  # positive everywhere
    optimizer.step()
    for g, old in zip(groups, before, strict=True):
        expected = old - g.learning_rate * (g.weight_decay * old + 1)
        tolerance = (2e-2 if name == "adamw8bit" else 1e-4) * g.learning_rate
        torch.testing.assert_close(g.params[0].detach(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", [p for p in NAMES if p.values[0] == "adamw8bit"])
def test_eight_bits_take_a_quarter_of_the_memory(name: str) -> None:
    groups = [group("a", 1e-3, 0.0, 256, 256)]
    groups[0].params[0].grad = torch.ones(256, 256)
    optimizer = build_optimizer(name, groups, torch.device("cpu"))
    optimizer.step()
    (state,) = optimizer.state.values()
    used = sum(
        v.numel() * v.element_size()
        for k, v in state.items()
        if k in ("state1", "state2", "absmax1", "absmax2")
    )
    assert used < 0.27 * 2 * 4 * 256 * 256


@pytest.mark.parametrize("name", [p for p in NAMES if p.values[0] == "prodigy"])
def test_prodigy_finds_one_rate(make_state, name: str, capsys) -> None:
    method = Lora(rank=4, text_encoder=True, learning_rate=1.0, text_encoder_learning_rate=0.1)
    with pytest.raises(UserError, match="finds one rate for all, and these differ"):
        make_state(method=method, optimizer=name)
    logged = []
    state = make_state(
        method=DreamBooth(prior_weight=0.0, learning_rate=1.0), optimizer=name, total=3, every=3
    )
    train(state, steps=Steps(total=3, every=3, batch_size=2, log_every=1), evaluate=lambda _: None,
          on_log=lambda _, values: logged.append(values["train/learning_rate"]), on_step=lambda _: None)  # fmt: skip
    assert logged[0] <= logged[-1] < 1e-2  # its estimate, not the factor
    assert "decay" not in capsys.readouterr().out


def test_rates_that_the_optimizer_finds_are_filled_with_one() -> None:
    filled = fill_defaults(compose(["steps.optimizer=prodigy", "method.text_encoder=true"])).method
    assert (filled.learning_rate, filled.text_encoder_learning_rate) == (1.0, 1.0)
    with pytest.raises(UserError, match="method=pivotal trains two things"):
        compose(["steps.optimizer=prodigy", "method=pivotal"])
    with pytest.raises(UserError, match="did you mean 'prodigy'"):
        compose(["steps.optimizer=prodgy"])


@pytest.mark.parametrize(("name", "package"), PACKAGES.items())
def test_a_missing_package_is_named_before_anything_is_loaded(monkeypatch, tmp_path, name, package) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda n, *a: None if n == package else found(n, *a))
    config = fill_defaults(compose([f"steps.optimizer={name}"]))
    with pytest.raises(UserError, match=rf"steps\.optimizer={name}: needs the package {package}"):
        check(config, tmp_path / "run")
    monkeypatch.setitem(sys.modules, package, None)  # there, and it does not load
    with pytest.raises(UserError, match=rf"{package} cannot be loaded"):
        build_optimizer(name, [group("a", 1.0, 0.0, 4)], torch.device("cpu"))


@pytest.mark.parametrize("name", NAMES)
def test_it_goes_on_from_a_checkpoint_to_the_bit(make_state, tmp_path: Path, name: str) -> None:
    """Its moments, and Prodigy's estimate of the rate, come back through the file; large tensors are in 8 bits."""

    def build() -> Any:
        method = Lora(rank=64, targets=["ff.net.0.proj"], learning_rate=1.0 if name == "prodigy" else 1e-2)
        return make_state(method=method, optimizer=name, lr_scheduler="cosine", total=6)

    whole, first, second = build(), build(), build()
    for state, steps in ((whole, 6), (first, 3)):
        for _ in range(steps):
            training_step(state, Steps(batch_size=2))
            state.step += 1
    found = checkpoint.read(checkpoint.write(checkpoint.capture(first), tmp_path))
    checkpoint.restore(second, found)
    for _ in range(3):
        training_step(second, Steps(batch_size=2))
    assert max(p.numel() for p in whole.trained) >= 4096, "bitsandbytes keeps smaller ones in 32 bits"
    assert all(torch.equal(a, b) for a, b in zip(whole.trained, second.trained, strict=True))
