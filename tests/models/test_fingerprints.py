"""A model's weights are hashed once; whatever can change them makes the hash be computed again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from diffusion_lab.config.schema import Model
from diffusion_lab.models import fingerprints
from diffusion_lab.models.fingerprints import fingerprint, loaded_fingerprint
from diffusion_lab.models.load import load_pipeline

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tiny_sd_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIFFUSION_LAB_CACHE", str(tmp_path / "cache"))
    shutil.copytree(tiny_sd_folder, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that weights are hashed."""
    real, seen = fingerprints.weights_hash, list[int]()
    monkeypatch.setattr(fingerprints, "weights_hash", lambda networks: seen.append(1) or real(networks))
    return seen


def ask(folder: Path, **values: object) -> str:
    pipe = load_pipeline(Model(path=str(folder), **values), torch.device("cpu"))  # type: ignore[arg-type]
    return loaded_fingerprint(pipe)


def kept(folder: Path) -> list[Path]:
    return sorted((folder.parent / "cache" / "fingerprints").glob("*.json"))


def test_hashed_once_for_all_runs(folder: Path, hashed: list[int]) -> None:
    first = ask(folder)
    assert first == fingerprint(load_pipeline(Model(path=str(folder)), torch.device("cpu")))
    assert len(hashed) == 2
    assert ask(folder) == ask(folder) == first
    assert len(hashed) == 2
    assert len(kept(folder)) == 1


def change_time(folder: Path) -> None:
    os.utime(folder / UNET, ns=(0, 10**9))


def change_weights_and_set_the_time_back(folder: Path) -> None:
    path = folder / UNET
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 0x40
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def change_size(folder: Path) -> None:
    (folder / "vae" / "config.json").open("a").write(" ")


def move(folder: Path) -> None:
    folder.rename(folder.with_name("moved"))
    folder.with_name("moved").rename(folder)
    (folder / "unet").rename(folder / "other")
    shutil.copytree(folder / "other", folder / "unet")


@pytest.mark.parametrize(
    ("change", "other"),
    [
        (change_time, False), (change_weights_and_set_the_time_back, True), (change_size, False), (move, False),
    ],
)  # fmt: skip
def test_hashed_again_where_a_file_is_another(folder: Path, hashed: list[int], change, other: bool) -> None:
    first = ask(folder)
    change(folder)
    assert (ask(folder) != first) == other
    assert len(hashed) == 2


@pytest.mark.parametrize("content", ["", "{", "[]", '{"source": 1}', '{"fingerprint": "x"}', None])
def test_a_damaged_cache_is_made_again(folder: Path, hashed: list[int], content: str | None) -> None:
    first = ask(folder)
    (path,) = kept(folder)
    if content is None:
        path.write_text(path.read_text().replace(first, "not a hash"))
    else:
        path.write_text(content)
    assert ask(folder) == first
    assert len(hashed) == 2
    assert ask(folder) == first
    assert len(hashed) == 2


def test_a_cache_that_cannot_be_written_costs_time_only(folder: Path, hashed: list[int]) -> None:
    (folder.parent / "cache").write_text("a file stands in its place")
    assert ask(folder) == ask(folder)
    assert len(hashed) == 2


def test_a_pipeline_from_elsewhere_is_hashed_as_it_is(tiny_pipe, folder: Path, hashed: list[int]) -> None:
    before = loaded_fingerprint(tiny_pipe)
    with torch.no_grad():
        tiny_pipe.unet.conv_in.weight[0, 0, 0, 0] += 1
    assert loaded_fingerprint(tiny_pipe) != before
    assert not kept(folder)
