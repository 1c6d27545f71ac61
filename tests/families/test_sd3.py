"""Stable Diffusion 3 at toy size: the family against plain diffusers, its figures against torch's own counting."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch.utils.flop_counter import FlopCounterMode

from diffusion_lab.families.family import Family, Framing
from diffusion_lab.families.sd3 import FEED_FORWARD, StableDiffusion3
from diffusion_lab.interfaces import UserError
from tests.families import tiny_sd3

FAMILY: Family = StableDiffusion3()
SIZE = (64, 64)
STEPS, GUIDANCE = 4, 5.0
DOG, MAN = "a photo of a dog in the snow", "the man"
CLIPS = ("text_encoder", "text_encoder_2")

# The published configs (config.json of the transformers of SD 3.5 medium and large).
MEDIUM: dict[str, Any] = {
    "sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 24,
    "attention_head_dim": 64, "num_attention_heads": 24, "joint_attention_dim": 4096, "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048, "pos_embed_max_size": 384, "dual_attention_layers": tuple(range(13)),
    "qk_norm": "rms_norm",
}  # fmt: skip
LARGE: dict[str, Any] = {
    **MEDIUM, "num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "pos_embed_max_size": 192,
    "dual_attention_layers": (),
}  # fmt: skip


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


def noise(n: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 16, 16, 16, generator=torch.Generator().manual_seed(seed))


def plain(pipe: Any, text: str = DOG, **more: Any) -> torch.Tensor:
    """Latents of the plain pipeline."""
    found: torch.Tensor = pipe(
        text,
        latents=noise(),
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        output_type="latent",
        **more,
    ).images
    return found


@torch.no_grad()
def drawn(pipe: Any, text: str = DOG, negative: str = "") -> torch.Tensor:
    """Latents through the family alone, with classifier-free guidance."""
    conditional, unconditional = FAMILY.encode_prompts(pipe, [text]), FAMILY.encode_negative(pipe, negative)
    extras = FAMILY.sampling_extras(pipe, 2, SIZE, GUIDANCE)
    both = {key: torch.cat([unconditional[key], conditional[key]]) for key in conditional} | dict(extras)
    scheduler = FAMILY.solver(pipe, STEPS, SIZE)
    latents = noise()
    for t in scheduler.timesteps:
        without, with_text = FAMILY.predict(pipe, torch.cat([latents, latents]), t, both).chunk(2)
        latents = scheduler.step(without + GUIDANCE * (with_text - without), t, latents, return_dict=False)[0]
    return latents


# --- images --------------------------------------------------------------------------------------------


def test_the_image_is_that_of_the_plain_pipeline(pipe: Any) -> None:
    own = drawn(pipe)
    torch.testing.assert_close(own, plain(pipe), rtol=1e-5, atol=1e-5)
    assert (own - plain(pipe, MAN)).abs().max() > 0.1
    image = pipe(
        DOG, latents=noise(), num_inference_steps=STEPS, guidance_scale=GUIDANCE, output_type="pt"
    ).images
    with torch.no_grad():
        pixels = FAMILY.decode(pipe, own)
    assert pixels.dtype == torch.float32
    torch.testing.assert_close((pixels / 2 + 0.5).clamp(0, 1), image, rtol=1e-4, atol=1e-4)


def test_a_negative_prompt_is_that_of_the_plain_pipeline(full: Any) -> None:
    own = drawn(full, negative=MAN)
    torch.testing.assert_close(own, plain(full, negative_prompt=MAN), rtol=1e-5, atol=1e-5)
    assert (own - plain(full)).abs().max() > 0.05


def test_dynamic_shifting_is_that_of_the_plain_pipeline(full: Any) -> None:
    """As the scheduler of FLUX.1: the shift depends on the number of patches."""
    before = plain(full)
    config = dict(
        full.scheduler.config, use_dynamic_shifting=True, base_image_seq_len=16, max_image_seq_len=256
    )
    full.scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
    torch.testing.assert_close(drawn(full), plain(full), rtol=1e-5, atol=1e-5)
    assert (drawn(full) - before).abs().max() > 0.01


def test_the_denoiser_is_told_the_timesteps_that_the_pipeline_passes(full: Any) -> None:
    """In 0..1000, as floats: training's own are in the same unit."""
    seen: list[torch.Tensor] = []
    handle = full.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["timestep"].clone()), with_kwargs=True
    )
    plain(full)
    pipelines = torch.stack(seen)
    seen.clear()
    drawn(full)
    handle.remove()
    assert torch.equal(torch.stack(seen), pipelines)
    assert pipelines[0, 0] == 1000
    assert pipelines.dtype == torch.float32
    process = FAMILY.process(full, SIZE)
    generator = torch.Generator().manual_seed(0)
    training = torch.cat([process.draw(generator) for _ in range(500)])
    assert 0 < training.min() < 250
    assert 950 < training.max() < 1000
    # Noise of a timestep is as strong as the scheduler's sigma there.
    scheduler = FAMILY.solver(full, STEPS, SIZE)
    zeros, ones = torch.zeros(STEPS, 1, 1, 1), torch.ones(STEPS, 1, 1, 1)
    sigmas = process.add_noise(zeros, ones, scheduler.timesteps).flatten()
    torch.testing.assert_close(sigmas, scheduler.sigmas[:-1])


