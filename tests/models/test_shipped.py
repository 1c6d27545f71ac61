"""The models in the package: whole, small, and of two parametrisations."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from diffusion_lab.config.schema import Model
from diffusion_lab.families.ddpm import process
from diffusion_lab.miniature import shipped
from diffusion_lab.models.folder import check_folder
from diffusion_lab.models.load import load_pipeline
from diffusion_lab.records import UserError

CPU = torch.device("cpu")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIFFUSION_LAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_all_weights_together_stay_under_60_megabytes() -> None:
    files = [path for path in shipped.WEIGHTS.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert sum(path.stat().st_size for path in files) <= 60e6
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl")]


@pytest.mark.parametrize(
    ("name", "prediction_type"), [("miniature", "epsilon"), ("miniature_v", "v_prediction")]
)
def test_each_is_an_ordinary_folder_with_its_own_parametrisation(
    name: str, prediction_type: str, cache: Path
) -> None:
    folder = shipped.shipped_folder(name)
    check_folder(folder, Model(path=name))
    pipe = load_pipeline(Model(path=name, device="cpu"), CPU)
    assert process(pipe).scheduler.config.prediction_type == prediction_type


def test_a_folder_is_put_together_once(cache: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(shipped.shipped_folder, ["miniature_v"] * 4))
    assert len(folders) == 1
    folder = folders.pop()
    assert [path.name for path in cache.iterdir()] == [folder.name]
    before = (folder / "model_index.json").stat().st_mtime_ns
    assert shipped.shipped_folder("miniature_v") == folder
    assert (folder / "model_index.json").stat().st_mtime_ns == before


def test_other_weights_get_another_folder(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = shipped.shipped_folder("miniature_v")
    copy = Path(shutil.copytree(shipped.WEIGHTS, tmp_path / "weights"))
    (copy / "sd_v" / "scheduler" / "scheduler_config.json").write_text("{}")
    monkeypatch.setattr(shipped, "WEIGHTS", copy)
    new = shipped.shipped_folder("miniature_v")
    assert new != old
    assert (new / "scheduler" / "scheduler_config.json").read_text() == "{}"


def test_a_cache_that_cannot_be_written_names_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DIFFUSION_LAB_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"model\.path=miniature_v .* DIFFUSION_LAB_CACHE"):
        shipped.shipped_folder("miniature_v")


def test_a_package_without_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "WEIGHTS", tmp_path)
    with pytest.raises(UserError, match="job=pretrain"):
        shipped.shipped_folder("miniature_v")
