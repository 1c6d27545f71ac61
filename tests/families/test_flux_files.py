"""LoRA files of FLUX.1: diffusers' own and under kohya's names, read back by the plain pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.families.tiny_flux import FLUX, draw, flux, load, plain


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("flux")
    flux(place)
    return place


@pytest.fixture
def pipe(folder: Path) -> Any:
    return load(folder)


def adapted(pipe: Any, alpha: float = 6.0, **settings: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A random LoRA of rank 4 on the transformer and CLIP; its weights and settings as a file has them."""
    from peft import LoraConfig, get_peft_model_state_dict

    targets = settings.pop("targets", list(FLUX.lora_targets))
    weights: dict[str, Tensor] = {}
    told: dict[str, Any] = {}
    for part, names in (("transformer", targets), ("text_encoder", ["q_proj", "out_proj"])):
        network = getattr(pipe, part)
        network.add_adapter(LoraConfig(r=4, lora_alpha=alpha, target_modules=names, **settings))
        generator = torch.Generator().manual_seed(3)
        for name, parameter in network.named_parameters():
            if "lora_" in name and "magnitude" not in name:
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
        own = get_peft_model_state_dict(network)
        weights.update({f"{part}.{key}": value for key, value in own.items()})
        told.update({f"{part}.{k}": v for k, v in network.peft_config["default"].to_dict().items()})
    return weights, told


def saved(weights: Mapping[str, Tensor], settings: Mapping[str, Any], folder: Path) -> None:
    from diffusers import FluxPipeline

    layers, metadata = {}, {}
    for part in ("transformer", "text_encoder"):
        layers[f"{part}_lora_layers"] = {
            key.removeprefix(f"{part}."): value
            for key, value in weights.items()
            if key.startswith(f"{part}.")
        }
        metadata[f"{part}_lora_adapter_metadata"] = {
            key.removeprefix(f"{part}."): sorted(value) if isinstance(value, set) else value
            for key, value in settings.items()
            if key.startswith(f"{part}.")
        }
    FluxPipeline.save_lora_weights(folder, **layers, **metadata)


def test_a_lora_reloads_in_the_plain_pipeline(pipe: Any, folder: Path, tmp_path: Path) -> None:
    untouched = draw(pipe, (64, 64))
    weights, settings = adapted(pipe, targets=list(FLUX.small_lora_targets))
    expected = draw(pipe, (64, 64))
    saved(weights, settings, tmp_path)
    fresh = load(folder)
    fresh.load_lora_weights(tmp_path)
    assert float((expected - untouched).abs().max()) > 0.05
    torch.testing.assert_close(plain(fresh, (64, 64)), expected, rtol=0, atol=5e-6)


DOUBLE_ONLY = (
    "transformer_blocks.0",
    "transformer_blocks.1",
)  # as single-stream blocks of this width cannot be loaded