def test_the_solver_leaves_the_pipelines_scheduler_alone(full: Any) -> None:
    before = full.scheduler.timesteps.clone()
    assert FAMILY.solver(full, 3, SIZE) is not full.scheduler
    assert torch.equal(full.scheduler.timesteps, before)
    assert FAMILY.process(full, SIZE).shift == 3.0  # type: ignore[attr-defined]


# --- texts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [DOG, "", "snow " * 90])
def test_one_text_is_encoded_as_the_pipeline_does(pipe: Any, text: str) -> None:
    if pipe.text_encoder_3 is None and len(text) > 77:
        text = text[:200]
    tokens = FAMILY.tokenize(pipe, text)
    assert all(ids.shape[0] == 1 and ids.dtype == torch.int64 for ids in tokens.values())
    with torch.no_grad():
        own, pipelines = FAMILY.encode(pipe, tokens), FAMILY.encode_prompts(pipe, [text])
    assert own.keys() == pipelines.keys()
    for key in own:
        torch.testing.assert_close(own[key], pipelines[key], rtol=0, atol=0)
    assert own["hidden"].shape == (1, 77 + 256, tiny_sd3.TEXT_WIDTH)
    assert own["pooled"].shape == (1, tiny_sd3.FIRST_POOLED + tiny_sd3.SECOND_POOLED)


def test_texts_keep_their_order_and_negatives_are_one(full: Any) -> None:
    with torch.no_grad():
        both, second = FAMILY.encode_prompts(full, [DOG, MAN]), FAMILY.encode_negative(full, MAN)
    for key in both:
        torch.testing.assert_close(both[key][1:], second[key])
        assert not torch.allclose(both[key][:1], second[key])


def test_a_text_too_long_is_refused_with_both_lengths(folder: Path, bare_folder: Path) -> None:
    """The limit is T5's where it is there, and CLIP's where it is not."""
    full, bare = tiny_sd3.load(folder), tiny_sd3.load(bare_folder)
    text = "snow " * 80
    assert FAMILY.tokenize(full, text)["tokenizer"].shape == (1, 77)
    with pytest.raises(ValueError, match="has 82 tokens, the model reads 77"):
        FAMILY.tokenize(bare, text)
    given = len(full.tokenizer_3(text * 4).input_ids)
    assert given > 256
    with pytest.raises(ValueError, match=f"has {given} tokens, the model reads 256"):
        FAMILY.tokenize(full, text * 4)


def test_gradients_reach_the_text_encoders_that_train(full: Any) -> None:
    """T5 is frozen by whoever trains, as every network that does not train."""
    full.text_encoder_3.requires_grad_(False)
    conditioning = FAMILY.encode(full, FAMILY.tokenize(full, DOG))
    FAMILY.predict(full, noise(), torch.tensor([500.0]), conditioning).square().mean().backward()
    for part in CLIPS:
        encoder = getattr(full, part)
        for name in ("encoder.layers.0.self_attn.q_proj.weight", "encoder.layers.2.mlp.fc2.weight"):
            gradient = encoder.get_parameter(f"text_model.{name}").grad
            assert gradient is not None
            assert gradient.abs().max() > 0
    assert all(parameter.grad is None for parameter in full.text_encoder_3.parameters())
    assert FAMILY.lora_text_encoders == CLIPS


# --- pictures ------------------------------------------------------------------------------------------


