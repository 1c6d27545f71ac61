"""Stable Diffusion XL: two text encoders, sizes and crop, the VAE in float16, and files that plain diffusers reads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from diffusion_lab.families import FAMILIES, kohya
from diffusion_lab.families.family import Framing
from tests.families.tiny import SIDE, draw, plain, reload, sdxl
from tests.models.ldm import unet_name

FAMILY: Any = FAMILIES["sdxl"]
PROMPT = "a photo of dog"
SIZE = (SIDE, SIDE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sdxl") / "model"
    sdxl(place)
    return place


@pytest.fixture
def pipe(folder: Path) -> Any:
    return reload(StableDiffusionXLPipeline, folder)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("negative", ["", "blurry"])
@pytest.mark.parametrize("force_zeros", [True, False])
def test_images_are_plain_diffusers(
    tmp_path: Path, prediction_type: str, negative: str, force_zeros: bool
) -> None:
    pipe = sdxl(tmp_path / "model", prediction_type, force_zeros_for_empty_prompt=force_zeros)
    ours = draw(FAMILY, pipe, PROMPT, negative=negative)
    theirs = plain(FAMILY, pipe, PROMPT, **({"negative_prompt": negative} if negative else {}))
    assert torch.allclose(ours.clamp(-1, 1), theirs, atol=1e-5)


def test_an_empty_negative_is_zeros_where_the_pipeline_says_so(pipe: Any) -> None:
    with torch.no_grad():
        _, zeros, _, pooled_zeros = pipe.encode_prompt(PROMPT)
        found = FAMILY.unconditional(pipe, "", FAMILY.encode_prompts(pipe, [""]))
        assert torch.equal(found["hidden"], zeros)
        assert torch.equal(found["pooled"], pooled_zeros)
        assert not found["hidden"].any()
        pipe.register_to_config(force_zeros_for_empty_prompt=False)
        _, encoded, _, pooled_encoded = pipe.encode_prompt(PROMPT)
        found = FAMILY.unconditional(pipe, "", FAMILY.encode_prompts(pipe, [""]))
    assert torch.allclose(found["hidden"], encoded, atol=1e-6)
    assert torch.allclose(found["pooled"], pooled_encoded, atol=1e-6)
    assert found["hidden"].any()


def test_what_the_denoiser_reads(pipe: Any) -> None:
    """Penultimate layers side by side, the second encoder's projection beside them."""
    with torch.no_grad():
        found = FAMILY.encode(pipe, FAMILY.tokenize(pipe, PROMPT))
        states = []
        for part in ("", "_2"):
            tokenizer, encoder = getattr(pipe, f"tokenizer{part}"), getattr(pipe, f"text_encoder{part}")
            ids = tokenizer(PROMPT, padding="max_length", max_length=77, return_tensors="pt").input_ids
            states.append(encoder(ids, output_hidden_states=True))
    assert torch.equal(found["hidden"][..., :24], states[0].hidden_states[-2])
    assert torch.equal(found["hidden"][..., 24:], states[1].hidden_states[-2])
    assert torch.equal(found["pooled"], states[1].text_embeds)
    tokens = FAMILY.tokenize(pipe, PROMPT)
    assert (tokens["tokenizer"] != tokens["tokenizer_2"]).any()  # the two pad with different words


def test_gradients_reach_both_text_encoders(pipe: Any) -> None:
    conditioning = FAMILY.encode(pipe, FAMILY.tokenize(pipe, PROMPT))
    extras = FAMILY.training_extras(pipe, [Framing((72, 64), (4, 0), SIZE)])
    noisy = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(0))
    FAMILY.predict(pipe, noisy, torch.tensor([500]), {**conditioning, **extras}).pow(2).mean().backward()
    for encoder in (pipe.text_encoder, pipe.text_encoder_2):
        assert encoder.get_input_embeddings().weight.grad.abs().max() > 0
    assert pipe.text_encoder_2.text_projection.weight.grad.abs().max() > 0
    last = [p.grad for p in pipe.text_encoder.encoder.layers[-1].parameters()]
    assert last == [None] * len(last)


def test_time_ids_are_the_training_scripts(pipe: Any) -> None:
    """`compute_time_ids` of diffusers' train_dreambooth_lora_sdxl.py: original_size + crops_coords_top_left + target."""
    framings = [Framing((3024, 4032), (0, 171), (1024, 1024)), Framing((700, 500), (88, 0), SIZE)]
    found = FAMILY.training_extras(pipe, framings)
    rows = [list(f.original + f.crop + f.target) for f in framings]
    assert found["time_ids"].tolist() == rows == [[3024, 4032, 0, 171, 1024, 1024], [700, 500, 88, 0, 64, 64]]
    expected = pipe._get_add_time_ids((48, 64), (0, 0), (48, 64), torch.float32, 48)
    sampled = FAMILY.sampling_extras(pipe, 3, (48, 64), 5.0)["time_ids"]
    assert torch.equal(sampled.float(), expected.repeat(3, 1))


