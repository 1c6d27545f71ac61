"""The plan's memory: counted right where it is counted, near what autograd keeps where it is estimated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import memory
from diffusion_lab.cli.compose import compose
from diffusion_lab.config.schema import Config, Model
from diffusion_lab.jobs import check
from diffusion_lab.plan import costs, footprint
from diffusion_lab.plan.defaults import fill_defaults
from diffusion_lab.plan.numbers import PlannedEvaluations

DATA = ["data=folder", "data.folder=.", "data.class_noun=dog"]


def configured(*words: str) -> Config:
    return fill_defaults(compose([*words, *DATA]))


def test_the_benchmarks_unet_is_stable_diffusion_15s() -> None:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**memory.UNET)
    assert sum(p.numel() for p in unet.parameters()) == footprint.SD15.parameters["unet"]
    assert footprint.sums(unet.config, 64) == footprint.sums(footprint.SD15.unet, 64)
    linear = [m for n, m in unet.named_modules() if n.endswith(("to_q", "to_k", "to_v", "to_out.0"))]
    expected = sum(8 * (m.in_features + m.out_features) for m in linear)
    config = configured("model=sd15", "method.rank=8")
    assert footprint.trained_numbers(config, footprint.SD15) == expected


@pytest.mark.parametrize("trains", [True, False])
def test_saved_activations_are_near_what_autograd_saves(trains: bool) -> None:
    """Float32 on the CPU, whose attention keeps no matrices either."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16, block_out_channels=(64, 128), layers_per_block=2, cross_attention_dim=64,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).requires_grad_(trains)  # fmt: skip
    own = {p.untyped_storage().data_ptr() for p in unet.parameters()}
    kept: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    context = torch.randn(1, 7, 64, requires_grad=not trains)
    noisy = torch.randn(1, 4, 16, 16, requires_grad=not trains)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        unet(noisy, torch.tensor([3]), context)
    saved = sum(storage.nbytes() for storage in kept.values())
    residual, transformer = footprint.sums(unet.config, 16)
    per_residual, per_transformer = footprint.SAVED[False, trains]
    assert per_residual * residual + per_transformer * transformer == pytest.approx(saved, rel=0.35)


def test_a_folders_parameters_are_read_from_its_headers(tiny_sd_folder: Path, tiny_pipe) -> None:
    found = footprint.architecture(Model(path=str(tiny_sd_folder)))
    assert found.known
    assert found.factor == 4
    for part, number in found.parameters.items():
        assert number == sum(v.numel() for v in getattr(tiny_pipe, part).state_dict().values())
    assert not footprint.architecture(Model(path="owner/name")).known


def test_what_the_options_are_for() -> None:
    def training(*words: str) -> float:
        return footprint.peaks(configured("experiment=full", *words), footprint.SD15)["training"]

    base = training()
    for saving in ("memory.gradient_checkpointing=true", "memory.offload=true", "steps.batch_size=1"):
        assert training(saving) < 0.95 * base
    assert training("model.precision=fp32") > 1.3 * base
    assert training("method=dreambooth", "method.prior_weight=0") > 2 * base
    assert training("method=textual_inversion") == pytest.approx(base, rel=0.2)


@pytest.mark.parametrize("name", [name for name, (_, goal) in memory.CASES.items() if goal])
def test_small_card_fits_a_small_card(name: str) -> None:
    """By the estimate; `benchmarks/memory.py` measures."""
    words, goal = memory.CASES[name]
    assert memory.estimated(memory.configured(words)) <= goal


def test_a_run_that_does_not_fit_is_told_what_would_help(
    tiny_sd_folder: Path, tmp_path: Path, monkeypatch
) -> None:
    (tmp_path / "prompts.txt").write_text("a photo of {subject}")
    prompts = ["prompts=file", f"prompts.path={tmp_path / 'prompts.txt'}"]
    words = [
        "model=folder",
        f"model.path={tiny_sd_folder}",
        *prompts,
        "method=dreambooth",
        "model.resolution=512",
    ]
    config = fill_defaults(compose(words))

    def warnings() -> list[str]:
        return [text for text in check(config, tmp_path / "run").warnings if "GiB of memory" in text]

    monkeypatch.setattr(
        "diffusion_lab.plan.finetune.check_place", lambda *_: None
    )  # the disk is not asked here
    assert not warnings()
    monkeypatch.setattr(costs, "device_bytes", lambda config: 1e9)
    (told,) = warnings()
    assert "bring it to about" in told
    assert "method=lora needs less" in told
    found, best = costs.remedies(config)
    assert found
    assert best < max(footprint.peaks(config, footprint.architecture(config.model)).values())


def test_the_record_has_the_estimate_beside_what_was_measured() -> None:
    numbers = PlannedEvaluations(evaluations=(0, 1400), per_evaluation=100, forwards=10_000)
    planned = costs.phases(configured("experiment=full"), numbers)
    for phase in ("training", "evaluation"):
        assert planned[phase]["seconds"] > 0
        assert planned[phase]["peak_memory_bytes"] > 1e9


def test_the_benchmark_builds_its_pipeline(monkeypatch) -> None:
    widths = {"block_out_channels": (32,) * 4, "layers_per_block": 1}
    monkeypatch.setattr(memory, "UNET", {**memory.UNET, **widths, "cross_attention_dim": 32})
    monkeypatch.setattr(memory, "VAE", {**memory.VAE, **widths})
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    monkeypatch.setattr(memory, "TEXT", {**memory.TEXT, **small})
    pipe = memory.build(torch.device("cpu"))
    assert pipe.unet.config.sample_size * pipe.vae_scale_factor == 512
    assert len(pipe.tokenizer) <= pipe.text_encoder.get_input_embeddings().num_embeddings
    assert not any(p.requires_grad for p in pipe.unet.parameters())


def test_without_a_card_the_benchmark_says_that_nothing_was_measured(capsys) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a card")
    assert memory.main(["--only", "lora"]) == 0
    told = capsys.readouterr().out
    assert "nothing was measured" in told
    assert told.count("| - |") == 2