def test_latents_are_scaled_and_shifted_as_in_the_training_script(full: Any) -> None:
    """train_dreambooth_lora_sd3.py: model_input = (vae.encode(x).sample() - shift_factor) * scaling_factor."""
    pixels = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        mean, logvar = FAMILY.posterior(full, pixels)
        distribution = full.vae.encode(pixels).latent_dist
        torch.testing.assert_close(mean, distribution.mean)
        torch.testing.assert_close(logvar, distribution.logvar)
        scale, shift = FAMILY.factors(full)
        assert (scale, shift) == (0.75, 0.25)
        # There and back: what is decoded is what the VAE makes of the unscaled mean.
        torch.testing.assert_close(FAMILY.decode(full, (mean - shift) * scale), full.vae.decode(mean).sample)
    assert mean.shape == (2, *FAMILY.latent_shape(full, SIZE))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_vae_gives_float32(full: Any, dtype: torch.dtype) -> None:
    latents = noise()
    with torch.no_grad():
        exact = FAMILY.decode(full, latents)
        full.vae.to(dtype)
        half = FAMILY.decode(full, latents)
        moments = FAMILY.posterior(full, torch.zeros(1, 3, 64, 64))
    assert half.dtype == torch.float32
    assert all(moment.dtype == torch.float32 for moment in moments)
    torch.testing.assert_close(half, exact, rtol=0.1, atol=0.1)


def test_sizes(full: Any) -> None:
    configs = {"transformer": dict(full.transformer.config), "vae": dict(full.vae.config)}
    assert FAMILY.resolution(configs) == 64
    assert FAMILY.multiple(configs) == 8
    assert FAMILY.latent_shape(full, None) == (16, 16, 16)
    assert FAMILY.latent_shape(full, (64, 96)) == (16, 16, 24)
    for size in ((64, 68), (0, 64), (64, 24 * 8 + 8)):  # no multiple, none, more than the positions it knows
        with pytest.raises(
            UserError, match=r"model\.resolution is \d+: .* multiple of 8 pixels, at most 192"
        ):
            FAMILY.latent_shape(full, size)
    with torch.no_grad():
        conditioning = FAMILY.encode_prompts(full, [DOG])
        wide = FAMILY.predict(full, torch.zeros(1, 16, 16, 24), torch.tensor([3.0]), conditioning)
    assert wide.shape == (1, 16, 16, 24)
    assert FAMILY.training_extras(full, [Framing((64, 64), (0, 0), (64, 64))]) == {}


def test_half_precision_prediction(full: Any) -> None:
    """Cached texts in float32 are read by a transformer in half precision."""
    with torch.no_grad():
        conditioning = FAMILY.encode_prompts(full, [DOG])
        exact = FAMILY.predict(full, noise(), torch.tensor(500.0), conditioning)
        full.transformer.to(torch.bfloat16)
        half = FAMILY.predict(full, noise().bfloat16(), torch.tensor(500.0), conditioning)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, rtol=0.1, atol=0.1)


# --- adapters ------------------------------------------------------------------------------------------


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
    fresh = StableDiffusion3Pipeline(**pipe.components | {"transformer": _copy(pipe.transformer)} | {
        part: _copy(getattr(pipe, part)) for part in CLIPS
    })  # fmt: skip
    other = StableDiffusion3Pipeline(**fresh.components | {"transformer": _copy(pipe.transformer)} | {
        part: _copy(getattr(pipe, part)) for part in CLIPS
    })  # fmt: skip
    untouched = plain(pipe)
    layers = adapted(pipe, getattr(FAMILY, targets))
    named = {key.rsplit(".lora_", 1)[0] for key in layers["transformer_lora_layers"]}
    assert any(".ff.net." in name for name in named) == (targets == "small_lora_targets")
    assert any(".attn2." in name for name in named) == bool(pipe.transformer.config.dual_attention_layers)
    changed = plain(pipe)
    assert (changed - untouched).abs().max() > 0.05
    StableDiffusion3Pipeline.save_lora_weights(tmp_path / "with", **layers)
    fresh.set_progress_bar_config(disable=True)
    fresh.load_lora_weights(tmp_path / "with")
    torch.testing.assert_close(plain(fresh), changed, rtol=1e-4, atol=1e-4)
    assert {key.rsplit(".lora_", 1)[0] for key in _state(fresh.transformer)} == named
    # diffusers takes alpha = rank where the header does not tell: the settings have to be in it.
    weights = {key: value for key, value in layers.items() if key.endswith("_layers")}
    StableDiffusion3Pipeline.save_lora_weights(tmp_path / "without", **weights)
    other.set_progress_bar_config(disable=True)
    other.load_lora_weights(tmp_path / "without")
    assert (plain(other) - changed).abs().max() > 0.05


