"""What every method must do, whatever it is: the table in `cases.py` goes through all of these."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion_lab.config import METHODS, Prompts, Steps
from diffusion_lab.interfaces import Prompt, PromptSet
from diffusion_lab.sampling.sample import sample
from diffusion_lab.training.loop import training_step
from tests.methods.cases import CASES

PROMPT = Prompt("p", "a photo of customcls dog", "a photo of dog")
WORDS = PromptSet("one", (PROMPT,), "", "")
SETTINGS = Prompts(n=1, sampling_steps=2, guidance_scale=1.0, batch_size=1)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFUSION_LAB_CACHE", str(tmp_path / "cache"))


def picture(pipe) -> np.ndarray:
    return sample(pipe, WORDS, SETTINGS)[0]


def step(state, n: int = 3) -> None:
    for _ in range(n):
        training_step(state, Steps(batch_size=2))
        state.step += 1


def values(pipe) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{name}": value.clone()
        for part in ("unet", "vae", "text_encoder")
        for name, value in getattr(pipe, part).state_dict().items()
    }


def test_the_table_has_every_method() -> None:
    assert {case.make().name for case in CASES.values()} == set(METHODS)


@pytest.mark.parametrize("case", CASES)
def test_what_trains_moves_and_nothing_else(make_state, case: str) -> None:
    state = make_state(method=CASES[case].make(), noise_offset=0.05, snr_gamma=5.0)
    assert all(p.dtype == torch.float32 for p in state.trained)
    before = values(state.pipe)
    step(state)
    moved = {name for name, value in values(state.pipe).items() if not torch.equal(value, before[name])}
    assert moved
    assert all(CASES[case].trains(name) for name in moved), sorted(moved)[:5]
    own = {id(p) for p in state.trained}
    names = {
        f"{part}.{name}"
        for part in ("unet", "text_encoder")
        for name, p in getattr(state.pipe, part).named_parameters()
        if id(p) in own
    }
    assert len(names) == len(own)
    # A key's bias moves no softmax: its gradient is rounding, everything else must have moved.
    assert {n for n in names - moved if not n.endswith("k_proj.bias")} == set()


@pytest.mark.parametrize("case", [c for c in CASES if not c.startswith("textual_inversion")])
def test_untouched_at_step_0(make_state, tiny_pipe, case: str) -> None:
    assert np.array_equal(picture(make_state(method=CASES[case].make()).pipe), picture(tiny_pipe))


@pytest.mark.parametrize("case", CASES)
def test_loss_falls_on_one_batch(make_state, monkeypatch, case: str) -> None:
    state = make_state(method=CASES[case].make())
    batch = state.next_batch(2)
    monkeypatch.setattr(type(state), "next_batch", lambda self, size: batch)
    losses = []
    for _ in range(25):
        state.noise_stream.manual_seed(0)
        losses.append(training_step(state, Steps(batch_size=2))[0])
    assert losses[-1] < CASES[case].falls * losses[0]


@pytest.mark.parametrize("case", CASES)
def test_saved_and_loaded_gives_the_same_image(make_state, tmp_path: Path, case: str) -> None:
    state = make_state(method=CASES[case].make())
    step(state)
    ours = picture(state.pipe)
    assert all(path.is_file() for path in state.save(tmp_path / "artefact"))
    other = make_state(method=CASES[case].make(), seed=1)
    assert not np.array_equal(picture(other.pipe), ours)
    other.method.load(other.pipe, tmp_path / "artefact")
    assert np.array_equal(picture(other.pipe), ours)


@pytest.mark.parametrize("case", CASES)
def test_twice_the_same_to_the_bit(make_state, case: str) -> None:
    weights = []
    for _ in range(2):
        state = make_state(method=CASES[case].make())
        step(state)
        weights.append([p.detach().clone() for p in state.trained])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
