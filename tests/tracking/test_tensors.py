"""Our safetensors files against the library's own, and against themselves in other processes."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from diffusion_lab.system import tensors

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
WHOLE = [
    torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64, torch.uint64,
]  # fmt: skip


def some(seed: int) -> dict[str, torch.Tensor]:
    """Tensors of all formats and shapes, in any order of names; also empty, single and not contiguous ones."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    found: dict[str, torch.Tensor] = {
        "bits": torch.rand(7) > 0.5, "empty": torch.zeros(0, 3), "one": torch.tensor(draw.random()),
        "turned": torch.rand(3, 5).T, "name with \"quotes\" und ümläute, \t 漢字": torch.rand(2),
    }  # fmt: skip
    for kind in [*FLOATS, *WHOLE]:
        for _ in range(draw.randrange(3)):
            shape = [draw.randrange(1, 5) for _ in range(draw.randrange(4))]
            found[f"{draw.random()}.weight"] = (torch.rand(shape) * 100).to(kind)
    names = list(found)
    draw.shuffle(names)
    return {name: found[name] for name in names}


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_bytes_are_the_librarys_where_it_has_no_choice(
    seed: int, metadata: dict[str, str] | None, tmp_path: Path
) -> None:
    given = some(seed)
    sha256 = tensors.write(tmp_path / "a", given, metadata)
    content = (tmp_path / "a").read_bytes()
    contiguous = {name: value.contiguous() for name, value in given.items()}
    assert content == safetensors.torch.save(contiguous, metadata)
    assert sha256 == hashlib.sha256(content).hexdigest()


def test_the_library_reads_what_was_written(tmp_path: Path) -> None:
    given, told = some(3), {"b": "2", "a": 'quoted "text"', "ä": "ö\n{}", "format": "pt"}
    tensors.write(tmp_path / "a", given, told)
    with safetensors.safe_open(tmp_path / "a", framework="pt") as file:
        assert file.metadata() == told
        assert set(file.keys()) == given.keys()
        assert all(torch.equal(file.get_tensor(name), value) for name, value in given.items())


def test_numbers_can_be_written_in_another_format(tmp_path: Path) -> None:
    given = {"half": torch.rand(3, 3).bfloat16(), "whole": torch.arange(4)}
    tensors.write(tmp_path / "a", given, dtype=torch.float32)
    found = safetensors.torch.load_file(tmp_path / "a")
    assert torch.equal(found["half"], given["half"].float())
    assert torch.equal(found["whole"], given["whole"])
    with pytest.raises(ValueError, match="complex64 cannot be written"):
        tensors.write(tmp_path / "b", {"x": torch.zeros(2, dtype=torch.complex64)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_metadata_has_one_order_in_every_process(tmp_path: Path) -> None:
    code = (
        "import sys, torch; from pathlib import Path; from diffusion_lab.system import tensors\n"
        "keys = {f'key{i}' for i in range(20)}\n"  # a set: its order differs by process
        "given = {key: torch.ones(int(key[3:]) + 1) for key in keys}\n"
        "tensors.write(Path(sys.argv[1]), given, {key: key for key in keys})\n"
    )
    for seed in "12":
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / seed)], check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )  # fmt: skip
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_no_other_code_writes_safetensors() -> None:
    """One function for all: another way would bring the library's order, or its errors, back."""
    package = Path(tensors.__file__).parents[1]
    files = sorted(package.rglob("*.py"))
    assert len(files) > 100
    # Weights shipped with the package are made by the recipe, not by a run.
    mine = [file for file in files if not file.is_relative_to(package / "miniature")]
    for file in mine:
        text = file.read_text("utf-8")
        for way in (
            "save_file",
            "safetensors.torch import save",
            "load_file, save",
            "save_model",
            "serialize(",
        ):
            assert way not in text, f"{file.name}: {way}"
