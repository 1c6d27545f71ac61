"""LoHa, LoKr and OFT: peft reads what we save, and settings that make no sense are refused."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion_lab.cli.compose import compose
from diffusion_lab.config.schema import Steps
from diffusion_lab.methods.lora import Lora
from diffusion_lab.methods.variants import VARIANTS, peft_config
from diffusion_lab.plan.defaults import fill_defaults
from diffusion_lab.records import UserError
from diffusion_lab.training.loop import training_step


def image(pipe) -> np.ndarray:
    generator = torch.Generator().manual_seed(1)
    prompt = "a photo of customcls dog"
    return pipe(prompt, num_inference_steps=2, output_type="np", generator=generator).images


def step(state, n: int = 3) -> None:
    for _ in range(n):
        training_step(state, Steps(batch_size=2))
        state.step += 1


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v != "lora"])
def test_peft_alone_reads_what_we_save(
    make_state, load_plain_pipe, tiny_sd_folder: Path, tmp_path: Path, variant: str
) -> None:
    from peft import PeftModel
    from safetensors import safe_open

    state = make_state(method=Lora(variant=variant, rank=4, text_encoder=True, learning_rate=2e-2))
    step(state)
    paths = state.save(tmp_path)
    assert {str(p.relative_to(tmp_path)) for p in paths} == {
        f"{part}/adapter_{name}" for part in ("unet", "text_encoder") for name in ("model.safetensors", "config.json")
    }  # fmt: skip
    with safe_open(paths[0], "np") as file:
        assert (file.metadata()["variant"], file.metadata()["trigger"]) == (variant, "customcls")
    plain = load_plain_pipe(tiny_sd_folder)
    base = image(plain)
    plain.unet = PeftModel.from_pretrained(plain.unet, tmp_path / "unet").eval()
    plain.text_encoder = PeftModel.from_pretrained(plain.text_encoder, tmp_path / "text_encoder").eval()
    np.testing.assert_allclose(image(plain), image(state.pipe), rtol=0, atol=1e-6)
    assert np.abs(image(plain) - base).max() > 0.01


def test_load_refuses_another_variant_or_rank(make_state, tmp_path: Path) -> None:
    state = make_state(method=Lora(variant="loha", rank=4, targets=["to_q"]))
    state.save(tmp_path)
    for method, key in (
        (Lora(variant="lokr", rank=4, targets=["to_q"]), "method.variant is lokr"),
        (Lora(variant="loha", rank=2, targets=["to_q"]), "method.rank=4"),
        (Lora(variant="loha", rank=4, targets=["to_q", "to_k"]), "method.targets"),
        (Lora(rank=4, targets=["to_q"]), "is missing"),
    ):
        other = make_state(method=method)
        with pytest.raises(UserError, match=key):
            other.method.load(other.pipe, tmp_path)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"variant": "lohra"}, "method.variant=lohra: must be one of lora, loha, lokr, oft"),
        ({"variant": "loha", "dora": True}, "method.dora=true: is for method.variant=lora"),
        ({"variant": "oft", "rank_stabilised": True}, "method.rank_stabilised=true"),
        ({"variant": "oft", "alpha": 4.0}, "method.alpha=4.0: method.variant=oft"),
        ({"variant": "oft", "rank": 1}, "method.rank=1"),
    ],
)
def test_settings_that_make_no_sense(values, key: str) -> None:
    with pytest.raises(UserError) as caught:
        Lora(**values)
    assert key in str(caught.value)


def test_oft_refuses_convolutions_and_leaves_them_out_by_itself(tiny_pipe) -> None:
    with pytest.raises(UserError, match="conv1 is a convolution"):
        Lora(variant="oft", rank=4, targets=["to_q", "conv1"]).attach(tiny_pipe)
    (group,) = Lora(variant="oft", rank=4).attach(tiny_pipe)
    assert len(group.params) > 8


def test_scale(tiny_pipe) -> None:
    """alpha / rank, rank-stabilised alpha / sqrt(rank); by default 1, rank-stabilised 1 at rank 8."""
    for method, scale in (
        (Lora(rank=4, alpha=2.0), 0.5),
        (Lora(rank=16, alpha=2.0, rank_stabilised=True), 0.5),
        (Lora(rank=8, rank_stabilised=True), 1.0),
        (Lora(rank=2, rank_stabilised=True), 2.0),
    ):
        method.targets = ["to_q"]
        name = f"{method.rank}_{method.alpha}".replace(".", "_")
        tiny_pipe.unet.add_adapter(peft_config(method, ["to_q"]), name)
        layer = tiny_pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
        assert math.isclose(layer.scaling[name], scale)


def test_defaults_are_filled_by_variant() -> None:
    oft = fill_defaults(compose(["method.variant=oft"])).method
    assert (oft.alpha, oft.targets) == (
        None,
        ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"],
    )
    assert fill_defaults(compose(["method.variant=lokr", "method.rank=4"])).method.alpha == 4.0