def _copy(network: Any) -> Any:
    import copy

    return copy.deepcopy(network)


def _state(network: Any) -> dict[str, torch.Tensor]:
    from peft import get_peft_model_state_dict

    found: dict[str, torch.Tensor] = get_peft_model_state_dict(network, adapter_name="default_0")
    return found


def test_other_tools_names_give_the_same_image(full: Any) -> None:
    """Merged by ComfyUI's rule: weight + alpha / rank * up @ down, keys looked up layer by layer."""
    fresh = {part: _copy(getattr(full, part)) for part in ("transformer", *CLIPS)}
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
    for part, network in fresh.items():
        for name, module in network.named_modules():
            key = f"{prefixes[part]}_{name.replace('.', '_')}"
            if f"{key}.lora_up.weight" in file:
                up, down = file[f"{key}.lora_up.weight"], file[f"{key}.lora_down.weight"]
                module.weight.data += file[f"{key}.alpha"] / len(down) * up @ down
                used += 3
    assert used == len(file)
    merged = StableDiffusion3Pipeline(**full.components | fresh)
    merged.set_progress_bar_config(disable=True)
    torch.testing.assert_close(plain(merged), changed, rtol=1e-4, atol=1e-4)


def test_dora_has_no_file_for_other_tools() -> None:
    layer = "transformer.transformer_blocks.0.attn.to_q"
    weights = {f"{layer}.lora_A.weight": torch.ones(2, 8), f"{layer}.lora_magnitude_vector": torch.ones(8)}
    settings = {"transformer.r": 2, "transformer.lora_alpha": 2, "transformer.use_dora": True}
    assert FAMILY.kohya(weights, settings) is None


# --- figures -------------------------------------------------------------------------------------------


def on_meta(config: dict[str, Any]) -> Any:
    with torch.device("meta"):
        return SD3Transformer2DModel(**config)


