"""The loop: the same numbers with and without evaluation, at any split, and a clean stop when it diverges."""

from __future__ import annotations

import random
import warnings

import numpy as np
import pytest
import torch

from diffusion_lab.config.schema import Steps
from diffusion_lab.methods.lora import Lora
from diffusion_lab.models.load import modules
from diffusion_lab.records import TrainingDiverged, UserError
from diffusion_lab.training import loop
from diffusion_lab.training import state as building
from diffusion_lab.training.loop import train, training_step


def run(state, evaluate=lambda step: None, **values):
    """Trains and returns (evaluated steps, logs, done steps)."""
    evaluated, logs, done = [], [], []

    def at(step: int) -> None:
        evaluated.append(step)
        evaluate(step)

    steps = Steps(**{"total": 4, "every": 2, "batch_size": 2, "log_every": 2, **values})
    train(state, steps=steps, evaluate=at, on_log=lambda s, v: logs.append((s, v)), on_step=done.append)
    return evaluated, logs, done


def weights(state) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in state.trained]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) > 0 and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    ("total", "every", "expected"),
    [(4, 2, [0, 2, 4]), (5, 2, [0, 2, 4, 5]), (3, 3, [0, 3]), (2, 10, [0, 2]), (1, 1, [0, 1])],
)
def test_both_ends_are_evaluated(make_state, total: int, every: int, expected: list[int]) -> None:
    state = make_state(total=total)
    evaluated, logs, done = run(state, total=total, every=every)
    assert evaluated == expected
    assert done == list(range(1, total + 1))
    assert logs[-1][0] == total == state.step


def test_evaluation_leaves_training_bit_identical(make_state) -> None:
    """Dropout is on, so the global streams matter; the evaluation draws from them and samples images."""
    method = Lora(rank=4, dropout=0.3, text_encoder=True, learning_rate=1e-2)
    quiet, disturbed = make_state(method=method, total=6), make_state(method=method, total=6)

    def disturb(step: int) -> None:
        torch.manual_seed(step)
        torch.rand(7), np.random.rand(3), random.random()  # noqa: NPY002
        generator = torch.Generator().manual_seed(0)
        disturbed.pipe("a photo of dog", num_inference_steps=1, output_type="np", generator=generator)
        assert not any(module.training for module in modules(disturbed.pipe))

    run(quiet, total=6, every=100)
    run(disturbed, disturb, total=6, every=1)
    assert same(weights(quiet), weights(disturbed))


def test_same_seed_same_weights_and_another_seed_others(make_state) -> None:
    method = Lora(rank=4, dropout=0.3, learning_rate=1e-2)
    results = []
    for seed in (3, 3, 4):
        torch.manual_seed(len(results))  # whatever ran before in this process
        state = make_state(method=method, seed=seed, flip=True)
        run(state)
        results.append(weights(state))
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


def test_a_run_leaves_the_process_as_it_was(make_state) -> None:
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    state = make_state(method=Lora(rank=2, dropout=0.5))
    run(state, lambda step: torch.rand(3), total=2)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert random.getstate() == before[2]
    assert not any(part.training for module in modules(state.pipe) for part in module.modules())


def test_in_pieces_or_in_one(make_state) -> None:
    """All that changes is in the state: two calls continue as one would, in the middle of an epoch."""
    method = Lora(rank=4, dropout=0.3, learning_rate=1e-2)
    whole, pieces = make_state(method=method), make_state(method=method)
    run(whole, total=4)
    run(pieces, total=2)
    torch.rand(100)
    run(pieces, total=4)
    assert pieces.sampler.position == whole.sampler.position != 0
    assert same(weights(whole), weights(pieces))


def test_accumulation_equals_a_larger_batch(make_state) -> None:
    wide, narrow = make_state(), make_state()
    for _ in range(3):
        a = training_step(wide, Steps(batch_size=4))
        b = training_step(narrow, Steps(batch_size=2, gradient_accumulation=2))
        assert a == pytest.approx(b, rel=1e-4)
    for x, y in zip(weights(wide), weights(narrow), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-3, atol=2e-4)
    assert wide.sampler.epoch == narrow.sampler.epoch == 2  # 12 pictures of 5


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_divergence_stops_with_the_last_good_weights(make_state, monkeypatch, what: str) -> None:
    reference, state = make_state(), make_state()
    run(reference, total=2)
    calls = 0
    loss = Lora.loss

    class Poison(torch.autograd.Function):
        """The value as it is, a gradient of infinity."""

        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * float("inf")

    def spoilt(self, pipe, batch, generator):
        nonlocal calls
        calls += 1
        value = loss(self, pipe, batch, generator)
        if calls < 3:
            return value
        return value * float("nan") if what == "loss" else Poison.apply(value)

    monkeypatch.setattr(Lora, "loss", spoilt)
    with pytest.raises(TrainingDiverged, match=r"step 3: loss .*method\.learning_rate.*model\.precision"):
        run(state, total=4, every=4)
    assert state.step == 2
    assert same(weights(state), weights(reference))
    assert all(torch.isfinite(value).all() for value in weights(state))
    assert all(parameter.grad is None for parameter in state.trained)


