"""Loading a model: what is refused, with which words, and in which state it arrives."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusion_lab.config.schema import Model
from diffusion_lab.families.ddpm import process
from diffusion_lab.miniature import shipped
from diffusion_lab.models.folder import check_folder
from diffusion_lab.models.load import (
    cast_frozen,
    load_pipeline,
    modules,
    resolution_of,
    resolve_device,
    resolve_path,
)
from diffusion_lab.models.parts import stem
from diffusion_lab.records import UserError

CPU = torch.device("cpu")


@pytest.fixture
def copy(tiny_sd_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_sd_folder, tmp_path / "sd"))


def model(path: Path | str, **values: object) -> Model:
    return Model(path=str(path), device="cpu", **values)  # type: ignore[arg-type]


def test_a_loaded_pipeline_is_frozen_float32_and_in_eval_mode(tiny_sd_folder: Path) -> None:
    pipe = load_pipeline(model(tiny_sd_folder), CPU)
    for module in modules(pipe):
        assert not module.training
        assert all(p.dtype == torch.float32 and not p.requires_grad for p in module.parameters())
    assert pipe.safety_checker is None
    assert resolution_of(pipe, model(tiny_sd_folder)) == 64


def test_it_is_the_pipeline_that_plain_diffusers_loads(tiny_sd_folder: Path, load_plain_pipe) -> None:
    ours, plain = load_pipeline(model(tiny_sd_folder), CPU), load_plain_pipe(tiny_sd_folder)
    for a, b in zip(modules(ours), modules(plain), strict=True):
        theirs = b.state_dict()
        assert a.state_dict().keys() == theirs.keys()
        assert all(torch.equal(value, theirs[name]) for name, value in a.state_dict().items())
    assert ours.scheduler.config == plain.scheduler.config
    assert ours.tokenizer("a photo of dog").input_ids == plain.tokenizer("a photo of dog").input_ids


@pytest.mark.parametrize(
    "part",
    [
        "model_index.json",
        "unet",
        "vae",
        "text_encoder",
        "tokenizer",
        "scheduler",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "text_encoder/config.json",
        "tokenizer/tokenizer.json",
        "scheduler/scheduler_config.json",
    ],
)
def test_a_folder_that_lacks_a_part_is_refused_with_its_name(copy: Path, part: str) -> None:
    target = copy / part
    assert target.exists()
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    named = "tokenizer/vocab.json" if part == "tokenizer/tokenizer.json" else part
    with pytest.raises(UserError) as caught:
        load_pipeline(model(copy), CPU)
    assert f"model.path={copy}" in str(caught.value)
    assert named in str(caught.value)


def test_an_interrupted_download_is_found(copy: Path) -> None:
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"unet/diffusion_pytorch_model.safetensors is damaged"):
        check_folder(copy, model(copy))


@pytest.mark.parametrize(
    ("file", "layer"),
    [
        ("unet/diffusion_pytorch_model.safetensors", "attn1.to_q.weight"),
        ("vae/diffusion_pytorch_model.safetensors", "encoder.conv_in.weight"),
        ("text_encoder/model.safetensors", "q_proj.weight"),
    ],
)
def test_weights_missing_in_a_file_are_not_drawn_at_random(copy: Path, file: str, layer: str) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / file)
    gone = next(name for name in weights if name.endswith(layer))
    del weights[gone]
    save_file(weights, copy / file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"{file.split('/')[0]} lacks 1 of its weights"):
        load_pipeline(model(copy), CPU)


def test_pickled_weights_need_permission(copy: Path) -> None:
    from safetensors.torch import load_file

    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    with pytest.raises(UserError, match=r"model\.allow_pickle=true"):
        load_pipeline(model(copy), CPU)
    assert load_pipeline(model(copy, allow_pickle=True), CPU).unet.dtype == torch.float32


@pytest.mark.parametrize("parts", [("unet",), ("vae",), ("text_encoder",), ("unet", "vae", "text_encoder")])
def test_a_variant_of_some_parts_or_all(copy: Path, parts: tuple[str, ...]) -> None:
    """As diffusers reads such a folder; without the setting, the message names it."""
    from diffusers import StableDiffusionPipeline

    for part in parts:
        file = copy / part / f"{stem(part)}.safetensors"
        weights = {name: value.half() for name, value in load_file(file).items()}
        save_file(weights, file.with_name(f"{stem(part)}.fp16.safetensors"), {"format": "pt"})
        file.unlink()
    with pytest.raises(UserError, match=r"safetensors is missing; set model\.variant=fp16$"):
        load_pipeline(model(copy), CPU)
    ours = load_pipeline(model(copy, variant="fp16"), CPU)
    theirs = StableDiffusionPipeline.from_pretrained(copy, variant="fp16", safety_checker=None)
    for part in ("unet", "vae", "text_encoder"):
        expected = getattr(theirs, part).state_dict()
        for name, value in getattr(ours, part).state_dict().items():
            assert value.dtype in (torch.float32, torch.int64)
            assert torch.equal(value, expected[name].to(value.dtype))


def test_a_variant_that_no_part_has_is_refused(copy: Path) -> None:
    with pytest.raises(UserError, match=r"model\.variant=fp61: no part .* set model\.variant=null"):
        load_pipeline(model(copy, variant="fp61"), CPU)


def test_another_kind_of_pipeline_is_refused(copy: Path) -> None:
    index = json.loads((copy / "model_index.json").read_text())
    index["_class_name"] = "StableDiffusionUpscalePipeline"
    (copy / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(
        UserError, match="StableDiffusionUpscalePipeline; one of StableDiffusionPipeline, .* is needed"
    ):
        load_pipeline(model(copy), CPU)


def test_an_unknown_prediction_type_is_refused(copy: Path) -> None:
    file = copy / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "prediction_type": "sample"}))
    with pytest.raises(UserError, match="prediction_type sample"):
        load_pipeline(model(copy), CPU)


def test_a_tokenizer_without_its_vocabulary_is_refused(tiny_pipe) -> None:
    """What transformers makes of a hub's model whose tokenizer was not downloaded: no error, three pieces."""
    from transformers import CLIPTokenizer

    from diffusion_lab.models.load import _check_supported

    _check_supported(tiny_pipe, Model(path="owner/name"))
    tiny_pipe.tokenizer = CLIPTokenizer()
    with pytest.raises(UserError, match=r"model\.path=owner/name: the tokenizer has \d pieces"):
        _check_supported(tiny_pipe, Model(path="owner/name"))