def double_layers() -> list[str]:
    """Layers of the double-stream blocks, and of the others the one that no other is fused with."""
    ends = [end for end in FLUX.lora_targets if end not in ("attn.to_k", "attn.to_v", "attn.add_q_proj")]
    names = [f"transformer_blocks.{block}.{end}" for block in range(2) for end in ends]
    return [*names, "transformer_blocks.1.attn.to_k", "single_transformer_blocks.1.proj_out"]


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}])
def test_kohyas_names_are_read_back_by_diffusers(
    settings: dict[str, Any], folder: Path, pipe: Any, tmp_path: Path
) -> None:
    """Fused queries, keys and values; some of them without a LoRA; alpha other than the rank; CLIP's too.

    diffusers takes the single-stream blocks' fused matrix apart by FLUX.1's own width: see the next test.
    """
    from safetensors.torch import save_file

    weights, told = adapted(pipe, targets=double_layers(), **settings)
    expected = draw(pipe, (64, 64))
    renamed = FLUX.kohya(weights, told)
    assert renamed is not None
    assert "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight" in renamed
    assert "lora_te1_text_model_encoder_layers_0_self_attn_q_proj.alpha" in renamed
    save_file(renamed, tmp_path / "lora.safetensors")
    fresh = load(folder)
    assert float((expected - draw(fresh, (64, 64))).abs().max()) > 0.05
    fresh.load_lora_weights(tmp_path / "lora.safetensors")
    torch.testing.assert_close(plain(fresh, (64, 64)), expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("with_mlp", [True, False])
def test_single_stream_blocks_at_full_width_through_diffusers_converter(with_mlp: bool) -> None:
    from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers

    generator = torch.Generator().manual_seed(0)
    block = "transformer.single_transformer_blocks.37"
    weights = {}
    rows = {"attn.to_q": 3072, "attn.to_k": 3072, "attn.to_v": 3072, "proj_mlp": 12288}
    if not with_mlp:
        del rows["proj_mlp"]
    for name, out in rows.items():
        weights[f"{block}.{name}.lora_A.weight"] = torch.randn(4, 3072, generator=generator)
        weights[f"{block}.{name}.lora_B.weight"] = torch.randn(out, 4, generator=generator)
    renamed = FLUX.kohya(weights, {"transformer.r": 4, "transformer.lora_alpha": 2.0})
    assert renamed is not None
    assert set(renamed) == {
        f"lora_unet_single_blocks_37_linear1.{end}" for end in ("lora_down.weight", "lora_up.weight", "alpha")
    }
    back = _convert_kohya_flux_lora_to_diffusers(dict(renamed))
    for name in rows:  # taken apart again: not one large LoRA for each, and the scale is in the downs
        for one, factor in (("A", 0.5), ("B", 1.0)):
            key = f"{block}.{name}.lora_{one}.weight"
            torch.testing.assert_close(back[key], factor * weights[key], rtol=0, atol=0)
    if not with_mlp:
        assert not back[f"{block}.proj_mlp.lora_B.weight"].any()


def test_every_linear_layer_has_a_name_and_an_exact_product(pipe: Any) -> None:
    """All of the transformer's linear layers, against a plain reading of kohya's matrices: (alpha / rank) up down."""
    linears = [name for name, m in pipe.transformer.named_modules() if isinstance(m, torch.nn.Linear)]
    assert len(linears) == 2 * 14 + 2 * 6 + 10
    weights, told = adapted(pipe, targets=linears)
    renamed = FLUX.kohya(weights, told)
    assert renamed is not None
    changes = {
        key.removesuffix(".alpha"): alpha / len(renamed[key.replace("alpha", "lora_down.weight")])
        * renamed[key.replace("alpha", "lora_up.weight")] @ renamed[key.replace("alpha", "lora_down.weight")]
        for key, alpha in renamed.items()
        if key.endswith(".alpha")
    }  # fmt: skip

    def change(layer: str) -> Tensor:
        up, down = (weights[f"transformer.{layer}.lora_{one}.weight"] for one in "BA")
        return 1.5 * up @ down

    def close(name: str, *layers: str) -> None:
        expected = torch.cat([change(layer) for layer in layers])
        torch.testing.assert_close(changes.pop(f"lora_unet_{name}"), expected, rtol=1e-5, atol=1e-5)

    for number in range(2):
        ours, theirs = f"single_transformer_blocks.{number}", f"single_blocks_{number}"
        close(
            f"{theirs}_linear1", *(f"{ours}.{n}" for n in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"))
        )
        close(f"{theirs}_linear2", f"{ours}.proj_out")
        close(f"{theirs}_modulation_lin", f"{ours}.norm.linear")
        ours, theirs = f"transformer_blocks.{number}", f"double_blocks_{number}"
        close(f"{theirs}_img_attn_qkv", *(f"{ours}.attn.to_{n}" for n in "qkv"))
        close(f"{theirs}_txt_attn_qkv", *(f"{ours}.attn.add_{n}_proj" for n in "qkv"))
        close(f"{theirs}_img_attn_proj", f"{ours}.attn.to_out.0")
        close(f"{theirs}_txt_attn_proj", f"{ours}.attn.to_add_out")
        for side, end in (("img", ""), ("txt", "_context")):
            close(f"{theirs}_{side}_mlp_0", f"{ours}.ff{end}.net.0.proj")
            close(f"{theirs}_{side}_mlp_2", f"{ours}.ff{end}.net.2")
            close(f"{theirs}_{side}_mod_lin", f"{ours}.norm1{end}.linear")
    for theirs, name in (("time_in", "timestep"), ("vector_in", "text"), ("guidance_in", "guidance")):
        close(f"{theirs}_in_layer", f"time_text_embed.{name}_embedder.linear_1")
        close(f"{theirs}_out_layer", f"time_text_embed.{name}_embedder.linear_2")
    close("img_in", "x_embedder")
    close("txt_in", "context_embedder")
    close("final_layer_linear", "proj_out")
    scale, shift = change("norm_out.linear").chunk(2)
    torch.testing.assert_close(
        changes.pop("lora_unet_final_layer_adaLN_modulation_1"), torch.cat([shift, scale])
    )
    assert all(name.startswith("lora_te1_") for name in changes)


def test_different_ranks_are_fused_exactly() -> None:
    """peft scales each layer with alpha / its own rank."""
    generator = torch.Generator().manual_seed(0)
    block, weights, expected = "transformer.transformer_blocks.0.attn", {}, []
    for name, rank in (("to_q", 2), ("to_k", 5), ("to_v", 3)):
        weights[f"{block}.{name}.lora_A.weight"] = torch.randn(rank, 8, generator=generator)
        weights[f"{block}.{name}.lora_B.weight"] = torch.randn(8, rank, generator=generator)
        up, down = (weights[f"{block}.{name}.lora_{one}.weight"] for one in "BA")
        expected.append(4 / rank * up @ down)
    renamed = FLUX.kohya(weights, {"transformer.r": 4, "transformer.lora_alpha": 4})
    assert renamed is not None
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    down, up = renamed[f"{name}.lora_down.weight"], renamed[f"{name}.lora_up.weight"]
    found = renamed[f"{name}.alpha"] / len(down) * up @ down
    torch.testing.assert_close(found, torch.cat(expected))


def test_dora_has_no_other_names(pipe: Any) -> None:
    weights, told = adapted(pipe, use_dora=True)
    assert FLUX.kohya(weights, told) is None