def test_sizes_and_crop_change_the_answer(pipe: Any) -> None:
    conditioning = FAMILY.encode_prompts(pipe, [PROMPT])
    noisy = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(0))

    def answer(framing: Framing) -> torch.Tensor:
        extras = FAMILY.training_extras(pipe, [framing])
        return FAMILY.predict(pipe, noisy, torch.tensor(500), {**conditioning, **extras})

    with torch.no_grad():
        base = answer(Framing(SIZE, (0, 0), SIZE))
        assert torch.equal(base, answer(Framing(SIZE, (0, 0), SIZE)))
        for other in (
            Framing((512, 64), (0, 0), SIZE),
            Framing(SIZE, (0, 40), SIZE),
            Framing(SIZE, (40, 0), SIZE),
        ):
            assert not torch.equal(base, answer(other))


def test_sizes_stay_whole_in_half_precision(pipe: Any) -> None:
    """bfloat16 has no 1365: floating-point conditioning is cast, sizes are not."""
    pipe.unet.to(torch.bfloat16)
    with torch.no_grad():
        conditioning = {k: v.bfloat16() for k, v in FAMILY.encode_prompts(pipe, [PROMPT]).items()}
        noisy = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(0)).bfloat16()
        ids = FAMILY.training_extras(pipe, [Framing((1365, 1024), (0, 0), SIZE)])["time_ids"]

        def answer(time_ids: torch.Tensor) -> torch.Tensor:
            return FAMILY.predict(pipe, noisy, torch.tensor(500), {**conditioning, "time_ids": time_ids})

        found = answer(ids)
        assert found.dtype == torch.bfloat16
        assert torch.equal(found, answer(ids.float()))
        assert not torch.equal(found, answer(ids.bfloat16()))


@pytest.mark.parametrize("force_upcast", [True, False])
def test_a_vae_in_float16(pipe: Any, force_upcast: bool) -> None:
    """The published VAE's activations overflow in float16: it is run in float32. The repaired one is not."""
    pipe.vae.register_to_config(force_upcast=force_upcast)
    latents = torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pipe.vae.half()
        whole = pipe.vae.float().decode(latents / 0.4).sample  # float32 arithmetic on the rounded weights
        half = pipe.vae.half().decode((latents / 0.4).half()).sample.float()
    assert not torch.equal(whole, half)
    pipe.vae.half()
    kept = [p.data_ptr() for p in pipe.vae.parameters()]
    with torch.inference_mode():
        found = FAMILY.decode(pipe, latents)
    assert found.dtype == torch.float32
    assert torch.equal(found, whole if force_upcast else half)
    assert [p.data_ptr() for p in pipe.vae.parameters()] == kept
    assert pipe.vae.dtype == torch.float16
    assert not any(p.is_inference() for p in pipe.vae.parameters())
    pixels = torch.zeros(1, 3, SIDE, SIDE)
    mean, _ = FAMILY.posterior(pipe, pixels)
    with torch.no_grad():
        assert torch.equal(mean, pipe.vae.float().encode(pixels).latent_dist.mean)


@pytest.mark.parametrize(
    ("part", "changes", "reason"),
    [
        ("unet", {"in_channels": 9}, "9 input channels for 4 latent ones: an inpainting"),
        ("unet", {"in_channels": 8}, "8 input channels for 4 latent ones"),
        ("unet", {"addition_embed_type": None}, "not a Stable Diffusion XL"),
        ("unet", {"projection_class_embeddings_input_dim": 5 * 8 + 48}, "a refiner's has five"),
        ("model_index", {"requires_aesthetics_score": True}, "a refiner's has five"),
        ("unet", {"cross_attention_dim": 768}, r"width 768, and its text encoders give 24 \+ 40"),
        ("unet", {"time_cond_proj_dim": 256}, "distilled"),
        ("vae", {"latents_mean": [0.0] * 4}, "latents_mean"),
        ("scheduler", {"_class_name": "EDMDPMSolverMultistepScheduler"}, "EDM formulation"),
        ("scheduler", {"prediction_type": "sample"}, "prediction_type sample"),
    ],
)
def test_other_models_are_refused(pipe: Any, part: str, changes: dict[str, Any], reason: str) -> None:
    configs = {name: dict(network.config.to_dict()) if name.startswith("text") else dict(network.config)
               for name, network in FAMILY.networks(pipe).items()}  # fmt: skip
    configs |= {"scheduler": dict(pipe.scheduler.config), "model_index": dict(pipe.config)}
    assert FAMILY.check_configs(configs) is None
    configs[part] |= changes
    assert re.search(reason, str(FAMILY.check_configs(configs)))


