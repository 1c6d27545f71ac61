"""The benchmark's two loops are the same training: losses equal step by step on the tiny model."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

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
