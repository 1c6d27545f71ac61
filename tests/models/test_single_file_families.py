"""Single files of the other families: loaded where diffusers' converter takes toy sizes, told apart by their keys."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusion_lab.config.schema import Model
from diffusion_lab.families import FAMILIES
from diffusion_lab.models import single_file
from diffusion_lab.models.load import load_pipeline, loaded_dtype
from diffusion_lab.records import UserError
from tests.families import tiny
from tests.models.ldm import sdxl_file

CPU = torch.device("cpu")
WITHOUT_WEIGHTS = shutil.ignore_patterns("*.safetensors")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model of each family."""
    place = tmp_path_factory.mktemp("families")
    for name, build in tiny.FAMILY.items():
        build(place / name)
    return {name: place / name for name in tiny.FAMILY}


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory, folders: dict[str, Path]) -> Path:
    from diffusers import StableDiffusionXLPipeline

    path = tmp_path_factory.mktemp("single") / "xl.safetensors"
    pipe = StableDiffusionXLPipeline.from_pretrained(folders["sdxl"])
    save_file({name: value.half() for name, value in sdxl_file(pipe).items()}, path)
    return path


def of(path: Path, config: Path | None, family: str | None) -> Model:
    return Model(path=str(path), config=None if config is None else str(config), family=family, device="cpu")


def keys_of(family: str, *parts: str) -> dict[str, torch.Tensor]:
    """What such a file begins its keys with: enough to be told apart."""
    prefixes = FAMILIES[family].single_file_parts
    return {f"{prefixes[part][0]}x.weight": torch.zeros(1) for part in parts or prefixes}


def test_a_file_of_stable_diffusion_xl_is_the_model_that_was_written(
    sdxl: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    configs = tmp_path / "configs"
    shutil.copytree(folders["sdxl"], configs, ignore=WITHOUT_WEIGHTS)
    pipe = load_pipeline(of(sdxl, configs, None), CPU)
    assert type(pipe).__name__ == "StableDiffusionXLPipeline"
    plain = type(pipe).from_pretrained(folders["sdxl"])
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        ours, theirs = getattr(pipe, part).state_dict(), getattr(plain, part).state_dict()
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            assert value.dtype == torch.float32
            assert torch.equal(value, theirs[name].half().float()), (part, name)
    assert pipe.scheduler.config.timestep_spacing == "leading"
    assert pipe.tokenizer_2.pad_token == "!"


@pytest.mark.parametrize(
    "prefix", ["conditioner.embedders.1.", "model.diffusion_model.", "first_stage_model."]
)
def test_a_part_of_it_that_is_missing(
    sdxl: Path, folders: dict[str, Path], tmp_path: Path, prefix: str
) -> None:
    weights = {name: value for name, value in load_file(sdxl).items() if not name.startswith(prefix)}
    save_file(weights, tmp_path / "part.safetensors")
    with pytest.raises(UserError, match=r"model\.path=.*holds no (U-Net|VAE|second text encoder).*whole"):
        single_file.check_file(
            tmp_path / "part.safetensors", of(tmp_path / "part.safetensors", folders["sdxl"], None)
        )


@pytest.mark.parametrize("weights", ["conditioner.embedders.1.model.ln_final.bias",
                                     "model.diffusion_model.label_emb.0.0.weight"])  # fmt: skip
def test_weights_of_it_that_are_missing_are_not_drawn_at_random(
    sdxl: Path, folders: dict[str, Path], tmp_path: Path, weights: str
) -> None:
    found = load_file(sdxl)
    del found[weights]
    save_file(found, tmp_path / "less.safetensors")
    with pytest.raises(UserError, match=r"lacks weights that its configs ask for"):
        load_pipeline(of(tmp_path / "less.safetensors", folders["sdxl"], None), CPU)


@pytest.mark.parametrize("taken_for", sorted(FAMILIES))
@pytest.mark.parametrize("really", sorted(FAMILIES))
def test_a_file_of_another_family_is_told_from_its_keys(tmp_path: Path, really: str, taken_for: str) -> None:
    path = tmp_path / "model.safetensors"
    save_file(keys_of(really), path)
    if really == taken_for:
        single_file.check_file(path, of(path, None, taken_for))
        return
    title = FAMILIES[really].title
    with pytest.raises(UserError, match=rf"it looks like {title}: set model\.family={really}$"):
        single_file.check_file(path, of(path, None, taken_for))


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_a_transformer_alone_is_a_model_whose_other_parts_come_from_elsewhere(
    tmp_path: Path, folders: dict[str, Path], family: str
) -> None:
    """As sd3.5_medium.safetensors (with a VAE) and flux1-dev.safetensors (without) are published."""
    known, path = FAMILIES[family], tmp_path / "model.safetensors"
    save_file(keys_of(family, "transformer"), path)
    others = ("vae", *known.text_encoders)
    assert single_file.lacking_parts(path, known) == others
    single_file.check_file(path, of(path, folders[family], None))
    configs = tmp_path / "configs"
    shutil.copytree(folders[family], configs, ignore=WITHOUT_WEIGHTS)
    with pytest.raises(UserError, match=r"model\.config=.*holds no VAE, and this folder has no weights"):
        single_file.check_file(path, of(path, configs, None))


@pytest.mark.parametrize(("family", "precision"), [("sd3", "bf16"), ("flux", "bf16"), ("flux", "fp32")])
def test_what_a_file_lacks_is_loaded_from_the_folder_of_its_configs(
    tmp_path: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, family: str, precision: str
) -> None:
    """diffusers' converters of these files want the published widths, so what it is given is looked at instead."""
    known, path = FAMILIES[family], tmp_path / "model.safetensors"
    save_file(keys_of(family, "transformer"), path)
    given: dict[str, Any] = {}
    plain = known.pipeline_class().from_pretrained(folders[family])
    monkeypatch.setattr(
        known.pipeline_class(), "from_single_file", lambda path, **options: given.update(options) or plain
    )
    model = of(path, folders[family], None)
    model.precision = precision
    dtype = loaded_dtype("transformer", model, known)
    single_file.load_file(path, model, known, dtype)
    for part in ("vae", *known.text_encoders):
        ours, theirs = given[part].state_dict(), getattr(plain, part).state_dict()
        assert all(value.dtype == (torch.float32 if part == "vae" else dtype) for value in ours.values())
        assert all(torch.equal(value.to(dtype), theirs[name].to(dtype)) for name, value in ours.items())
    assert given["config"] == str(folders[family])
    assert given["local_files_only"]


def test_stable_diffusion_3_without_t5(
    tmp_path: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of configs that has no T5 makes a model without it, as the family allows."""
    known, path, configs = FAMILIES["sd3"], tmp_path / "model.safetensors", tmp_path / "configs"
    save_file(keys_of("sd3", "transformer"), path)
    shutil.copytree(folders["sd3"], configs, ignore=shutil.ignore_patterns("*_3"))
    given: dict[str, Any] = {}
    plain = known.pipeline_class().from_pretrained(folders["sd3"])
    monkeypatch.setattr(
        known.pipeline_class(), "from_single_file", lambda path, **options: given.update(options) or plain
    )
    single_file.load_file(path, of(path, configs, None), known, torch.float32)
    assert given["text_encoder_3"] is None
    assert given["tokenizer_3"] is None
    assert given["text_encoder_2"] is not None
