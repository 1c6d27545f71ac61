"""4-bit weights: what is refused, what diffusers is told, and how much memory a weight takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diffusion_lab.models import quantise
from diffusion_lab.models.quantise import quantisation
from diffusion_lab.records import UserError


def test_no_quantisation_is_none_on_every_device() -> None:
    assert quantisation(None, torch.device("cpu")) is None
    assert quantisation(None, torch.device("cuda")) is None


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_refused_without_an_nvidia_gpu(device: str) -> None:
    with pytest.raises(UserError, match=rf"model.quantise=nf4: .* on {device}; set model.quantise=null"):
        quantisation("nf4", torch.device(device))


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(UserError, match="model.quantise=nf8: must be one of nf4; did you mean 'nf4'"):
        quantisation("nf8", torch.device("cuda"))


def test_refused_without_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantise, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="model.quantise=nf4: needs bitsandbytes; pip install bitsandbytes"):
        quantisation("nf4", torch.device("cuda"))


@pytest.mark.parametrize(("has_bf16", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_the_config(has_bf16: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    found = quantisation("nf4", torch.device("cuda"))
    assert found.quantization_method() == "nf4"
    assert found.bnb_4bit_compute_dtype == dtype
    assert found.bnb_4bit_use_double_quant


def test_bits_a_weight() -> None:
    """Against the tensors that bitsandbytes keeps, on its CPU kernels."""
    from bitsandbytes.functional import quantize_4bit

    weights = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0))
    packed, state = quantize_4bit(weights, quant_type="nf4", compress_statistics=True)
    bytes_ = packed.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes
    assert 8 * bytes_ / weights.numel() == pytest.approx(quantise.BITS)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="4-bit weights need an NVIDIA GPU")
def test_a_transformer_in_four_bits(tmp_path: Path) -> None:
    from bitsandbytes.nn import Linear4bit
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    FluxTransformer2DModel(
        in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=64, num_attention_heads=2,
        joint_attention_dim=64, pooled_projection_dim=64, guidance_embeds=True, axes_dims_rope=(16, 24, 24),
    ).save_pretrained(tmp_path)  # fmt: skip
    loaded = FluxTransformer2DModel.from_pretrained(
        tmp_path, quantization_config=quantisation("nf4", torch.device("cuda")), torch_dtype=torch.bfloat16
    )
    assert isinstance(loaded.transformer_blocks[0].attn.to_q, Linear4bit)
