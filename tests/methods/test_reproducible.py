"""Files of a method's artefact are the same, byte for byte, in every process that trains the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# One case for every kind of file.
CASES = (
    "lora_text", "dora", "loha", "lokr", "oft", "dreambooth_text", "dreambooth_ema", "pivotal_text", "hypernetwork",
)  # fmt: skip

SAVE = """
import sys, torch
from pathlib import Path
torch.set_num_threads(1)
from diffusion_lab.config.schema import Config, Data, Model, Prompts, Steps
from diffusion_lab.artefacts.notes import annotate
from diffusion_lab.models.load import load_pipeline
from diffusion_lab.training.loop import training_step
from diffusion_lab.training.state import build_state
from tests.conftest import pattern
from tests.methods.cases import CASES

model, root = Model(path=sys.argv[1], device="cpu"), Path(sys.argv[2])
for name in sys.argv[4:]:
    steps = Steps(total=4, every=2, batch_size=1)
    config = Config(model=model, method=CASES[name].make(), data=Data(), prompts=Prompts(sampling_steps=1), steps=steps)
    state = build_state(config, load_pipeline(model, torch.device("cpu")), pattern())
    training_step(state, steps)
    state.save(root / name, {"scores": "{}"})
    annotate(root / name, {"recommended_step": "1"})
    if hasattr(state.method, "complete"):
        if sys.argv[3] == "1":  # a tokenizer that was used last for something else
            state.pipe.tokenizer("a photo")
        state.method.complete(state.pipe, root / name)
"""


@pytest.fixture(scope="module")
def twice(tiny_sd_folder: Path, session_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case trained one step and saved, in two processes that order sets and hashes differently."""
    root = tmp_path_factory.mktemp("twice")
    running = [
        subprocess.Popen(
            [sys.executable, "-c", SAVE, str(tiny_sd_folder), str(root / seed), seed, *CASES],
            cwd=ROOT, text=True, stderr=subprocess.PIPE,
            env={
                **os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1",
                "DIFFUSION_LAB_CACHE": str(session_cache / seed),
            },
        )
        for seed in "12"
    ]  # fmt: skip
    for process in running:
        _, told = process.communicate(timeout=600)
        assert process.returncode == 0, told[-3000:]
    return root


@pytest.mark.parametrize("case", CASES)
def test_same_bytes_in_two_processes(twice: Path, case: str) -> None:
    ours, theirs = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (twice / "1" / case, twice / "2" / case)
    )
    assert any(name.suffix == ".safetensors" for name in ours)
    assert ours.keys() == theirs.keys()
    for name, content in ours.items():
        assert content == theirs[name], name
