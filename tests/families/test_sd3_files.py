"""Stable Diffusion 3's LoRA in files: plain diffusers and other tools read the same adapter."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from diffusion_lab.families.family import Family
from diffusion_lab.families.sd3 import StableDiffusion3
from tests.families import tiny_sd3
from tests.families.tiny_sd3 import plain

FAMILY: Family = StableDiffusion3()
CLIPS = ("text_encoder", "text_encoder_2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With T5 and the second attention. Read only."""
    where = tmp_path_factory.mktemp("tiny_sd3") / "full"
    tiny_sd3.sd3(where)
    return where


@pytest.fixture(scope="module")
def bare_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without T5 and without the second attention. Read only."""
    where = tmp_path_factory.mktemp("tiny_sd3") / "bare"
    tiny_sd3.sd3(where, t5=False, dual=False)
    return where


@pytest.fixture(params=["full", "bare"])
def pipe(request: pytest.FixtureRequest, folder: Path, bare_folder: Path) -> Any:
    return tiny_sd3.load(folder if request.param == "full" else bare_folder)


@pytest.fixture
def full(folder: Path) -> Any:
    return tiny_sd3.load(folder)


def adapted(pipe: Any, targets: tuple[str, ...], rank: int = 2, alpha: float = 6.0) -> dict[str, Any]:
    """Puts a LoRA that is not zero beside the transformer and the CLIPs; what diffusers' file is made of."""
    from peft import LoraConfig, get_peft_model_state_dict

    layers: dict[str, Any] = {}
    torch.manual_seed(0)
    text = ("q_proj", "k_proj", "v_proj", "out_proj")
    for part, names in (("transformer", targets), *((part, text) for part in FAMILY.lora_text_encoders)):
        network = getattr(pipe, part)
        network.add_adapter(
            LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(names), init_lora_weights=False)
        )
        layers[f"{part}_lora_layers"] = get_peft_model_state_dict(network)
        settings = network.peft_config["default"].to_dict()
        layers[f"{part}_lora_adapter_metadata"] = {
            key: sorted(value) if isinstance(value, set) else value for key, value in settings.items()
        }
    return layers


@pytest.mark.parametrize("targets", ["lora_targets", "small_lora_targets"])
def test_a_lora_is_read_by_plain_diffusers(pipe: Any, targets: str, tmp_path: Path) -> None:
    """Layers' names and an alpha that is not the rank survive, in a model with and without the second attention."""
    fresh, other = _fresh(pipe), _fresh(pipe)
    untouched = plain(pipe)
    layers = adapted(pipe, getattr(FAMILY, targets))
    named = {key.rsplit(".lora_", 1)[0] for key in layers["transformer_lora_layers"]}
    assert any(".ff.net." in name for name in named) == (targets == "small_lora_targets")
    assert any(".attn2." in name for name in named) == bool(pipe.transformer.config.dual_attention_layers)
    changed = plain(pipe)
    assert (changed - untouched).abs().max() > 0.05
    StableDiffusion3Pipeline.save_lora_weights(tmp_path / "with", **layers)
    fresh.load_lora_weights(tmp_path / "with")
    torch.testing.assert_close(plain(fresh), changed, rtol=1e-4, atol=1e-4)
    assert {key.rsplit(".lora_", 1)[0] for key in _state(fresh.transformer)} == named
    # diffusers takes alpha = rank where the header does not tell: the settings have to be in it.
    weights = {key: value for key, value in layers.items() if key.endswith("_layers")}
    StableDiffusion3Pipeline.save_lora_weights(tmp_path / "without", **weights)
    other.load_lora_weights(tmp_path / "without")
    assert (plain(other) - changed).abs().max() > 0.05


def _fresh(pipe: Any) -> Any:
    """A plain pipeline with copies of the networks that an adapter changes."""
    networks = {part: copy.deepcopy(getattr(pipe, part)) for part in ("transformer", *CLIPS)}
    found = StableDiffusion3Pipeline(**pipe.components | networks)
    found.set_progress_bar_config(disable=True)
    return found


def _state(network: Any) -> dict[str, torch.Tensor]:
    from peft import get_peft_model_state_dict

    found: dict[str, torch.Tensor] = get_peft_model_state_dict(network, adapter_name="default_0")
    return found


def test_other_tools_names_give_the_same_image(full: Any) -> None:
    """Merged by ComfyUI's rule: weight + alpha / rank * up @ down, keys looked up layer by layer."""
    merged = _fresh(full)
    layers = adapted(full, FAMILY.small_lora_targets)
    changed = plain(full)
    parts = ("transformer", *CLIPS)
    weights = {f"{part}.{k}": v for part in parts for k, v in layers[f"{part}_lora_layers"].items()}
    settings = {
        f"{part}.{k}": v for part in parts for k, v in layers[f"{part}_lora_adapter_metadata"].items()
    }
    file = FAMILY.kohya(weights, settings)
    assert file is not None
    assert len(file) == len(weights) * 3 // 2
    assert "lora_transformer_transformer_blocks_0_attn2_to_out_0.alpha" in file
    assert "lora_te2_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight" in file
    used = 0
    prefixes = {"transformer": "lora_transformer", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
    for part in parts:
        for name, module in getattr(merged, part).named_modules():
            key = f"{prefixes[part]}_{name.replace('.', '_')}"
            if f"{key}.lora_up.weight" in file:
                up, down = file[f"{key}.lora_up.weight"], file[f"{key}.lora_down.weight"]
                module.weight.data += file[f"{key}.alpha"] / len(down) * up @ down
                used += 3
    assert used == len(file)
    torch.testing.assert_close(plain(merged), changed, rtol=1e-4, atol=1e-4)


def test_dora_has_no_file_for_other_tools() -> None:
    layer = "transformer.transformer_blocks.0.attn.to_q"
    weights = {f"{layer}.lora_A.weight": torch.ones(2, 8), f"{layer}.lora_magnitude_vector": torch.ones(8)}
    settings = {"transformer.r": 2, "transformer.lora_alpha": 2, "transformer.use_dora": True}
    assert FAMILY.kohya(weights, settings) is None
