"""FLUX.1 behind the Protocol, against diffusers' own pipeline and independent formulas."""

from __future__ import annotations

import importlib.util
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_lab import families
from diffusion_lab.families.family import Framing
from diffusion_lab.families.flux import Flux
from diffusion_lab.interfaces import UserError

_SPEC = importlib.util.spec_from_file_location("tiny_flux", Path(__file__).with_name("tiny_flux.py"))
assert _SPEC is not None
assert _SPEC.loader is not None
tiny_flux = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(tiny_flux)

FLUX = Flux()
TEXT = "a photo of sks dog"
DEV: dict[str, Any] = {  # transformer/config.json of FLUX.1 [dev], as published: axes_dims_rope is not in it
    "_class_name": "FluxTransformer2DModel", "attention_head_dim": 128, "guidance_embeds": True, "in_channels": 64,
    "joint_attention_dim": 4096, "num_attention_heads": 24, "num_layers": 19, "num_single_layers": 38,
    "patch_size": 1, "pooled_projection_dim": 768,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("flux")
    tiny_flux.flux(place)
    return place


@pytest.fixture
def pipe(folder: Path) -> Any:
    return tiny_flux.plain(folder)


def configs(folder: Path) -> dict[str, dict[str, Any]]:
    found = {part.parent.name: json.loads(part.read_text()) for part in folder.glob("*/config.json")}
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    return {**found, "scheduler": scheduler}


def noise(size: tuple[int, int], n: int = 1) -> Tensor:
    shape = (n, 16, size[0] // 8, size[1] // 8)
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


@torch.no_grad()
def draw(pipe: Any, size: tuple[int, int], text: str = TEXT, steps: int = 4, scale: float = 3.5) -> Tensor:
    """Through the family: [1, 3, h, w] in 0..1."""
    latents = noise(size).to(pipe.transformer.dtype)
    conditioning = {
        **FLUX.encode_prompts(pipe, [text]), **FLUX.sampling_extras(pipe, 1, size, scale)
    }  # fmt: skip
    solver = FLUX.solver(pipe, steps, size)
    for t in solver.timesteps:
        answer = FLUX.predict(pipe, latents, t, conditioning)
        latents = solver.step(answer, t, latents, return_dict=False)[0]
    return (FLUX.decode(pipe, latents) / 2 + 0.5).clamp(0, 1)


def plain(pipe: Any, size: tuple[int, int], text: str = TEXT, steps: int = 4, scale: float = 3.5) -> Tensor:
    """Through the pipeline itself, from the same noise."""
    packed = pipe._pack_latents(noise(size), 1, 16, size[0] // 8, size[1] // 8)
    found: Tensor = pipe(
        text, height=size[0], width=size[1], num_inference_steps=steps, guidance_scale=scale, latents=packed,
        output_type="pt",
    ).images  # fmt: skip
    return found


# --- facts ---


def test_the_registry_knows_it(pipe: Any) -> None:
    assert families.of(pipe).name == "flux"


def test_networks_are_of_the_named_classes(pipe: Any) -> None:
    networks, classes = FLUX.networks(pipe), FLUX.part_classes()
    assert list(networks) == list(classes) == ["transformer", "vae", "text_encoder", "text_encoder_2"]
    assert all(type(networks[part]) is classes[part] for part in classes)
    assert type(pipe) is FLUX.pipeline_class()


def test_supported_configs(folder: Path) -> None:
    assert FLUX.check_configs(configs(folder)) is None
    assert FLUX.check_configs({"transformer": DEV}) is None


@pytest.mark.parametrize(
    ("part", "change", "reason"),
    [
        ("transformer", {"in_channels": 384, "out_channels": 64}, "384 channels.*64: FLUX.1 Fill"),
        ("transformer", {"in_channels": 128, "out_channels": 64}, "128 channels.*Canny and Depth"),
        ("transformer", {"guidance_embeds": False}, r"schnell.*use FLUX.1 \[dev\]"),
        ("transformer", {"patch_size": 2}, "patch_size=2"),
        ("transformer", {"_class_name": "Flux2Transformer2DModel"}, "Flux2Transformer2DModel"),
        ("text_encoder", {"hidden_size": 64}, "text_encoder is 64 wide.*reads 32"),
        ("text_encoder_2", {"d_model": 64}, "text_encoder_2 is 64 wide.*reads 40"),
        ("scheduler", {"_class_name": "DDIMScheduler"}, "DDIMScheduler"),
    ],
)
def test_other_models_are_refused_with_a_reason(
    part: str, change: dict[str, Any], reason: str, folder: Path
) -> None:
    found = configs(folder)
    found[part] = {**found[part], **change}
    assert re.search(reason, FLUX.check_configs(found) or "")


def test_sizes(pipe: Any, folder: Path) -> None:
    assert FLUX.resolution(configs(folder)) == 64
    assert FLUX.multiple(configs(folder)) == 16
    assert FLUX.latent_shape(pipe, None) == (16, 8, 8)
    assert FLUX.latent_shape(pipe, (48, 80)) == (16, 6, 10)
    with pytest.raises(UserError, match="model.resolution is 72: .* multiple of 16"):
        FLUX.latent_shape(pipe, (72, 64))
    with pytest.raises(KeyError):
        FLUX.resolution({"transformer": DEV})


def test_published_numbers_of_parameters() -> None:
    from diffusers import AutoencoderKL, FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    with torch.device("meta"):
        models = {
            "transformer": FluxTransformer2DModel.from_config(DEV),
            "vae": AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=16, use_quant_conv=False,
                use_post_quant_conv=False,
            ),
            "text_encoder": CLIPTextModel(
                CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12)
            ),
            "text_encoder_2": T5EncoderModel(
                T5Config(
                    vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
                    feed_forward_proj="gated-gelu",
                )
            ),
        }  # fmt: skip
    found = {part: sum(p.numel() for p in model.parameters()) for part, model in models.items()}
    assert found == FLUX.parameters


@pytest.mark.parametrize("config", ["tiny", "dev"])
def test_work_against_counted_operations(config: str, folder: Path) -> None:
    from diffusers import FluxTransformer2DModel
    from peft import LoraConfig
    from torch.utils.flop_counter import FlopCounterMode

    side = {"tiny": 6, "dev": 128}[config]
    settings = configs(folder)["transformer"] if config == "tiny" else DEV
    with torch.device("meta"):
        model = FluxTransformer2DModel.from_config(settings)
        tokens = (side // 2) ** 2
        given = (
            torch.zeros(1, tokens, 64), torch.zeros(1, 512, settings["joint_attention_dim"]),
            torch.zeros(1, settings["pooled_projection_dim"]), torch.zeros(1), torch.zeros(tokens, 3),
            torch.zeros(512, 3), torch.zeros(1),
        )  # fmt: skip
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(*given)
        model.add_adapter(LoraConfig(r=1, target_modules=list(FLUX.lora_targets)))
    work = FLUX.work({"transformer": settings}, side)
    assert work.tflop == pytest.approx(counter.get_total_flops() / 1e12, rel=1e-9)
    assert work.adapted == sum(p.numel() for p in model.parameters() if p.requires_grad)
    width = model.inner_dim
    blocks = len(model.transformer_blocks) + len(model.single_transformer_blocks)
    assert work.positions == blocks * (512 + tokens)
    assert work.transformer == work.positions * width
    assert work.residual == 0


def test_targets_name_layers(pipe: Any) -> None:
    names = [name for name, _ in pipe.transformer.named_modules()]
    for target in FLUX.small_lora_targets:
        assert any(name.endswith(f".{target}") for name in names), target


# --- texts ---


def test_encoding_tokens_equals_encoding_prompts(pipe: Any) -> None:
    tokens = FLUX.tokenize(pipe, TEXT)
    assert {part: tuple(ids.shape) for part, ids in tokens.items()} == {
        "tokenizer": (1, 77),
        "tokenizer_2": (1, 512),
    }
    with torch.no_grad():
        found, expected = FLUX.encode(pipe, tokens), FLUX.encode_prompts(pipe, [TEXT])
    assert set(found) == set(expected) == {"hidden", "pooled"}
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0)


def test_a_text_longer_than_clips_limit_is_read_by_t5(pipe: Any) -> None:
    text = " ".join(["red castle"] * 60)
    assert len(pipe.tokenizer(text).input_ids) > 77
    tokens = FLUX.tokenize(pipe, text)
    assert int(tokens["tokenizer"][0, -1]) == pipe.tokenizer.eos_token_id
    with torch.no_grad():
        found, expected = FLUX.encode(pipe, tokens), FLUX.encode_prompts(pipe, [text])
    torch.testing.assert_close(found["pooled"], expected["pooled"], rtol=0, atol=0)
    torch.testing.assert_close(found["hidden"], expected["hidden"], rtol=0, atol=0)


def test_a_text_too_long_for_t5_is_refused(pipe: Any) -> None:
    with pytest.raises(ValueError, match="601 tokens, .* reads 512"):
        FLUX.tokenize(pipe, " ".join(["red"] * 600))


def test_gradients_reach_clip_through_the_transformer(pipe: Any) -> None:
    for network in FLUX.networks(pipe).values():
        network.requires_grad_(False)
    layer = pipe.text_encoder.get_submodule("encoder.layers.0.self_attn.q_proj")
    layer.weight.requires_grad_(True)
    conditioning = {**FLUX.encode(pipe, FLUX.tokenize(pipe, TEXT)), **FLUX.training_extras(pipe, [FRAMING])}
    answer = FLUX.predict(pipe, noise((64, 64)), torch.tensor([500.0]), conditioning)
    answer.square().mean().backward()  # type: ignore[no-untyped-call]
    assert float(layer.weight.grad.abs().sum()) > 0


# --- images, denoising ---

FRAMING = Framing((64, 64), (0, 0), (64, 64))


@pytest.mark.parametrize("size", [(64, 64), (48, 80)])
@pytest.mark.parametrize("scale", [3.5, 1.0])
def test_images_are_those_of_the_plain_pipeline(size: tuple[int, int], scale: float, pipe: Any) -> None:
    found, expected = draw(pipe, size, scale=scale), plain(pipe, size, scale=scale)
    assert found.shape == expected.shape == (1, 3, *size)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


def test_images_in_half_precision_are_those_of_the_plain_pipeline(pipe: Any) -> None:
    pipe.to(torch.bfloat16)
    found, expected = draw(pipe, (64, 64)), plain(pipe, (64, 64))
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=2**-8)


