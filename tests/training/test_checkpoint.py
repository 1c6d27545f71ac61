"""A run that was stopped anywhere and goes on is the run that was not, to the bit; for every method."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion_lab.config.schema import Steps
from diffusion_lab.methods.lora import Lora
from diffusion_lab.records import UserError
from diffusion_lab.system.rng import RngState
from diffusion_lab.training import checkpoint
from diffusion_lab.training.loop import train
from tests.methods.cases import CASES

TOTAL = 5
CURVES = ("train/loss", "train/grad_norm", "train/learning_rate")


class Stopped(Exception):
    """What a kill is to a process."""


@pytest.fixture(autouse=True)
def own_cache(session_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFUSION_LAB_CACHE", str(session_cache))


def run(state: Any, root: Path, logs: dict[int, Any], stop_at: int | None = None, **values: Any) -> None:
    """Trains `state` to the end, or to an exception in the middle of the step after `stop_at`."""
    wanted = {"total": TOTAL, "every": 3, "batch_size": 2, "log_every": 2, "checkpoint_every": 1, **values}

    def on_log(step: int, numbers: dict[str, float]) -> None:
        logs[step] = [numbers[name] for name in CURVES]

    loss = type(state.method).loss

    def interrupted(self: Any, pipe: Any, batch: Any, generator: Any) -> Any:
        value = loss(self, pipe, batch, generator)
        if state.step == stop_at:  # samplers and streams have moved on, the weights have not
            raise Stopped
        return value

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(state.method), "loss", interrupted)
        train(
            state,
            steps=Steps(**wanted),
            evaluate=lambda step: torch.rand(3),
            on_log=on_log,
            on_step=lambda step: None,
            checkpoint=lambda step: checkpoint.write(checkpoint.capture(state), root),
        )


def weights(state: Any) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in state.trained]


def same(a: Any, b: Any) -> bool:
    """Whether two nested values are equal, tensors to the bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


@pytest.mark.parametrize("case", CASES)
def test_stopped_in_the_middle_of_steps_and_gone_on_with(make_state, tmp_path: Path, case: str) -> None:
    settings = {"total": TOTAL, "lr_scheduler": "cosine", "noise_offset": 0.05}
    draw = random.Random(case)
    whole_logs: dict[int, Any] = {}
    whole = make_state(method=CASES[case].make(), flip=True, **settings)
    run(whole, tmp_path / "whole", whole_logs)

    logs: dict[int, Any] = {}
    every = draw.choice([1, 2, None])
    root = tmp_path / "pieces"
    twice = case in ("lora", "dreambooth_prior", "pivotal")  # what goes on is stopped again
    stops = [*sorted(draw.sample(range(TOTAL), 2 if twice else 1)), None]
    for stop_at in stops:
        torch.manual_seed(draw.randrange(1000))  # another process
        state = make_state(method=CASES[case].make(), flip=True, **settings)
        newest = checkpoint.latest(root)
        assert (newest is None) == (stop_at == stops[0])
        if newest is not None:
            checkpoint.restore(state, newest)
        try:
            run(state, root, logs, stop_at, checkpoint_every=every)
        except Stopped:
            assert stop_at is not None
    assert logs == whole_logs
    ours, theirs = checkpoint.capture(state), checkpoint.capture(whole)
    for name in ours.keys() - {"meter", "since"}:  # seconds differ
        assert same(ours[name], theirs[name]), name
    assert state.since.losses == whole.since.losses


def test_dropout_and_adapters_in_the_text_encoder(make_state, tmp_path: Path) -> None:
    """The global streams matter here, and accumulation splits the steps."""
    method = Lora(rank=4, dropout=0.4, text_encoder=True, learning_rate=1e-2)
    whole, first, second = (make_state(method=method, total=TOTAL) for _ in range(3))
    run(whole, tmp_path / "whole", {}, gradient_accumulation=2)
    with pytest.raises(Stopped):
        run(first, tmp_path / "pieces", {}, 4, gradient_accumulation=2)
    newest = checkpoint.latest(tmp_path / "pieces")
    assert newest is not None
    assert newest.step == 4
    checkpoint.restore(second, newest)
    random.random(), torch.rand(5)
    run(second, tmp_path / "pieces", {}, gradient_accumulation=2)
    assert same(weights(whole), weights(second))
    assert second.meter.seconds["training"] > newest.values["meter"]["seconds"]["training"] > 0


