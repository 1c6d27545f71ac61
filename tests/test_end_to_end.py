"""The main job as a person runs it: a process of its own, on the shipped miniature, at the smallest size."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
TINY = ["experiment=debug", "steps.log_every=1"]


def start(*words: str, cwd: Path = ROOT, **env: str) -> subprocess.Popen[str]:
    # A shell's background jobs ignore Ctrl-C, and hand that on; with a handler here the child has the default.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return subprocess.Popen(
        [sys.executable, "-m", "diffusion_lab", *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str], status: int = 0) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == status, output[-4000:]
    return output


def result_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "first"
    finish(start(*TINY, "metrics=miniature", "tracker.keep_images=true", f"hydra.run.dir={folder}"))
    return folder


def test_the_record_is_complete(run_folder: Path) -> None:
    result = result_of(run_folder)
    assert result["status"] == "completed"
    assert [entry["step"] for entry in result["evaluations"]] == [0, 2, 4]
    assert result["recommendation"]["step"] in (0, 2, 4)
    assert result["recommendation"]["reason"]
    assert result["cost"]["training"]["seconds"] > 0
    assert result["cost"]["evaluation"]["peak_memory_bytes"] > 0
    assert result["provenance"]["versions"]["torch"]
    metrics = result["evaluations"][0]["metrics"]
    assert {"similarity", "similarity_heldout", "face_rate", "aesthetics", "diversity", "clip_text"} <= set(
        metrics
    )
    for summary in metrics.values():
        assert summary["n"] + summary["missing"] == 4
    for name in ("similarity", "similarity_heldout"):
        assert result["references"][name]["ceiling"]["mean"] > result["references"][name]["impostor"]["mean"]
    for name in ("config.yaml", "events.jsonl", "scores.parquet", "report.html", "samples/training.png"):
        assert (run_folder / name).stat().st_size > 0, name
    sheets = sorted(path.name for path in (run_folder / "samples").glob("step-*.png"))
    assert sheets == ["step-000000.png", "step-000002.png", "step-000004.png"]
    table = pq.read_table(run_folder / "scores.parquet")
    assert {"step", "prompt_id", "index", "seed", "metric", "version", "value", "slot:style"} <= set(
        table.column_names
    )
    assert table.num_rows == 3 * 4 * len(metrics)
    losses = [
        json.loads(line)["values"]["train/loss"]
        for line in (run_folder / "events.jsonl").read_text().splitlines()
        if json.loads(line)["event"] == "scalars"
    ]
    assert len(losses) == 4
    assert np.isfinite(losses).all()


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Four jobs of one process: two of another seed, then two of the first run's; the first of each pair fails."""
    folder = tmp_path_factory.mktemp("sweeps") / "study"
    words = ["metrics=miniature", "seed=1,0", "data.n_images=999,4", f"hydra.sweep.dir={folder}"]
    output = finish(start("-m", *TINY, *words), status=1)
    assert "999" in output
    return [folder / f"seed={seed},n_images={n}" for seed in (1, 0) for n in (999, 4)]


def test_a_sweep_outlives_failed_jobs(sweep: list[Path]) -> None:
    statuses = [result_of(folder)["status"] for folder in sweep]
    assert statuses == ["failed", "completed", "failed", "completed"]


def test_the_same_seed_gives_the_same_scores_and_weights(run_folder: Path, sweep: list[Path]) -> None:
    """In another process, after jobs with other settings: nothing of theirs leaks."""
    again = sweep[3]
    assert (again / "scores.parquet").read_bytes() == (run_folder / "scores.parquet").read_bytes()
    for name in (
        "artefact/pytorch_lora_weights.safetensors",
        "artefact/lora_kohya.safetensors",
        "prompts.json",
    ):
        assert (again / name).read_bytes() == (run_folder / name).read_bytes(), name