def test_paths_that_are_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.ckpt"
    file.write_bytes(b"")
    for path, words in (
        (tmp_path / "gone.ckpt", "no such file"),
        (tmp_path / "a" / "b", "no such folder"),
        ("nowhere", "no such"),
    ):
        with pytest.raises(UserError, match=words):
            resolve_path(str(path))
    monkeypatch.setattr(shipped, "WEIGHTS", tmp_path / "weights")
    with pytest.raises(UserError, match="job=pretrain"):
        resolve_path("miniature")
    assert resolve_path("owner/name") == "owner/name"


def test_a_hub_that_cannot_be_reached_names_key_and_remedy(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError) as caught:
        load_pipeline(model("no-such-owner/no-such-model"), CPU)
    assert "model.path=no-such-owner/no-such-model" in str(caught.value)
    assert "model.path=miniature" in str(caught.value)
    with pytest.raises(UserError, match=r"use model\.path=stable-diffusion-v1-5/"):
        load_pipeline(model("runwayml/stable-diffusion-v1-5"), CPU)


def test_devices() -> None:
    assert resolve_device("cpu") == CPU
    assert resolve_device("auto").type in ("cuda", "mps", "cpu")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match=r"model\.device=cuda is not on this machine \(found: .*cpu\)"):
            resolve_device("cuda")
    with pytest.raises(UserError, match=r"model\.device=toaster"):
        resolve_device("toaster")


def test_half_precision_on_the_cpu_is_refused(tiny_sd_folder: Path) -> None:
    with pytest.raises(UserError, match=r"model\.precision=fp16 needs a GPU"):
        load_pipeline(model(tiny_sd_folder, precision="fp16"), CPU)


def test_a_card_that_only_emulates_bf16_is_told(
    tiny_sd_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    load_pipeline(model(tiny_sd_folder, precision="bf16"), CPU)
    assert not caplog.records
    with suppress(Exception):  # without a card, moving there fails
        load_pipeline(model(tiny_sd_folder, precision="bf16"), torch.device("cuda"))
    assert "model.precision=fp16 is fast there" in caplog.text


def test_training_scheduler_is_ddpm_with_the_models_own_schedule(tiny_pipe, tiny_v_pipe) -> None:
    for pipe, prediction_type in ((tiny_pipe, "epsilon"), (tiny_v_pipe, "v_prediction")):
        scheduler = process(pipe).scheduler
        assert type(scheduler).__name__ == "DDPMScheduler"
        assert type(pipe.scheduler).__name__ == "PNDMScheduler"
        assert scheduler.config.prediction_type == prediction_type
        torch.testing.assert_close(scheduler.alphas_cumprod, pipe.scheduler.alphas_cumprod, rtol=0, atol=0)


def test_resolution_must_fit_the_networks(tiny_pipe) -> None:
    assert resolution_of(tiny_pipe, Model(resolution=32)) == 32
    with pytest.raises(UserError, match=r"model\.resolution=1000 must|model\.resolution=20"):
        resolution_of(tiny_pipe, _resolution(20))


def _resolution(pixels: int) -> Model:
    values = Model(resolution=64)
    values.resolution = pixels  # past the check of the schema, which knows no model
    return values


def test_cast_frozen_leaves_what_trains(tiny_pipe) -> None:
    for module in modules(tiny_pipe):
        module.requires_grad_(False)
    trained = tiny_pipe.unet.conv_in.weight.requires_grad_(True)
    cast_frozen(tiny_pipe, "bf16")
    kinds = {p.dtype for module in modules(tiny_pipe) for p in module.parameters() if p is not trained}
    assert kinds == {torch.bfloat16}
    assert trained.dtype == torch.float32
