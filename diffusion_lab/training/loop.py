"""The training loop, the only one: every method, model and evaluation goes through it.

Gradient accumulation: one step is `gradient_accumulation` micro-batches of `batch_size` pictures, whose
gradients are averaged. `steps` counts optimizer steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from diffusion_lab.interfaces import TrainingDiverged
from diffusion_lab.models.load import modules
from diffusion_lab.training.modes import eval_mode, training_mode
from diffusion_lab.training.rng import RngState, preserved_rng

if TYPE_CHECKING:
    from diffusion_lab.config import Steps
    from diffusion_lab.training.state import TrainingState

MOST_SKIPPED_STEPS = 50  # fp16: its loss scale halves at each skipped step; 2^16 is used up long before


@dataclass(slots=True)
class _Since:
    """What has been gathered since the last log line."""

    losses: list[float] = field(default_factory=list)
    images: int = 0
    seconds: float = 0.0  # the meter's training seconds at the last log


def train(
    state: TrainingState,
    *,
    steps: Steps,
    evaluate: Callable[[int], None],
    on_log: Callable[[int, dict[str, float]], None],
    on_step: Callable[[int], None],
) -> None:
    """Trains from `state.step` to `steps.total`; evaluates at every multiple of `every` and at the end.

    `evaluate(step)` runs with dropout off and with the global random streams put back afterwards: whatever
    it draws, training goes on as without it. `on_log` gets the mean loss since the last time, learning
    rate, gradient norm, pictures per second (of training alone) and peak memory; `on_step` the steps done.

    Raises TrainingDiverged before a step with a loss or gradient that is not finite is taken: the weights
    are those of the last good step, and `state.step` is its number.
    """
    if steps.total is None or steps.every is None:
        raise ValueError("steps.total and steps.every are not filled in: see config.fill_defaults")
    pipe, meter = state.pipe, state.meter
    since = _Since(seconds=meter.seconds.get("training", 0.0))
    skipped = 0
    with preserved_rng(), training_mode(*state.trained_modules):
        state.global_streams.restore()
        try:
            for step in range(state.step, steps.total + 1):  # N + 1 times: the ends are ordinary evaluations
                if step % steps.every == 0 or step == steps.total:
                    with (
                        meter.phase("evaluation"),
                        preserved_rng(),
                        eval_mode(*modules(pipe)),
                        evaluated_weights(state),
                    ):
                        evaluate(step)
                    _check_float32(state)
                if step == steps.total:
                    break
                with meter.phase("training"):
                    loss, norm = training_step(state, steps)
                state.step = step + 1
                skipped = skipped + 1 if state.optimizer.step_was_skipped else 0
                if skipped > MOST_SKIPPED_STEPS:
                    raise _diverged(state.step, loss, norm)
                since.losses.append(loss)
                since.images += steps.batch_size * steps.gradient_accumulation
                on_step(state.step)
                if state.step % steps.log_every == 0 or state.step == steps.total:
                    on_log(state.step, _log_values(state, since, norm))
                    since = _Since(seconds=meter.seconds["training"])
        finally:
            state.global_streams = RngState.capture()


def evaluated_weights(state: TrainingState) -> AbstractContextManager[None]:
    """Inside, the pipe has the weights that the method evaluates and saves: the trained ones, or their average."""
    evaluating = getattr(state.method, "evaluating", None)
    context: AbstractContextManager[None] = evaluating(state.pipe) if evaluating else nullcontext()
    return context


def training_step(state: TrainingState, steps: Steps) -> tuple[float, float]:
    """One optimizer step. Returns the mean loss of its pictures and the gradient's norm before clipping."""
    accelerator, optimizer = state.accelerator, state.optimizer
    losses = []
    for _ in range(steps.gradient_accumulation):
        batch = state.next_batch(steps.batch_size)
        with accelerator.autocast():
            loss = state.method.loss(state.pipe, batch, state.noise_stream)
        accelerator.backward(loss / steps.gradient_accumulation)
        losses.append(loss.detach())
    norm = accelerator.clip_grad_norm_(state.trained, steps.max_grad_norm or math.inf)
    assert norm is not None
    # The one moment of a step at which the program waits for the device.
    mean, length = torch.stack([torch.stack(losses).mean().float(), norm.float()]).tolist()
    # fp16's loss scale overflows now and then by design: the scaler then skips the step itself.
    if not math.isfinite(mean) or not (math.isfinite(length) or accelerator.scaler is not None):
        optimizer.zero_grad()
        raise _diverged(state.step + 1, mean, length)
    optimizer.step()
    optimizer.zero_grad()
    if not optimizer.step_was_skipped:
        state.lr_scheduler.step()
        state.method.after_step(state.pipe)
    return mean, length


def _diverged(step: int, loss: float, norm: float) -> TrainingDiverged:
    return TrainingDiverged(
        f"training diverged at step {step}: loss {loss:g}, gradient norm {norm:g}; the weights are those of "
        "the last good step. Lower method.learning_rate, or use model.precision=fp32 or bf16"
    )


def _check_float32(state: TrainingState) -> None:
    """Casting the pipeline to evaluate it casts what trains too, and AdamW's small steps vanish in bf16."""
    if any(parameter.dtype != torch.float32 for parameter in state.trained):
        raise RuntimeError("the evaluation changed the number format of the trained weights")


def _log_values(state: TrainingState, since: _Since, norm: float) -> dict[str, float]:
    seconds = state.meter.seconds["training"] - since.seconds
    # Prodigy's rate is its estimate d times the configured factor.
    rates = {
        group["name"]: float(group["lr"]) * float(group.get("d", 1.0))
        for group in state.optimizer.param_groups
    }
    first, *others = rates
    return {
        "train/loss": math.fsum(since.losses) / len(since.losses),
        "train/learning_rate": rates[first],
        **{f"train/learning_rate_{name}": rates[name] for name in others},
        "train/grad_norm": norm,
        "train/images_per_second": since.images / seconds if seconds > 0 else math.nan,
        "train/peak_memory_gib": state.meter.peak("training") / 2**30,
    }
