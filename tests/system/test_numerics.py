"""Facts that decide the last bits of a result."""

from __future__ import annotations

import json
import shutil
from importlib import metadata
from pathlib import Path

import pytest
import torch

from diffusion_lab.system import numerics as module
from diffusion_lab.system.numerics import code_digest, numerics


def test_threads_libraries_and_variables_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    before = numerics("cpu")
    assert json.loads(json.dumps(before)) == before
    assert before["libraries"]["torch"] == metadata.version("torch")
    assert {"peft", "diffusers", "transformers"} <= before["libraries"].keys()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    assert numerics("cpu") != before
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    assert numerics("cpu") == before
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert numerics("cpu") != before
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "name",
    ["CUDA_VISIBLE_DEVICES", "WANDB_MODE", "HF_HUB_OFFLINE", "HF_HOME", "WORLD_SIZE", "DIFFUSION_LAB_CACHE",
     "NCCL_DEBUG", "TRANSFORMERS_VERBOSITY", "PYTHONHASHSEED"],
)  # fmt: skip
def test_what_chooses_a_device_or_a_place_does_not_count(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delenv(name, raising=False)
    before = numerics("cpu")
    monkeypatch.setenv(name, "1")
    assert numerics("cpu") == before


def test_any_change_of_the_code_changes_its_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for room in ("sampling", "system"):
        shutil.copytree(module.PACKAGE / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    before = code_digest(("sampling",))
    assert before != code_digest(("sampling", "system"))
    monkeypatch.setattr(module, "PACKAGE", tmp_path)
    code_digest.cache_clear()
    try:
        assert code_digest(("sampling",)) == before
        path = tmp_path / "sampling" / "noise.py"
        path.write_text(path.read_text("utf-8") + "\n", "utf-8")
        code_digest.cache_clear()
        assert code_digest(("sampling",)) != before
    finally:
        code_digest.cache_clear()