def test_a_damaged_one_is_passed_over_and_named(make_state, tmp_path: Path, caplog) -> None:
    state = make_state()
    for step in (1, 2, 3, 4):
        state.step = step
        checkpoint.write(checkpoint.capture(state), tmp_path)
    newest = tmp_path / "step-000004" / checkpoint.STATE
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1  # one bit
    newest.write_bytes(content)
    with (tmp_path / "step-000003" / checkpoint.STATE).open("r+b") as file:
        file.truncate(1000)
    (tmp_path / "step-000002" / checkpoint.CHECKSUM).write_text('{"schema": 1, "sha')
    (tmp_path / ".step-000009.1.tmp").mkdir()
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert found.step == 1
    for name in ("step-000004", "step-000003", "step-000002"):
        assert any(name in line and "damaged" in line for line in caplog.messages)
    (tmp_path / "step-000001" / checkpoint.STATE).unlink()
    assert checkpoint.latest(tmp_path) is None
    assert checkpoint.latest(tmp_path / "nowhere") is None


def test_another_schema_is_refused_with_the_reason(make_state, tmp_path: Path) -> None:
    folder = checkpoint.write(checkpoint.capture(make_state()), tmp_path)
    told = json.loads((folder / checkpoint.CHECKSUM).read_text())
    (folder / checkpoint.CHECKSUM).write_text(json.dumps({**told, "schema": 99}))
    with pytest.raises(UserError, match=r"schema 99, this version reads 1.*hydra\.run\.dir"):
        checkpoint.latest(tmp_path)


def test_no_pickled_object_is_loaded(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return math.floor, (1.5,)

    checkpoint.write({"step": 3, "bad": Evil()}, tmp_path)
    with pytest.raises(ValueError, match="weights_only"):
        checkpoint.read(tmp_path / "step-000003")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("pictures", "the subject's pictures"),
        ("model", "the model's weights"),
        ("rank", "the trained parameters"),
    ],
)
def test_what_belongs_to_another_run_is_refused(
    make_state, tiny_subject, tiny_v_sd_folder, tmp_path: Path, change: str, told: str
) -> None:
    import dataclasses

    checkpoint.write(checkpoint.capture(make_state()), tmp_path)
    found = checkpoint.latest(tmp_path)
    assert found is not None
    checkpoint.restore(make_state(), found)
    if change == "pictures":
        other = make_state(subject=dataclasses.replace(tiny_subject, train=tiny_subject.train[1:]))
    elif change == "rank":
        other = make_state(method=Lora(rank=2))
    else:
        found.values["identity"]["the model's weights"] = "0" * 16
        other = make_state()
    with pytest.raises(UserError, match=told):
        checkpoint.restore(other, found)


def test_the_last_ones_and_the_best_are_kept(tmp_path: Path) -> None:
    def have(*steps: int) -> list[int]:
        for step in steps:
            checkpoint.write({"step": step}, tmp_path)
        return list(steps)

    have(0, 2, 4, 6)
    checkpoint.prune(tmp_path, 6, keep=2, best=0)
    assert checkpoint.found(tmp_path) == [0, 4, 6]
    have(8)
    checkpoint.prune(tmp_path, 8, keep=1, best=4)
    assert checkpoint.found(tmp_path) == [4, 8]
    have(9, 12)  # 12 was damaged and the run fell back to 8
    checkpoint.prune(tmp_path, 9, keep=2, best=None)
    assert checkpoint.found(tmp_path) == [8, 9]


def test_every_stream_comes_back(tmp_path: Path) -> None:
    import numpy as np

    def draw() -> tuple[float, float, float, float]:
        return random.random(), float(np.random.normal()), random.gauss(0, 1), float(torch.randn(()))  # noqa: NPY002

    before = RngState.capture()
    try:
        draw()  # leaves a second Gaussian number waiting in both libraries
        torch.save(RngState.capture().as_plain(), tmp_path / "streams")
        expected = draw()
        RngState.from_plain(torch.load(tmp_path / "streams", weights_only=True)).restore()
        assert draw() == expected
    finally:
        before.restore()
