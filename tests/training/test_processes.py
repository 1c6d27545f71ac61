"""Two processes that share every batch are one process with the whole of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from diffusion_lab.cli.compose import compose
from diffusion_lab.config.schema import Steps
from diffusion_lab.jobs import finetune
from diffusion_lab.methods.dreambooth import DreamBooth
from diffusion_lab.methods.lora import Lora
from diffusion_lab.plan.defaults import fill_defaults
from diffusion_lab.records import TrainingDiverged
from diffusion_lab.system import processes
from diffusion_lab.training.loop import training_step
from diffusion_lab.training.state import TrainingState

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("method", [Lora(rank=4), DreamBooth(prior_images=3)], ids=["lora", "prior"])
def test_shares_of_a_batch_make_up_the_whole(make_state, monkeypatch, tmp_path: Path, method: Any) -> None:
    """Pictures, noise, time steps and class pictures: each process has its rows, and the gradients' mean is
    the whole batch's gradient. The processes are played one after the other."""
    monkeypatch.setenv("DIFFUSION_LAB_CACHE", str(tmp_path / "cache"))
    steps = {"snr_gamma": 5.0, "noise_offset": 0.1}
    whole, *parts = (make_state(method=method, flip=True, **steps) for _ in range(3))
    kind = type(whole.accelerator)

    def gradients(state: TrainingState, size: int) -> list[torch.Tensor]:
        batch = state.next_batch(size)
        state.method.loss(state.pipe, batch, state.noise_stream).backward()
        found = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in state.trained]
        for parameter in state.trained:
            parameter.grad = None
        return found

    for _ in range(2):  # the second batch too: every stream has moved on alike
        expected = gradients(whole, 4)
        shares = []
        for rank, state in enumerate(parts):
            with monkeypatch.context() as patch:
                patch.setattr(TrainingState, "processes", property(lambda state: 2))
                patch.setattr(kind, "process_index", property(lambda accelerator, rank=rank: rank))
                shares.append(gradients(state, 2))
        assert any(value.abs().max() > 0 for value in expected)
        for one, other, all_ in zip(*shares, expected, strict=True):
            torch.testing.assert_close((one + other) / 2, all_, rtol=1e-4, atol=1e-6)
        for state in parts:
            assert torch.equal(state.noise_stream.get_state(), whole.noise_stream.get_state())
            assert torch.equal(state.latent_stream.get_state(), whole.latent_stream.get_state())
            assert (state.sampler.epoch, state.sampler.position) == (
                whole.sampler.epoch,
                whole.sampler.position,
            )


def test_one_process_draws_as_ever(make_state) -> None:
    a, b = make_state(), make_state()
    assert a.next_batch(2).rows == ()
    assert training_step(b, Steps(batch_size=2))[0] > 0


@pytest.mark.parametrize("where", ["loss", "images"])
def test_the_main_process_waits_for_the_others_only_where_they_end_too(
    monkeypatch, tmp_path: Path, where: str
) -> None:
    """All know of a loss that is not finite; of images that are not, those who draw none cannot."""
    waited: list[str] = []

    def diverge(*_: Any, **__: Any) -> None:
        raise TrainingDiverged(where)

    def train(state: TrainingState, *, evaluate: Any, **_: Any) -> None:
        if where == "images":
            evaluate(0)
        diverge()

    monkeypatch.setattr("diffusion_lab.training.loop.train", train)
    monkeypatch.setattr("diffusion_lab.evaluation.evaluate.evaluate", diverge)
    monkeypatch.setattr(finetune, "_measure_photographs", lambda *_: None)
    monkeypatch.setattr(processes, "wait", lambda: waited.append(where))
    with pytest.raises(TrainingDiverged, match=where):
        finetune.run(fill_defaults(compose(["experiment=debug", "metrics=debug"])), tmp_path)
    assert waited == (["loss"] if where == "loss" else [])


def launched(folder: Path, n: int, *words: str) -> None:
    """The program under `accelerate launch` with n processes on the CPU."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch"]
    if n > 1:  # --cpu would start one process only
        launcher += ["--multi_gpu", "--num_machines", "1", "--main_process_port", "0"]
    done = subprocess.run(
        [*launcher, "--num_processes", str(n), "--mixed_precision", "no", "--dynamo_backend", "no",
         "-m", "diffusion_lab", "experiment=debug", "metrics=debug", "model.device=cpu", "steps.log_every=1",
         *words, f"hydra.run.dir={folder}"],
        capture_output=True, text=True, cwd=ROOT, timeout=900, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.slow
def test_accelerate_launch_with_two_processes(tmp_path: Path) -> None:
    launched(tmp_path / "two", 2, "steps.batch_size=2")
    launched(tmp_path / "one", 1, "steps.batch_size=4")
    name = "adapters/step-000004/pytorch_lora_weights.safetensors"
    two, one = load_file(tmp_path / "two" / name), load_file(tmp_path / "one" / name)
    assert two.keys() == one.keys()
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=0, atol=5e-5)  # weights up to 0.6
    events = [json.loads(line) for line in (tmp_path / "two" / "events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events].count("evaluation") == 3
    assert [event["step"] for event in events if event["event"] == "scalars"] == [1, 2, 3, 4]
    losses = {
        folder: [
            json.loads(line)["values"]["train/loss"]
            for line in (tmp_path / folder / "events.jsonl").read_text().splitlines()
            if json.loads(line)["event"] == "scalars"
        ]
        for folder in ("one", "two")
    }
    assert losses["two"] == pytest.approx(losses["one"], rel=1e-3)
    assert json.loads((tmp_path / "two" / "result.json").read_text())["status"] == "completed"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


@pytest.mark.slow
def test_two_processes_end_early_together_and_are_extended(tmp_path: Path) -> None:
    """Only the main process measures and decides; the other one ends at the same step."""
    words = [
        "steps.batch_size=2", "steps.stop=auto", "steps.stop_evaluations=1", "steps.stop_level=0.5", "steps.total=12",
        "metrics.names=[diversity]", "prompts.n=12", "method.learning_rate=0.003",
    ]  # fmt: skip
    launched(tmp_path, 2, *words)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["status"] == "completed"
    assert result["ended"]["kind"] == "settled"
    assert 2 < result["ended"]["step"] == result["steps_done"] < 12
    launched(tmp_path, 2, *words, "steps.stop=total")
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["status"], result["ended"], result["steps_done"]) == ("completed", None, 12)
    assert [entry["stop"] for entry in result["extended"]] == ["auto"]