@pytest.mark.parametrize(
    ("config", "side"),
    [
        (tiny_sd3.TRANSFORMER, 16),
        ({**tiny_sd3.TRANSFORMER, "dual_attention_layers": (), "num_layers": 1, "qk_norm": None}, 8),
        (MEDIUM, 128),
        (LARGE, 64),
    ],
)
def test_work_is_what_torch_counts(config: dict[str, Any], side: int) -> None:
    network = on_meta(config)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network(
            torch.empty(1, 16, side, side),
            torch.empty(1, 77 + 256, config["joint_attention_dim"]),
            torch.empty(1, config["pooled_projection_dim"]),
            torch.empty(1),
        )
    work = FAMILY.work({"transformer": config}, side)
    assert work.tflop == pytest.approx(counter.get_total_flops() / 1e12, rel=1e-9)
    both = (side // 2) ** 2 + 77 + 256
    width = config["num_attention_heads"] * config["attention_head_dim"]
    assert work.positions == config["num_layers"] * both
    assert work.transformer == config["num_layers"] * both * width
    assert work.residual == 0


@pytest.mark.parametrize("config", [tiny_sd3.TRANSFORMER, MEDIUM, LARGE])
def test_adapted_is_what_peft_adds_at_rank_1(config: dict[str, Any]) -> None:
    from peft import LoraConfig

    network = on_meta(config)
    network.requires_grad_(False)
    network.add_adapter(LoraConfig(r=1, target_modules=list(FAMILY.lora_targets)))
    added = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    assert FAMILY.work({"transformer": config}, 128).adapted == added


def test_default_targets_are_those_of_the_training_script_and_the_second_attention() -> None:
    script = {
        "attn.add_k_proj", "attn.add_q_proj", "attn.add_v_proj", "attn.to_add_out", "attn.to_k", "attn.to_out.0",
        "attn.to_q", "attn.to_v",
    }  # fmt: skip
    second = {f"attn2.{layer}" for layer in ("to_q", "to_k", "to_v", "to_out.0")}
    assert set(FAMILY.lora_targets) == script | second
    assert set(FAMILY.small_lora_targets) == script | second | set(FEED_FORWARD)
    layers = [name for name, _ in on_meta(tiny_sd3.TRANSFORMER).named_modules()]
    for target in FAMILY.small_lora_targets:
        assert any(name.endswith(f".{target}") for name in layers), target


def published() -> dict[str, Callable[[], Any]]:
    """Every network of SD 3.5 medium from its config."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, T5Config

    classes = FAMILY.part_classes()

    def clip(part: str, width: int, layers: int, heads: int) -> Any:
        return classes[part](
            CLIPTextConfig(
                hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=heads,
                projection_dim=width, vocab_size=49408,
            )
        )  # fmt: skip

    return {
        "transformer": lambda: classes["transformer"](**MEDIUM),
        "vae": lambda: AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=16,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        "text_encoder": lambda: clip("text_encoder", 768, 12, 12),
        "text_encoder_2": lambda: clip("text_encoder_2", 1280, 32, 20),
        "text_encoder_3": lambda: classes["text_encoder_3"](
            T5Config(
                vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
                feed_forward_proj="gated-gelu", tie_word_embeddings=False,
            )
        ),
    }  # fmt: skip


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"])
def test_parameters_are_those_of_the_published_networks(part: str) -> None:
    with torch.device("meta"):
        network = published()[part]()
    kept = sum(buffer.numel() for name, buffer in network.named_buffers() if name in network.state_dict())
    assert FAMILY.parameters[part] == sum(p.numel() for p in network.parameters()) + kept
    if part == "transformer":
        assert sum(p.numel() for p in network.parameters()) == 2_243_171_520


# --- which models --------------------------------------------------------------------------------------


def configs_of(pipe: Any) -> dict[str, dict[str, Any]]:
    found = {name: dict(getattr(pipe, name).config) for name in ("transformer", "vae", "scheduler")}
    encoders = (name for name in FAMILY.text_encoders if getattr(pipe, name) is not None)
    return found | {name: getattr(pipe, name).config.to_dict() for name in encoders}


def test_its_own_models_are_accepted(pipe: Any) -> None:
    configs = configs_of(pipe)
    for name in ("transformer", "scheduler"):
        configs[name]["_class_name"] = type(getattr(pipe, name)).__name__
    assert FAMILY.check_configs(configs) is None
    assert FAMILY.networks(pipe).keys() == {
        name for name in FAMILY.part_classes() if getattr(pipe, name) is not None
    }
    assert next(iter(FAMILY.networks(pipe))) == FAMILY.denoiser
    assert type(pipe) is FAMILY.pipeline_class()
    assert FAMILY.pipeline == type(pipe).__name__
    for name, network in FAMILY.networks(pipe).items():
        assert type(network) is FAMILY.part_classes()[name]


@pytest.mark.parametrize(
    ("part", "key", "value", "reason"),
    [
        ("transformer", "_class_name", "FluxTransformer2DModel", "transformer is FluxTransformer2DModel"),
        ("scheduler", "_class_name", "EulerDiscreteScheduler", "scheduler is EulerDiscreteScheduler"),
        ("transformer", "in_channels", 33, "33 input channels for 16 latent ones"),
        ("text_encoder_3", "d_model", 512, "T5 has 512 channels and its transformer reads 64"),
        ("text_encoder_2", "projection_dim", 1, "CLIPs pool to 17 channels and its transformer reads 40"),
    ],
)
def test_other_models_are_refused_with_the_reason(
    full: Any, part: str, key: str, value: Any, reason: str
) -> None:
    configs = configs_of(full)
    configs["transformer"]["_class_name"] = "SD3Transformer2DModel"
    configs["scheduler"]["_class_name"] = "FlowMatchEulerDiscreteScheduler"
    assert FAMILY.check_configs(configs) is None
    configs[part][key] = value
    assert reason in str(FAMILY.check_configs(configs))


def test_kinds_that_it_has_not_have_a_reason() -> None:
    kinds = {"network", "adapter", "word", "hypernetwork"}
    assert FAMILY.trainable | FAMILY.why_not.keys() == kinds
    assert not FAMILY.trainable & FAMILY.why_not.keys()
    assert not hasattr(StableDiffusion3Pipeline, "load_textual_inversion")