def test_images_depend_on_text_and_guidance(pipe: Any) -> None:
    first = draw(pipe, (64, 64))
    assert float((first - draw(pipe, (64, 64), text="the red castle")).abs().max()) > 1e-4
    assert float((first - draw(pipe, (64, 64), scale=1.0)).abs().max()) > 1e-4


def test_every_picture_of_a_batch_has_its_own_timestep_and_text(pipe: Any) -> None:
    noisy, timesteps = noise((48, 64), 2), torch.tensor([200.0, 900.0])
    texts = [TEXT, "the red castle"]
    with torch.no_grad():
        both = {**FLUX.encode_prompts(pipe, texts), **FLUX.training_extras(pipe, [FRAMING] * 2)}
        found = FLUX.predict(pipe, noisy, timesteps, both)
        for row in range(2):
            own = {name: value[row : row + 1] for name, value in both.items()}
            alone = FLUX.predict(pipe, noisy[row : row + 1], timesteps[row], own)
            torch.testing.assert_close(found[row : row + 1], alone, rtol=0, atol=1e-5)


def test_latents_of_pictures(pipe: Any) -> None:
    pixels = torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, logvar = FLUX.posterior(pipe, pixels)
    with torch.no_grad():
        expected = pipe.vae.encode(pixels).latent_dist
    torch.testing.assert_close(mean, expected.mean, rtol=0, atol=0)
    torch.testing.assert_close(logvar, expected.logvar, rtol=0, atol=0)
    assert mean.shape == (2, *FLUX.latent_shape(pipe, (48, 64)))
    assert FLUX.factors(pipe) == (0.3611, 0.1159)


