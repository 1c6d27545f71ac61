"""A U-Net that begins as slices of a wider one."""

from __future__ import annotations

import pytest
import torch

from diffusion_lab.recipes.miniature.cut import cut
from diffusion_lab.recipes.miniature.unet import CHANNELS, new_unet


@pytest.fixture(scope="module")
def wide() -> torch.nn.Module:
    torch.manual_seed(0)
    return new_unet(48, CHANNELS["epsilon"])


def test_the_same_width_is_the_same_network(wide: torch.nn.Module) -> None:
    same = cut(wide.state_dict(), new_unet(48).state_dict())
    assert all(torch.equal(same[key], value) for key, value in wide.state_dict().items())


def test_channels_that_the_cut_leaves_out_are_the_only_ones_missed(wide: torch.nn.Module) -> None:
    """With the left-out channels silenced everywhere in the wide network, the narrow one computes the same
    queries and feed-forward products: each kept row meets the column it met before.
    """
    narrow = new_unet(48, CHANNELS["v_prediction"])
    found = cut(wide.state_dict(), narrow.state_dict())
    narrow.load_state_dict(found)
    kept = torch.cat([torch.arange(6) + 8 * group for group in range(32)])
    heads = torch.cat([torch.arange(24) + 32 * head for head in range(8)])
    state = wide.state_dict()
    block = "mid_block.attentions.0.transformer_blocks.0."
    seen, words = torch.zeros(5, 256), torch.randn(5, 48)
    seen[:, kept] = torch.randn(5, 192)
    for name, given in (("attn1.to_q", seen), ("attn2.to_k", words)):
        whole = given @ state[f"{block}{name}.weight"].T
        ours = (given[:, kept] if given is seen else given) @ found[f"{block}{name}.weight"].T
        torch.testing.assert_close(ours, whole[:, heads])
    gated = seen @ state[f"{block}ff.net.0.proj.weight"].T
    halves = torch.cat([torch.arange(768), 1024 + torch.arange(768)])
    torch.testing.assert_close(seen[:, kept] @ found[f"{block}ff.net.0.proj.weight"].T, gated[:, halves])
    # A resnet that reads the level's own width and a narrower level's: the latter is read whole.
    read = found["up_blocks.0.resnets.1.conv1.weight"]
    assert torch.equal(read[:, 192:], state["up_blocks.0.resnets.1.conv1.weight"][kept][:, 256:])
    assert torch.equal(found["time_embedding.linear_1.weight"], state["time_embedding.linear_1.weight"])


def test_the_narrow_network_runs(wide: torch.nn.Module) -> None:
    narrow = new_unet(48, CHANNELS["v_prediction"])
    narrow.load_state_dict(cut(wide.state_dict(), narrow.state_dict()))
    out = narrow(torch.randn(2, 4, 16, 16), torch.tensor([1, 900]), torch.randn(2, 7, 48)).sample
    assert out.shape == (2, 4, 16, 16)
    assert torch.isfinite(out).all()


def test_widths_that_do_not_fit(wide: torch.nn.Module) -> None:
    with pytest.raises(ValueError, match="more than one level"):
        cut(wide.state_dict(), new_unet(48, (64, 96, 192)).state_dict())
