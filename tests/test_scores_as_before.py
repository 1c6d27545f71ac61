"""Stable Diffusion's scores are what they were before the model families had a room of their own.

`scores_before_families.json` was made by the commit before that change, with one thread: SHA-256 of `scores.parquet`, which
has to be the same on the same kind of CPU with the same torch, and the means, which are the same to rounding elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from pathlib import Path

import pyarrow.parquet as parquet
import pytest
import torch

from diffusion_lab.cli.compose import compose
from diffusion_lab.jobs import perform
from diffusion_lab.plan.defaults import fill_defaults

BEFORE = json.loads(Path(__file__).with_name("scores_before_families.json").read_text("utf-8"))
COMMON = [
    "steps.total=6", "steps.every=3", "prompts.n=4", "prompts.batch_size=2", "prompts.sampling_steps=4",
    "data.n_images=4", "model.device=cpu", "tracker=files",
]  # fmt: skip
CASES = {
    "lora": ["method=lora"],
    "textual_inversion": ["method=textual_inversion"],
    "lora_v": [
        "method=lora", "model=miniature_v", "steps.snr_gamma=5", "steps.noise_offset=0.1", "method.text_encoder=true",
    ],
    "db_te": [
        "method=dreambooth", "method.text_encoder=true", "method.ema=true", "memory.cache=off", "data.flip=true",
    ],
}  # fmt: skip
ROUNDING = 2e-3  # of a mean over four images, after six steps on another CPU


def this_cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return "unknown"
    name = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown"
    )
    return f"{name}; {torch.backends.cpu.get_cpu_capability()}; torch {torch.__version__}"


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_scores_are_the_same(case: str, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        config = fill_defaults(compose([*CASES[case], *COMMON]))
        assert perform(config, tmp_path).status == "completed"
    finally:
        torch.set_num_threads(threads)
    before = BEFORE["cases"][case]
    file = tmp_path / "scores.parquet"
    table = parquet.read_table(file).to_pydict()
    values: dict[str, list[float]] = {}
    for step, metric, value in zip(table["step"], table["metric"], table["value"], strict=True):
        if value is not None:
            values.setdefault(f"{metric} {step}", []).append(value)
    means = {name: statistics.fmean(found) for name, found in values.items()}
    assert means == pytest.approx(before["means"], abs=ROUNDING)
    if this_cpu() == BEFORE["cpu"]:
        assert hashlib.sha256(file.read_bytes()).hexdigest() == before["sha256"]
