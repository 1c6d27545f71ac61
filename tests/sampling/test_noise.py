from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_lab.sampling.noise import image_seed, initial_noise

SHAPE = (4, 16, 16)


def test_seed_is_fixed_for_ever() -> None:
    """Written down once: a seed that moved would break every comparison with an earlier run."""
    assert image_seed("a photo of customcls dog", 0, 0) == 2237701883


@settings(max_examples=50, deadline=None)
@given(st.text(), st.integers(0, 9), st.integers(0, 9))
def test_every_part_matters(text: str, index: int, noise_seed: int) -> None:
    seed = image_seed(text, index, noise_seed)
    assert 0 <= seed < 2**32
    others = {
        image_seed(text + "!", index, noise_seed),
        image_seed(text, index + 1, noise_seed),
        image_seed(text, index, noise_seed + 1),
    }
    assert seed not in others
    assert len(others) == 3


def test_noise_depends_on_nothing_else() -> None:
    alone = initial_noise("a dog", 3, 7, SHAPE)
    torch.manual_seed(12)
    torch.randn(5)
    state = torch.get_rng_state()
    again = initial_noise("a dog", 3, 7, SHAPE)
    assert torch.equal(alone, again)
    assert torch.equal(state, torch.get_rng_state())
    assert alone.dtype == torch.float32
    assert not torch.equal(alone, initial_noise("a dog", 4, 7, SHAPE))


def test_noise_is_what_a_plain_generator_draws() -> None:
    generator = torch.Generator().manual_seed(image_seed("a dog", 0, 0))
    assert torch.equal(initial_noise("a dog", 0, 0, SHAPE), torch.randn((1, *SHAPE), generator=generator)[0])


def test_noise_is_standard_normal() -> None:
    many = torch.stack([initial_noise("a dog", i, 0, SHAPE) for i in range(64)])
    assert abs(many.mean().item()) < 0.02
    assert abs(many.std().item() - 1) < 0.02