# --- a LoRA elsewhere -----------------------------------------------------------------------------------

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
ALL = [
    *ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out", "conv1", "conv2", "conv_shortcut", "time_emb_proj",
    "downsamplers.0.conv", "upsamplers.0.conv", "conv_in", "conv_out", "time_embedding.linear_1",
    "time_embedding.linear_2", "add_embedding.linear_1", "add_embedding.linear_2",
]  # fmt: skip


def with_lora(pipe: Any, targets: list[str]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Adapters with random weights on all three networks; alpha is not the rank. diffusers' keys, peft's settings."""
    from peft import LoraConfig, get_peft_model_state_dict

    text = ["q_proj", "k_proj", "v_proj", "out_proj"]
    weights, settings = {}, {}
    torch.manual_seed(5)
    for part, rank, named in (("unet", 4, targets), ("text_encoder", 2, text), ("text_encoder_2", 3, text)):
        network = getattr(pipe, part)
        network.add_adapter(LoraConfig(r=rank, lora_alpha=rank * 1.5, target_modules=named))
        for name, parameter in network.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.3)
        for key, value in get_peft_model_state_dict(network).items():
            weights[f"{part}.{key}"] = value.detach().clone()
        settings |= {
            f"{part}.{key}": value for key, value in network.peft_config["default"].to_dict().items()
        }
    return weights, settings


@pytest.mark.parametrize("targets", [ATTENTION, ALL], ids=["attention", "every layer"])
def test_kohyas_file_gives_the_same_image(
    pipe: Any, folder: Path, tmp_path: Path, targets: list[str]
) -> None:
    from safetensors.torch import save_file

    before = plain(FAMILY, pipe, PROMPT)
    weights, settings = with_lora(pipe, targets)
    expected = plain(FAMILY, pipe, PROMPT)
    assert (expected - before).abs().max() > 0.05
    renamed = FAMILY.kohya(weights, settings)
    assert len(renamed) == len(weights) / 2 * 3  # down, up and alpha of each layer
    save_file(renamed, tmp_path / "lora.safetensors")
    other = reload(StableDiffusionXLPipeline, folder)
    other.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    assert torch.allclose(plain(FAMILY, other, PROMPT), expected, atol=1e-4)


def test_kohyas_names_are_the_original_codes(pipe: Any) -> None:
    """As kohya's scripts write and web UIs list them for SDXL."""
    weights, settings = with_lora(pipe, ALL)
    layers = {key.split(".")[0] for key in FAMILY.kohya(weights, settings)}
    for name in (
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
        "lora_unet_input_blocks_8_1_transformer_blocks_1_attn2_to_out_0",
        "lora_unet_input_blocks_1_0_in_layers_2",
        "lora_unet_input_blocks_3_0_op",
        "lora_unet_input_blocks_4_0_skip_connection",
        "lora_unet_middle_block_1_proj_in",
        "lora_unet_middle_block_2_out_layers_3",
        "lora_unet_output_blocks_0_1_transformer_blocks_0_ff_net_0_proj",
        "lora_unet_output_blocks_5_2_conv",
        "lora_unet_output_blocks_8_0_emb_layers_1",
        "lora_unet_input_blocks_0_0",
        "lora_unet_out_2",
        "lora_unet_time_embed_2",
        "lora_unet_label_emb_0_0",
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
        "lora_te2_text_model_encoder_layers_2_self_attn_out_proj",
    ):
        assert name in layers
    assert not [name for name in layers if "_blocks_" in name and ("down_" in name or "up_" in name)]


def test_every_layers_original_name(pipe: Any) -> None:
    """Against the names of a single checkpoint file, which the tests of such files have a table of."""
    layers = [
        name
        for name, module in pipe.unet.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and not name.startswith("add_embedding")
    ]
    assert len(layers) > 100
    for layer in layers:
        expected = unet_name(f"{layer}.weight", pipe.unet.config).removesuffix(".weight")
        assert kohya.original_name(layer.replace(".", "_")) == expected.replace(".", "_")


def test_no_kohya_file_of_dora_or_of_unknown_layers(pipe: Any) -> None:
    weights, settings = with_lora(pipe, ATTENTION)
    assert FAMILY.kohya(weights, {**settings, "text_encoder_2.use_dora": True}) is None
    with pytest.raises(ValueError, match="encoder_hid_proj is no layer"):
        kohya.original_name("encoder_hid_proj")
