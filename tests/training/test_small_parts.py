"""Modes, random streams and the meter."""

from __future__ import annotations

import dataclasses
import random
from contextlib import suppress
from pathlib import Path
from time import sleep

import numpy as np
import pytest
import torch
from torch import nn

from diffusion_lab.system.modes import eval_mode, training_mode
from diffusion_lab.system.rng import RngState, generator, preserved_rng, seeded, stream_seed
from diffusion_lab.training.meter import Meter


def test_modes_are_restored_module_by_module_even_after_an_error() -> None:
    net = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.Linear(1, 1)))
    net.train()
    net[1][0].eval()  # someone froze one part on purpose
    before = [m.training for m in net.modules()]
    with training_mode(net):
        assert all(m.training for m in net.modules())
        with suppress(KeyError), eval_mode(net):
            assert not any(m.training for m in net.modules())
            raise KeyError
        assert all(m.training for m in net.modules())
    assert [m.training for m in net.modules()] == before


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002


def test_preserved_rng_restores_all_streams_even_after_an_error() -> None:
    with seeded(3):
        expected = [draws() for _ in range(2)]
    with seeded(3):
        first = draws()
        with suppress(KeyError), preserved_rng():
            draws()
            torch.manual_seed(9)
            raise KeyError
        assert [first, draws()] == expected


def test_streams_of_more_cards_than_there_are_now_are_left_out(monkeypatch) -> None:
    given: list[object] = []
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", lambda states: given.append(list(states)))
    cards = torch.zeros(16, dtype=torch.uint8), torch.ones(16, dtype=torch.uint8)
    state = dataclasses.replace(RngState.capture(), cuda=cards)
    for there, expected in ((2, [*cards]), (1, [cards[0]]), (0, [])):
        monkeypatch.setattr(torch.cuda, "device_count", lambda there=there: there)
        state.restore()
        assert given.pop() == expected
    assert not given


def test_seeded_does_not_leak() -> None:
    with preserved_rng():
        random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
        with seeded(2):
            inside = draws()
        after = draws()
        random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
        assert draws() == after != inside


def test_streams_are_independent() -> None:
    seeds = {
        stream_seed(seed, name) for seed in range(4) for name in ("noise", "latents", "weights", "order")
    }
    assert len(seeds) == 16
    assert all(0 <= seed < 2**63 for seed in seeds)
    a, b = generator(0, "noise"), generator(0, "noise")
    assert torch.equal(torch.randn(5, generator=a), torch.randn(5, generator=b))


def test_meter_on_a_system_without_unixs_resources(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows: it can be imported, and measures by psutil."""
    import importlib.util
    import sys

    import psutil  # noqa: F401 - before `resource` is gone: on Linux it needs it

    from diffusion_lab.training import meter

    spec = importlib.util.spec_from_file_location("meter_elsewhere", meter.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "meter_elsewhere", module)
    monkeypatch.setitem(sys.modules, "resource", None)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "Path", lambda name: Path("/nowhere") / Path(name).name)
    assert module._resident_peak() >= 0


def test_meter_keeps_phases_apart() -> None:
    meter = Meter(torch.device("cpu"))
    with meter.phase("training"):
        sleep(0.02)
    with meter.phase("evaluation"):
        block = np.ones(40_000_000)  # 305 MiB, touched
        del block
    sleep(0.05)  # belongs to nobody
    with meter.phase("training"):
        sleep(0.02)
    phases = meter.summary()
    assert set(phases) == {"training", "evaluation"}
    assert 0.04 <= phases["training"]["seconds"] < 10
    assert phases["evaluation"]["peak_bytes"] > 0
    assert phases["evaluation"]["peak_bytes"] - phases["training"]["peak_bytes"] > 200 * 2**20
