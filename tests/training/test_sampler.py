"""Epochs: every picture once each, nothing dropped, the position enough to go on."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_lab.training.sampler import EpochSampler


@given(
    n=st.integers(1, 12), sizes=st.lists(st.integers(1, 9), min_size=1, max_size=20), seed=st.integers(0, 9)
)
@settings(max_examples=60, deadline=None)
def test_every_epoch_is_a_permutation_whatever_the_batch_sizes(n: int, sizes: list[int], seed: int) -> None:
    sampler = EpochSampler(n=n, seed=seed)
    taken = [number for size in sizes for number in sampler.take(size)]
    assert len(taken) == sum(sizes)
    for start in range(0, len(taken) - n + 1, n):
        assert sorted(taken[start : start + n]) == list(range(n))
    counts = Counter(taken)
    assert max(counts.values()) - min(counts.get(i, 0) for i in range(n)) <= 1
    assert (sampler.epoch, sampler.position) == divmod(len(taken), n)


@given(n=st.integers(1, 9), before=st.integers(0, 30), seed=st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_epoch_and_position_are_the_whole_state(n: int, before: int, seed: int) -> None:
    sampler = EpochSampler(n=n, seed=seed)
    sampler.take(before)
    resumed = EpochSampler(n=n, seed=seed, epoch=sampler.epoch, position=sampler.position)
    assert sampler.take(17) == resumed.take(17)


def test_seeds_and_epochs_shuffle_differently() -> None:
    orders = {
        tuple(EpochSampler(n=8, seed=seed, epoch=epoch).order()) for seed in range(3) for epoch in range(3)
    }
    assert len(orders) == 9
    with pytest.raises(ValueError, match="at least one"):
        EpochSampler(n=0, seed=0)
