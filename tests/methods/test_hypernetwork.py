"""Hypernetwork: what it does to the context, and what its file says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from diffusion_lab.config.schema import Steps
from diffusion_lab.methods.hypernetwork import FILE_NAME, Hypernetwork, from_file
from diffusion_lab.records import UserError
from diffusion_lab.training.loop import training_step

DEEP = {
    "layers": [1.0, 1.5, 0.5, 1.0], "activation": "tanh", "layer_norm": True, "init": "XavierUniform",
    "self_attention": True, "learning_rate": 1e-2,
}  # fmt: skip


def step(state, n: int = 3) -> None:
    for _ in range(n):
        training_step(state, Steps(batch_size=2))
        state.step += 1


@pytest.mark.parametrize("values", [{"learning_rate": 1e-2}, DEEP])
def test_keys_and_values_see_the_context_plus_the_files_network(make_state, tmp_path: Path, values) -> None:
    """The web UI's forward pass, layer by layer from the tensors' documented names."""
    method = Hypernetwork(**values)
    state = make_state(method=method)
    step(state)
    state.save(tmp_path)
    weights = load_file(tmp_path / FILE_NAME)
    seen = {}
    blocks = [b for m in state.pipe.unet.modules() for b in getattr(m, "transformer_blocks", [])]
    attention = blocks[0].attn2
    for name in ("to_k", "to_v"):
        layer = getattr(attention, name)
        layer.register_forward_hook(lambda _, inputs, __, name=name: seen.setdefault(name, inputs[0]))
    context = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        state.pipe.unet(torch.zeros(1, 4, 16, 16), 3, context)

    def literal(which: int) -> torch.Tensor:
        x, index = context, 0
        for i in range(len(method.layers) - 1):
            names = [f"32.{which}.linear.{index}.{part}" for part in ("weight", "bias")]
            x = x @ weights[names[0]].T + weights[names[1]]
            index += 1
            if method.activation == "tanh" and i < len(method.layers) - 2:
                x, index = torch.tanh(x), index + 1
            if method.layer_norm:
                names = [f"32.{which}.linear.{index}.{part}" for part in ("weight", "bias")]
                centred = x - x.mean(-1, keepdim=True)
                x = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
                x, index = x * weights[names[0]] + weights[names[1]], index + 1
        return context + x

    for which, name in enumerate(("to_k", "to_v")):
        torch.testing.assert_close(seen[name], literal(which), rtol=1e-5, atol=1e-5)
        assert (seen[name] - context).abs().max() > 1e-4
    assert not torch.equal(seen["to_k"], seen["to_v"])


def test_widths_and_where_they_work(tiny_pipe) -> None:
    """The tiny U-Net's context is 32 wide, its channels 32 and 64."""
    Hypernetwork().attach(tiny_pipe)
    assert list(tiny_pipe.unet.hypernetwork) == ["32"]
    cross = [m for n, m in tiny_pipe.unet.named_modules() if n.endswith("attn2")]
    own = [m for n, m in tiny_pipe.unet.named_modules() if n.endswith("attn1")]
    assert cross
    assert own
    assert all(m.to_k._forward_pre_hooks and m.to_v._forward_pre_hooks for m in cross)
    assert not any(m.to_k._forward_pre_hooks for m in own)


def test_header_makes_the_network_again(make_state, tmp_path: Path) -> None:
    state = make_state(method=Hypernetwork(**DEEP, dropout=0.25))
    step(state, 1)
    state.save(tmp_path)
    with safe_open(tmp_path / FILE_NAME, "np") as file:
        header = file.metadata()
    assert json.loads(header["layer_structure"]) == [1.0, 1.5, 0.5, 1.0]
    assert (header["method"], header["trigger"], header["step"]) == ("hypernetwork", "customcls", "1")
    again = from_file(tmp_path / FILE_NAME)
    other = make_state(method=again)
    again.load(other.pipe, tmp_path)
    for a, b in zip(state.trained, other.trained, strict=True):
        assert torch.equal(a, b)
    with pytest.raises(UserError, match=r"method\.layers=\[1\.0, 1\.5"):
        Hypernetwork().load(other.pipe, tmp_path)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"layers": [1.0]}, "method.layers=[1.0]"),
        ({"layers": [1.0, 2.0]}, "method.layers=[1.0, 2.0]"),
        ({"activation": "rleu"}, "did you mean 'relu'"),
        ({"init": "xavier"}, "method.init=xavier"),
        ({"dropout": 1.0}, "method.dropout=1.0"),
    ],
)
def test_wrong_values_name_their_key(values, key: str) -> None:
    with pytest.raises(UserError) as caught:
        Hypernetwork(**values)
    assert key in str(caught.value)