def test_fp16s_overflowing_steps_are_skipped_and_counted(make_state, monkeypatch) -> None:
    """With fp16's loss scale, which is there on a card alone: put into a run on the CPU here."""
    built, loss, overflows = building.build_accelerator, Lora.loss, True

    def scaled(device, precision):
        accelerator = built(device, precision)
        accelerator.scaler = torch.amp.GradScaler("cpu")
        return accelerator

    def spoilt(self, pipe, batch, generator):
        value = loss(self, pipe, batch, generator)
        if overflows:
            value.register_hook(lambda gradient: gradient * float("inf"))
        return value

    monkeypatch.setattr(building, "build_accelerator", scaled)
    monkeypatch.setattr(Lora, "loss", spoilt)
    monkeypatch.setattr(loop, "MOST_SKIPPED_STEPS", 2)
    state = make_state()
    before = weights(state)
    with pytest.raises(TrainingDiverged, match="step 3"):
        run(state, every=4)
    assert state.optimizer.step_was_skipped
    assert same(weights(state), before)
    assert state.lr_scheduler.last_epoch == 0
    overflows = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torch's, where the schedule's and accelerate's hooks do not fit
        training_step(state, Steps(batch_size=2))
    assert not state.optimizer.step_was_skipped
    assert not same(weights(state), before)
    assert state.lr_scheduler.last_epoch == 1


def test_a_learning_rate_that_is_far_too_high_is_noticed_or_survived_with_finite_weights(make_state) -> None:
    state = make_state(method=Lora(rank=4, learning_rate=1e20), max_grad_norm=0.0)
    with pytest.raises(TrainingDiverged):
        run(state, total=4, max_grad_norm=0.0)
    assert all(torch.isfinite(value).all() for value in weights(state))


def test_gradients_are_clipped_to_the_norm_and_0_means_never(make_state, monkeypatch) -> None:
    norms = []
    for limit in (1e-3, 0.0):
        state = make_state()
        seen = []
        step = state.optimizer.step
        monkeypatch.setattr(
            state.optimizer,
            "step",
            lambda step=step, state=state, seen=seen: (
                seen.append(torch.cat([p.grad.flatten() for p in state.trained]).norm().item()),
                step(),
            ),
        )
        _, before = training_step(state, Steps(batch_size=2, max_grad_norm=limit))
        norms.append((before, seen[0]))
    assert norms[0][0] == pytest.approx(norms[1][0])
    assert norms[0][1] == pytest.approx(1e-3, rel=1e-3)
    assert norms[1][1] == pytest.approx(norms[1][0])


def test_learning_rate_schedule_counts_optimizer_steps(make_state) -> None:
    method = Lora(rank=2, text_encoder=True, learning_rate=1e-2, text_encoder_learning_rate=1e-3)
    values = {
        "total": 4,
        "lr_scheduler": "linear",
        "lr_warmup": 2,
        "gradient_accumulation": 2,
        "log_every": 1,
    }
    state = make_state(method=method, **values)
    _, logs, _ = run(state, every=4, **values)
    # the rate that the next step will use: up over two steps, down over the two that are left
    assert [v["train/learning_rate"] for _, v in logs] == pytest.approx([0.005, 0.01, 0.005, 0.0])
    assert [v["train/learning_rate_text_encoder"] for _, v in logs] == pytest.approx([5e-4, 1e-3, 5e-4, 0.0])


def test_logs_and_meter(make_state, monkeypatch) -> None:
    from time import sleep

    state = make_state()
    losses = []
    loss = Lora.loss

    def watch(self, pipe, batch, generator):
        value = loss(self, pipe, batch, generator)
        losses.append(value.item())
        return value

    monkeypatch.setattr(Lora, "loss", watch)
    _, logs, _ = run(state, lambda step: sleep(0.3), total=3, every=1, gradient_accumulation=2, log_every=2)
    assert [step for step, _ in logs] == [2, 3]
    assert logs[0][1]["train/loss"] == pytest.approx(np.mean(losses[:4]))
    assert logs[1][1]["train/loss"] == pytest.approx(np.mean(losses[4:]))
    for _, values in logs:
        assert values["train/grad_norm"] > 0
        assert 0.05 < values["train/peak_memory_gib"] < 64
    seconds = {name: phase["seconds"] for name, phase in state.meter.summary().items()}
    assert seconds["evaluation"] >= 4 * 0.3  # and none of it in the speed:
    trained = sum(n / values["train/images_per_second"] for n, (_, values) in zip((8, 4), logs, strict=True))
    assert trained == pytest.approx(seconds["training"], rel=1e-6)


def test_an_evaluation_that_casts_the_pipeline_is_caught(make_state) -> None:
    state = make_state()
    with pytest.raises(RuntimeError, match="number format of the trained weights"):
        run(state, lambda step: state.pipe.unet.to(torch.bfloat16))


def test_bf16_keeps_what_trains_in_float32(make_state) -> None:
    state = make_state(precision="bf16")
    frozen = {p.dtype for m in modules(state.pipe) for p in m.parameters() if not p.requires_grad}
    assert frozen == {torch.bfloat16}
    full = make_state()
    losses = [training_step(s, Steps(batch_size=2))[0] for s in (state, full)]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert {p.dtype for p in state.trained} == {torch.float32}
    moments = {v.dtype for s in state.optimizer.state.values() for k, v in s.items() if k != "step"}
    assert moments == {torch.float32}
    assert torch.equal(state.latents.mean, full.latents.mean)  # encoded before the cast


def test_precisions_can_follow_each_other_in_one_process(make_state) -> None:
    for precision in ("bf16", "fp32", "bf16"):
        state = make_state(precision=precision)
        assert state.accelerator.mixed_precision == {"fp32": "no", "bf16": "bf16"}[precision]
        assert np.isfinite(training_step(state, Steps(batch_size=1))[0])


def test_a_scheduler_without_its_warmup_is_refused(make_state) -> None:
    with pytest.raises(UserError, match=r"steps\.lr_"):
        make_state(lr_scheduler="nonsense")
