"""The training loop of every stage: AdamW, warm-up and cosine, EMA, checkpoints that survive a kill.

All randomness of step k is drawn from generators seeded by (seed, stage, k), so a resumed run continues
exactly as an uninterrupted one, and the number of steps may be changed between two starts.
"""

from __future__ import annotations

import json
import math
import time
import zlib
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from diffusion_lab.system import atomic

Tensors = tuple[Tensor, ...] | list[Tensor]


@dataclass(frozen=True, slots=True)
class Step:
    """What a loss function gets: the step's number and its own random streams."""

    index: int
    fraction: float  # of the training done, 0..1
    numpy: np.random.Generator
    torch: torch.Generator  # on the CPU


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Optimizer settings of a stage."""

    steps: int
    lr: float
    warmup: int = 100
    weight_decay: float = 0.01
    ema: float | None = None  # decay, in 0..1; None: no average kept
    clip: float = 1.0
    betas: tuple[float, float] = (0.9, 0.99)
    checkpoint_seconds: float = 60.0

    def lr_at(self, step: int) -> float:
        """Linear warm-up, then cosine to 2 % of ``lr``."""
        warmup = min(self.warmup, max(1, self.steps // 10))
        if step < warmup:
            return self.lr * (step + 1) / warmup
        done = (step - warmup) / max(1, self.steps - warmup)
        return self.lr * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def step_streams(seed: int, stage: str, index: int, fraction: float) -> Step:
    """The random streams of one step, the same after a resume."""
    numpy = np.random.default_rng([seed, zlib.crc32(stage.encode()), index])
    return Step(index, fraction, numpy, torch.Generator().manual_seed(int(numpy.integers(2**62))))


def train(
    stage: str,
    folder: Path,
    nets: Mapping[str, nn.Module],
    loss: Callable[[Step], tuple[Tensor, dict[str, float]]],
    schedule: Schedule,
    *,
    seed: int = 0,
    progress: bool = True,
    every: Callable[[int, Mapping[str, Mapping[str, Tensor]]], None] | None = None,
) -> dict[str, dict[str, Tensor]]:
    """Train ``nets`` in place; return their averaged states (EMA), or the last ones without EMA.

    ``every(step, states)`` is called after each step with those states. The checkpoint is
    ``folder/checkpoints/STAGE.pt``, written beside and renamed; losses go to ``folder/log.jsonl``.
    """
    parameters = [p for net in nets.values() for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=schedule.lr, betas=schedule.betas, weight_decay=schedule.weight_decay, fused=True
    )
    path = folder / "checkpoints" / f"{stage}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    average = None if schedule.ema is None else moving_average(nets, schedule.ema)
    start = _restore(path, nets, optimizer, average) if path.exists() else 0
    for net in nets.values():
        net.train()
    saved = time.monotonic()
    with _bar(stage, start, schedule.steps, progress) as advance:
        for index in range(start, schedule.steps):
            for group in optimizer.param_groups:
                group["lr"] = schedule.lr_at(index)
            value, shown = loss(step_streams(seed, stage, index, index / schedule.steps))
            if not torch.isfinite(value):
                raise FloatingPointError(f"{stage}: loss is {value.item()} at step {index}")
            value.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(parameters, schedule.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if average is not None:
                average.update_parameters(nn.ModuleDict(nets))
            done = index + 1
            if done % 20 == 0 or done == schedule.steps:
                _log(folder, {"stage": stage, "step": done, "loss": round(value.item(), 5), **shown})
            advance(f"loss {value.item():.4f}")
            if time.monotonic() - saved > schedule.checkpoint_seconds or done == schedule.steps:
                save_checkpoint(path, done, nets, optimizer, average)
                saved = time.monotonic()
            if every is not None:
                every(done, _states(nets, average))
    return _states(nets, average)


def moving_average(nets: Mapping[str, nn.Module], decay: float) -> AveragedModel:
    """The exponential moving average of parameters and float buffers, the nets as they are its first member.

    It follows quickly at first: at the n-th step by min(decay, n / (n + 9)), as diffusers' EMAModel does.
    """

    @torch.no_grad()
    def update(averages: Tensors, values: Tensors, n: Tensor | int) -> None:
        if averages[0].is_floating_point():
            rate = min(decay, int(n) / (int(n) + 9))
            get_ema_multi_avg_fn(rate)(averages, values, n)  # type: ignore[no-untyped-call]
        else:  # counters
            torch._foreach_copy_(averages, values)

    average = AveragedModel(nn.ModuleDict(nets), multi_avg_fn=update, use_buffers=True)
    average.n_averaged += 1  # otherwise the first update would replace what the nets begin with
    return average


def _states(nets: Mapping[str, nn.Module], average: AveragedModel | None) -> dict[str, dict[str, Tensor]]:
    """The averaged nets' states; the nets' own without an average."""
    kept = nets if average is None else cast("nn.ModuleDict", average.module)
    return {name: kept[name].state_dict() for name in nets}


def save_checkpoint(
    path: Path, step: int, nets: Mapping[str, nn.Module], optimizer: Any, average: AveragedModel | None
) -> None:
    """Write the checkpoint in one step, so that a kill never leaves half of one."""
    state = {
        "step": step,
        "nets": {name: net.state_dict() for name, net in nets.items()},
        "optimizer": optimizer.state_dict(),
        "average": None if average is None else average.state_dict(),
    }
    with atomic.writing(path) as sink:
        torch.save(state, cast("IO[bytes]", sink))


def _restore(path: Path, nets: Mapping[str, nn.Module], optimizer: Any, average: AveragedModel | None) -> int:
    """Takes up a checkpoint and returns its step."""
    saved = torch.load(path, map_location="cpu", weights_only=True)
    for name, net in nets.items():
        net.load_state_dict(saved["nets"][name])
    optimizer.load_state_dict(saved["optimizer"])
    if average is not None:
        average.load_state_dict(saved["average"])
    return int(saved["step"])


def _log(folder: Path, row: dict[str, Any]) -> None:
    atomic.append_line(folder / "log.jsonl", json.dumps({"seconds": round(time.time(), 1), **row}))


def _bar(stage: str, start: int, steps: int, progress: bool) -> Any:
    """A context giving ``advance(text)``: a rich bar with the time left, or nothing."""
    if not progress:
        return nullcontext(lambda text: None)
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    class Bar(Progress):
        def __enter__(self) -> Any:
            super().__enter__()
            task = self.add_task(stage, total=steps, completed=start, text="")
            return lambda text: self.update(task, advance=1, text=text)

    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )


def device_of(name: str) -> torch.device:
    """ "auto": the GPU if available, else the CPU."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
