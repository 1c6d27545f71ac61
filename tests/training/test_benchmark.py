"""The benchmark's two loops are the same training: losses equal step by step on the tiny model."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from benchmarks import caching

FILE = Path(__file__).parents[2] / "benchmarks" / "training_step.py"


@pytest.mark.parametrize("folder", ["tiny_sd_folder", "tiny_v_sd_folder"])
def test_losses_of_both_loops_agree(folder: str, request, capsys) -> None:
    spec = importlib.util.spec_from_file_location("training_step", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    path = request.getfixturevalue(folder)
    # the exit status also judges the speed, which a busy machine may spoil
    module.main(
        ["--model", str(path), "--device", "cpu", "--steps", "2", "--rounds", "1", "--batch-size", "2"]
    )
    printed = capsys.readouterr().out
    found = re.search(r"largest relative difference of a step's loss: (\S+)", printed)
    assert found is not None, printed
    assert float(found.group(1)) < module.TOLERANCE
    assert re.search(r"seconds a step +\d+\.\d+ +\d+\.\d+ +\d+\.\d+x", printed)


def test_what_is_kept_changes_no_loss(tiny_sd_folder: Path, capsys) -> None:
    """Latents, text embeddings, both or neither: the table has a ratio for each, and the losses are equal."""
    words = ["--device", "cpu", "--steps", "2", "--rounds", "1", "--batch-size", "2"]
    assert caching.main(["--model", str(tiny_sd_folder), *words]) == 0
    printed = capsys.readouterr().out
    rows = re.findall(r"^(\w.*?) +\d+\.\d{4} +\d+\.\d\dx +(\S+)$", printed, re.MULTILINE)
    assert [name for name, _ in rows] == [caching.NEITHER, "latents", "text embeddings", caching.BOTH]
    assert all(float(apart) < 1e-6 for _, apart in rows), printed
    assert "losses equal" in printed