def test_another_seed_gives_other_weights_but_the_same_step_0(run_folder: Path, sweep: list[Path]) -> None:
    first, second = (result_of(folder)["evaluations"] for folder in (run_folder, sweep[1]))
    assert first[0]["metrics"] == second[0]["metrics"]
    assert first[2]["metrics"] != second[2]["metrics"]


def test_plain_diffusers_draws_what_the_last_evaluation_saw(run_folder: Path, tmp_path: Path) -> None:
    """The adapter works without any code of ours: another process, no import of this package."""
    rows = pq.read_table(run_folder / "scores.parquet").to_pylist()
    seed = next(row["seed"] for row in rows if row["step"] == 4 and row["prompt_id"] == "p000")
    text = next(
        item["text"]
        for item in json.loads((run_folder / "prompts.json").read_text())["prompts"]
        if item["id"] == "p000"
    )
    script = f"""
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
pipe = StableDiffusionPipeline.from_pretrained({str(ROOT / "diffusion_lab/miniature/weights/sd")!r}, safety_checker=None)
pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, timestep_spacing="linspace")
pipe.load_lora_weights({str(run_folder / "adapters/step-000004")!r})
noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed({seed}))
pipe({text!r}, latents=noise, num_inference_steps=2, guidance_scale=3.0).images[0].save({str(tmp_path / "plain.png")!r})
import sys
assert not any(name.startswith("diffusion_lab") for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path, capture_output=True, timeout=200)
    plain = np.asarray(Image.open(tmp_path / "plain.png").convert("RGB")).astype(int)
    ours = np.asarray(
        Image.open(run_folder / "samples" / "step-000004" / "p000-0.png").convert("RGB")
    ).astype(int)
    assert np.abs(plain - ours).max() <= 2


def test_ctrl_c_keeps_what_was_measured(tmp_path: Path) -> None:
    folder = tmp_path / "stopped"
    process = start(*TINY, "metrics=debug", "steps.total=2000", "steps.every=2", f"hydra.run.dir={folder}")
    deadline = time.monotonic() + 200
    while len(list((folder / "samples").glob("step-*.png"))) < 3 and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    finish(process, 130)
    result = result_of(folder)
    assert result["status"] == "interrupted"
    assert len(result["evaluations"]) >= 2
    assert result["recommendation"]
    assert (folder / "report.html").exists()


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(tmp_path: Path) -> None:
    folder = tmp_path / "diverged"
    output = finish(
        start(
            *TINY,
            "metrics=debug",
            "method.learning_rate=1e30",
            "steps.max_grad_norm=0",
            "steps.total=40",
            f"hydra.run.dir={folder}",
        ),
        3,
    )
    assert "method.learning_rate" in output
    result = result_of(folder)
    assert result["status"] == "diverged"
    assert result["evaluations"]
    assert (folder / "report.html").exists()
    assert (folder / "artefact" / "pytorch_lora_weights.safetensors").exists()


def test_a_folder_of_pictures_without_any_face_runs_to_its_report(tmp_path: Path) -> None:
    pictures = tmp_path / "balls"
    pictures.mkdir()
    for i in range(5):
        y, x = np.mgrid[:90, :120]
        ball = (x - 40 - 8 * i) ** 2 + (y - 45) ** 2 < 900
        pixels = np.where(ball[..., None], [200, 40, 30], [90, 120, 90 + 20 * i]).astype(np.uint8)
        Image.fromarray(pixels).save(pictures / f"{i}.jpg")
    folder = tmp_path / "run"
    finish(
        start(
            *TINY,
            "metrics=miniature",
            "data=folder",
            f"data.folder={pictures}",
            "data.class_noun=ball",
            "data.n_images=4",
            f"hydra.run.dir={folder}",
        )
    )
    result = result_of(folder)
    assert result["status"] == "completed"
    similarity = result["evaluations"][-1]["metrics"]["similarity"]
    assert similarity["mean"] is None
    assert similarity["missing"] == 4
    assert result["recommendation"]
    assert "no face" in (folder / "report.html").read_text().lower()
