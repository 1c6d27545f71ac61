"""The plan's memory: counted right where it is counted, near what autograd keeps where it is estimated."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import memory
from benchmarks.full_size import UNET
from diffusion_lab.cli.compose import compose
from diffusion_lab.config.schema import Config, Model
from diffusion_lab.jobs import check
from diffusion_lab.models import devices
from diffusion_lab.plan import costs, footprint
from diffusion_lab.plan.defaults import fill_defaults
from diffusion_lab.plan.numbers import PlannedEvaluations

DATA = ["data=folder", "data.folder=.", "data.class_noun=dog"]


def configured(*words: str) -> Config:
    return fill_defaults(compose([*words, *DATA]))


SD15 = footprint.architecture(Model(path="owner/name"))  # what stands for a model that is not here


def test_what_a_lora_trains_is_counted() -> None:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**UNET)
    linear = [m for n, m in unet.named_modules() if n.endswith(("to_q", "to_k", "to_v", "to_out.0"))]
    expected = sum(8 * (m.in_features + m.out_features) for m in linear)
    assert footprint.trained_numbers(configured("model=sd15", "method.rank=8"), SD15) == expected


def test_a_folders_parameters_are_read_from_its_headers(tiny_sd_folder: Path, tiny_pipe) -> None:
    found = footprint.architecture(Model(path=str(tiny_sd_folder)))
    assert found.known
    assert found.factor == 4
    for part, number in found.parameters.items():
        assert number == sum(v.numel() for v in getattr(tiny_pipe, part).state_dict().values())
    assert not footprint.architecture(Model(path="owner/name")).known


def test_what_the_options_are_for() -> None:
    def training(*words: str) -> float:
        return footprint.peaks(configured("experiment=full", *words), SD15)["training"]

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


def test_without_a_card_the_benchmark_says_that_nothing_was_measured(capsys) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a card")
    assert memory.main(["--only", "lora"]) == 0
    told = capsys.readouterr().out
    assert "nothing was measured" in told
    assert told.count("| - |") == 2


def pretend_card(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    for module in (costs, devices):
        monkeypatch.setattr(module, "has_gpu", lambda: there)
    monkeypatch.setattr(
        devices, "_cards", lambda: (devices.Card("NVIDIA A100-SXM4-80GB", 8.0, 80e9),) if there else ()
    )


@pytest.mark.parametrize(
    ("words", "card", "offered"),
    [
        (("model=flux_dev", "method=lora"), True, True),
        (("model=sd35_medium", "method=lora"), True, True),
        (("model=flux_dev", "method=lora"), False, False),  # bitsandbytes' kernels are NVIDIA's
        (("model=flux_dev", "method=lora", "model.device=cpu"), True, False),
        (("model=flux_dev", "method=dreambooth"), True, False),  # what trains cannot be in 4 bits
        (("model=sdxl", "method=lora"), True, False),
    ],
)
def test_four_bits_are_offered_where_they_are_possible(
    words: tuple[str, ...], card: bool, offered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_card(monkeypatch, card)
    found, _ = costs.remedies(configured("experiment=full", *words))
    assert ("model.quantise=nf4" in found) is offered
    if offered:
        without, _ = costs.remedies(configured("experiment=full", *words, "model.quantise=nf4"))
        assert "model.quantise=nf4" not in without


# Peaks that others have published, GB: of the training alone, text and latents computed before.
@pytest.mark.parametrize(
    ("words", "least", "most"),
    [
        # diffusers' README: below 16 GB with checkpointing and 8-bit Adam; kohya's users: 8 and more
        (("model=sdxl", "method=lora"), 5.5, 16),
        # kohya's users: 16 to 19 with everything in half precision, which the weights and gradients are not here
        (("model=sdxl", "method=dreambooth", "method.prior_weight=0"), 19, 40),
        # diffusers' README: "can exceed 40GB" with all components trained
        (("model=flux_dev", "method=lora"), 24, 40),
        # the hub's article on QLoRA: 9 GB at 512 pixels
        (("model=flux_dev", "method=lora", "model.quantise=nf4", "model.resolution=512"), 7, 11),
    ],
)
def test_peaks_are_near_published_ones(
    words: tuple[str, ...], least: float, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_card(monkeypatch, True)
    config = configured("experiment=small_card", *words)
    peak = footprint.peaks(config, footprint.architecture(config.model))["training"]
    assert least < peak / 1e9 < most


def test_the_start_holds_all_parts_as_they_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stable Diffusion XL in float32, FLUX.1 in half precision, T5 beside the denoiser; 4 bits shrink the denoiser."""
    pretend_card(monkeypatch, True)
    for name, quantise, expected in (
        ("sdxl", "null", 13.9e9),
        ("flux_dev", "null", 33.7e9),
        ("flux_dev", "nf4", 16.6e9),
    ):
        config = configured("experiment=full", f"model={name}", f"model.quantise={quantise}")
        found = footprint.loaded_bytes(config, footprint.architecture(config.model))
        assert found == pytest.approx(expected, rel=0.02)
        numbers = PlannedEvaluations(evaluations=(0, 500), per_evaluation=10, forwards=5000)
        assert costs.of_run(config, numbers).start_seconds == 60 + max(0, found - 5e9) / 0.5e9
