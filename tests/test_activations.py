"""The plan's figures of every published model: activations against fake tensors, sizes against the real classes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks import activations, full_size, memory
from benchmarks.full_size import MODELS
from diffusion_lab.config.schema import Model
from diffusion_lab.families import FAMILIES
from diffusion_lab.models.parts import weight_parts
from diffusion_lab.plan import footprint
from tests.families import tiny

SIDE = {name: 64 if name == "sd15" else 128 for name in MODELS}
TINY_SIDE = {"sd": 16, "sdxl": 16, "sd3": 16, "flux": 16}


def configs_of(pipe: Any, family: Any) -> dict[str, Any]:
    return {part: dict(network.config) if part == family.denoiser or part == "vae" else {}
            for part, network in family.networks(pipe).items()}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_the_benchmarks_models_have_the_published_numbers(name: str) -> None:
    family_name, configs = MODELS[name]
    family = FAMILIES[family_name]
    published = footprint.architecture(Model(path=_path(name), family=family_name))
    assert not published.known
    for part in weight_parts(family):
        with torch.device("meta"):
            found = full_size.network(family, part, configs[part])
        number = sum(value.numel() for value in found.state_dict().values())
        if part.startswith("text_encoder"):
            number = sum(
                value.numel() for value in found.parameters()
            )  # the state has T5's words under two names
            # Older files have the positions' numbers 0..76 beside the parameters.
            assert number == pytest.approx(published.parameters[part], rel=0.01), part
        else:
            assert number == published.parameters[part], part
    assert family.work(configs, 64) == published.work(64)


def _path(name: str) -> str:
    from diffusion_lab.cli.compose import compose

    return str(compose([f"model={name}"]).model.path)


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("checkpointing", [False, True])
def test_fake_tensors_keep_what_real_ones_keep(family: str, checkpointing: bool, tmp_path: Any) -> None:
    """float32 on the CPU, everything trains: the same hooks on a real forward pass."""
    known: Any = FAMILIES[family]
    pipe = tiny.FAMILY[family](tmp_path / family)
    net = getattr(pipe, known.denoiser).requires_grad_(True).train()
    if checkpointing:
        net.enable_gradient_checkpointing()
    configs = configs_of(pipe, known)
    own = {value.untyped_storage().data_ptr() for value in net.state_dict().values()}
    kept: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    side, channels = TINY_SIDE[family], configs["vae"]["latent_channels"]
    conditioning = activations._conditioning(known, configs, torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        known.predict(pipe, torch.randn(1, channels, side, side), torch.tensor([3.0]), conditioning)
    real = sum(storage.nbytes() for storage in kept.values())
    fake = activations.kept(
        family, configs, side, half=False, trains=True, device="cpu", checkpointing=checkpointing
    )
    assert fake == pytest.approx(real, rel=0.02)


@pytest.mark.parametrize(("half", "trains"), [mode for mode in activations.MODES if mode[0]])
@pytest.mark.parametrize("name", MODELS)
def test_the_plans_activations_are_what_autograd_keeps(name: str, half: bool, trains: bool) -> None:
    family, configs = MODELS[name]
    found = activations.kept(family, configs, SIDE[name], half=half, trains=trains)
    assert activations.estimated(family, configs, SIDE[name], half=half, trains=trains) == pytest.approx(
        found, rel=activations.TOLERANCE
    )


@pytest.mark.parametrize("name", MODELS)
def test_checkpointing_keeps_less_than_the_plan_says(name: str) -> None:
    """Between the blocks; the plan adds one block's own activations."""
    family, configs = MODELS[name]
    mode: dict[str, Any] = {"half": True, "trains": False}
    between = activations.kept(family, configs, SIDE[name], checkpointing=True, **mode)
    planned = FAMILIES[family].checkpointed * activations.estimated(family, configs, SIDE[name], **mode)
    assert between < planned < 3 * between


@pytest.mark.parametrize("name", [name for name in MODELS if name != "sd35_large"])
def test_the_benchmark_builds_every_model(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """At toy size: parts of the family's classes, large families' in half precision, all frozen."""
    family_name, _ = MODELS[name]
    family: Any = FAMILIES[family_name]
    plain = tiny.FAMILY[family_name](tmp_path / name)
    small: dict[str, dict[str, Any]] = {}
    for part, network in family.networks(plain).items():
        config = network.config
        small[part] = config.to_diff_dict() if hasattr(config, "to_diff_dict") else dict(config)
    monkeypatch.setitem(full_size.MODELS, name, (family_name, small))
    pipe = full_size.pipeline(name, torch.device("cpu"), half=True)
    assert isinstance(pipe, family.pipeline_class())
    for part, network in family.networks(pipe).items():
        expected = torch.bfloat16 if family.loads_half and part != "vae" else torch.float32
        assert {parameter.dtype for parameter in network.parameters()} == {expected}, part
        assert not any(parameter.requires_grad for parameter in network.parameters())
    assert set(family.tokenizers) <= set(pipe.components)


def test_the_memory_benchmark_has_the_methods_of_the_family() -> None:
    assert set(memory.cases("sd15")) == set(memory.CASES)
    assert not any("inversion" in name for name in memory.cases("flux_dev"))
    for name in ("sdxl", "flux_dev"):
        for words, goal in memory.cases(name).values():
            assert goal is None
            assert memory.configured(words).model.resolution == 1024