def test_guidance_is_one_in_training_and_as_given_in_sampling(pipe: Any) -> None:
    assert FLUX.training_extras(pipe, [FRAMING] * 3)["guidance"].tolist() == [1.0] * 3
    assert FLUX.sampling_extras(pipe, 2, (64, 64), 3.5)["guidance"].tolist() == [3.5] * 2


@pytest.mark.parametrize(("size", "mu"), [((256, 256), 0.5), ((1024, 1024), 1.15), ((512, 768), 0.71667)])
def test_training_times_are_a_shifted_logit_normal(size: tuple[int, int], mu: float, pipe: Any) -> None:
    """logit(level) is normal around mu, since the shift by exp(mu) adds mu to a logit.

    mu grows with the number of tokens, from 0.5 at 256 to 1.15 at 4096.
    """
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    process = FLUX.process(pipe, size)
    assert calculate_shift(size[0] * size[1] // 256) == pytest.approx(mu, abs=1e-4)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([process.draw(generator) for _ in range(4000)]) / 1000
    assert 0 < float(drawn.min()) < float(drawn.max()) < 1
    logits = torch.logit(drawn.double())
    assert float(logits.mean()) == pytest.approx(mu, abs=4 / math.sqrt(4000))
    assert float(logits.std()) == pytest.approx(1.0, abs=0.05)


def test_the_process_is_a_straight_path(pipe: Any) -> None:
    process = FLUX.process(pipe, (64, 64))
    latents, other = noise((64, 64)), torch.flip(noise((64, 64)), (-1,))
    t = torch.tensor([300.0])
    torch.testing.assert_close(process.add_noise(latents, other, t), 0.7 * latents + 0.3 * other)
    torch.testing.assert_close(process.target(latents, other, t), other - latents)


@pytest.mark.parametrize("steps", [1, 4, 28])
def test_sampling_levels_are_the_shifted_ones(steps: int, pipe: Any) -> None:
    size = (512, 768)
    mu = 0.5 + (512 * 768 / 256 - 256) * 0.65 / 3840
    levels = [1 - i / steps for i in range(steps)]
    expected = [math.exp(mu) / (math.exp(mu) + 1 / level - 1) * 1000 for level in levels]
    found = FLUX.solver(pipe, steps, size)
    assert found.timesteps.tolist() == pytest.approx(expected, rel=1e-6)
    assert found is not pipe.scheduler


# --- files ---


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
    fresh = tiny_flux.plain(folder)
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
    fresh = tiny_flux.plain(folder)
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
    for name in rows:
        down, up = (back[f"{block}.{name}.lora_{one}.weight"] for one in "AB")
        own_down, own_up = (weights[f"{block}.{name}.lora_{one}.weight"] for one in "AB")
        assert len(down) == 4  # taken apart again, not one large LoRA for each
        torch.testing.assert_close(up @ down, 0.5 * own_up @ own_down, rtol=1e-5, atol=1e-4)
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
