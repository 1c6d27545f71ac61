"""The training loop, used for every method, model and evaluation.

Gradient accumulation: one step is `gradient_accumulation` micro-batches of `batch_size` photos, whose
gradients are averaged. `steps` counts optimizer steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch

from diffusion_lab.config.schedule import evaluation_steps
from diffusion_lab.methods.method import Averaging
from diffusion_lab.models.load import modules
from diffusion_lab.records import TrainingDiverged
from diffusion_lab.system import processes
from diffusion_lab.system.modes import eval_mode, training_mode
from diffusion_lab.system.rng import RngState, preserved_rng
from diffusion_lab.training.meter import Since

if TYPE_CHECKING:
    from diffusion_lab.config.schema import Steps
    from diffusion_lab.training.state import TrainingState

MOST_SKIPPED_STEPS = 50  # fp16: the loss scale halves at each skipped step; 2^16 is used up long before


def train(
    state: TrainingState,
    *,
    steps: Steps,
    evaluate: Callable[[int], None],
    on_log: Callable[[int, dict[str, float]], None],
    on_step: Callable[[int], None],
    checkpoint: Callable[[int], None] | None = None,
    measured: Container[int] = (),
    ends: Callable[[int], bool] = lambda step: False,
) -> None:
    """Trains from `state.step` to `steps.total`; evaluates at every multiple of `every` and at the end.

    `evaluate(step)` runs with dropout off, and the global random streams are restored afterwards, so that
    evaluations do not affect training. `on_log` receives the mean loss since the last call, the learning
    rate, the gradient norm, photos per second (of training alone) and peak memory; `on_step` the steps done.

    `checkpoint(step)` is called before the evaluation of that step, which does not change `state` and may
    take long. A run resumed from there skips the steps in `measured`.

    `ends(step)` is asked after every evaluation, including those in `measured`, so that a resumed run ends
    where an uninterrupted one does. If it is True in the main process, all processes stop training there.

    Raises TrainingDiverged before taking a step whose loss or gradient is not finite: the weights
    are those of the last good step, and `state.step` is its number.
    """
    schedule = evaluation_steps(steps)
    total, evaluations = schedule[-1], frozenset(schedule)
    pipe, meter = state.pipe, state.meter
    first, skipped = state.step, 0
    with preserved_rng(), training_mode(*state.trained_modules):
        state.global_streams.restore()
        try:
            # N + 1 values: the first and last evaluation need no special case.
            for step in range(state.step, total + 1):
                evaluated = step in evaluations
                due = _checkpointed(steps, step, evaluated) and (step > first or step == 0)
                if checkpoint is not None and due:
                    state.global_streams = RngState.capture()
                    checkpoint(step)
                if evaluated and step not in measured:
                    with (
                        meter.phase("evaluation"),
                        preserved_rng(),
                        eval_mode(*modules(pipe)),
                        evaluated_weights(state),
                    ):
                        evaluate(step)
                    _check_float32(state)
                ended = evaluated and processes.shared(ends(step))
                if step == total or ended:
                    break
                with meter.phase("training"):
                    loss, norm = training_step(state, steps)
                state.step = step + 1
                skipped = skipped + 1 if state.optimizer.step_was_skipped else 0
                if skipped > MOST_SKIPPED_STEPS:
                    raise _diverged(state.step, loss, norm)
                state.since.losses.append(loss)
                state.since.images += steps.batch_size * steps.gradient_accumulation * state.processes
                on_step(state.step)
                if state.step % steps.log_every == 0 or state.step == total:
                    on_log(state.step, _log_values(state, norm))
                    state.since = Since(seconds=meter.seconds["training"])
        finally:
            state.global_streams = RngState.capture()


def _checkpointed(steps: Steps, step: int, evaluated: bool) -> bool:
    """Whether a checkpoint is due: at every evaluation, or at a fixed interval and at the end."""
    if steps.checkpoint_every is None:
        return evaluated
    if steps.checkpoint_every == 0:
        return False
    return step % steps.checkpoint_every == 0 or step == steps.total


def evaluated_weights(state: TrainingState) -> AbstractContextManager[None]:
    """Context in which the pipe has the weights that are evaluated and saved: trained or averaged ones."""
    return state.method.evaluating(state.pipe) if isinstance(state.method, Averaging) else nullcontext()


def training_step(state: TrainingState, steps: Steps) -> tuple[float, float]:
    """One optimizer step. Returns the mean loss of its photos and the gradient's norm before clipping."""
    accelerator, optimizer = state.accelerator, state.optimizer
    losses = []
    for _ in range(steps.gradient_accumulation):
        batch = state.next_batch(steps.batch_size)
        with accelerator.autocast():
            loss = state.method.loss(state.pipe, batch, state.noise_stream)
        accelerator.backward(loss / steps.gradient_accumulation)
        losses.append(loss.detach())
    average = torch.stack(losses).mean().float()
    if state.processes > 1:
        average = accelerator.reduce(average, reduction="mean")
        for parameter in state.trained:
            if parameter.grad is not None:
                parameter.grad.copy_(accelerator.reduce(parameter.grad, reduction="mean"))
    norm = accelerator.clip_grad_norm_(state.trained, steps.max_grad_norm or math.inf)
    assert norm is not None
    # The only device synchronisation of a step.
    mean, length = torch.stack([average, norm.float()]).tolist()
    # Occasional overflows of fp16's loss scale are expected: the scaler then skips the step itself.
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
    """Evaluation casts the pipeline, including trained weights; AdamW's small updates vanish in bf16."""
    if any(parameter.dtype != torch.float32 for parameter in state.trained):
        raise RuntimeError("the evaluation changed the number format of the trained weights")


def _log_values(state: TrainingState, norm: float) -> dict[str, float]:
    since = state.since
    seconds = state.meter.seconds["training"] - since.seconds
    # Prodigy's learning rate is its estimate d times the configured factor.
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
