from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from diffusion_lab.records import Features, References

MakeFeatures = Callable[..., Features]


def unit(rows: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True)).float()


def make_features(n: int, seed: int, without_face: tuple[int, ...] = ()) -> Features:
    """Random unit rows; those of `without_face` are NaN in `face`."""
    generator = np.random.default_rng(seed)
    face = unit(generator.normal(size=(n, 5)))
    face[list(without_face)] = torch.nan
    return Features(
        n=n,
        face=face,
        clip_image=unit(generator.normal(size=(n, 6))),
        clip_text=unit(generator.normal(size=(n, 6))),
        aesthetics=torch.from_numpy(generator.uniform(0, 10, n)).float(),
    )


@pytest.fixture
def features() -> MakeFeatures:
    return make_features


@pytest.fixture
def references() -> References:
    """Five training pictures, one of them without a face; three held out; four of others."""
    return References(
        train=make_features(5, 1, without_face=(2,)),
        heldout=make_features(3, 2),
        impostors=make_features(4, 3),
    )
