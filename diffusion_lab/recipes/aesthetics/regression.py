"""The regression from CLIP's image embedding to the rating, 0 to 10."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

BATCH = 256


@dataclass(frozen=True, slots=True)
class Split:
    """Indices of the images for training, validation (early stopping) and testing."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]


def split(n: int, seed: int, validation: float = 0.1, test: float = 0.1) -> Split:
    """A random split of n >= 10 images. Raises ValueError for fewer."""
    if n < 10:
        raise ValueError(f"{n} rated pictures are too few to train, validate and test on")
    order = np.random.default_rng([seed, 31]).permutation(n)
    a, b = max(1, round(n * test)), max(1, round(n * validation))
    return Split(train=order[a + b :], validation=order[a : a + b], test=order[:a])


def new_net(inputs: int, hidden: Sequence[int], dropout: float, middle: float) -> nn.Sequential:
    """Linear layers with GELU and dropout between; inputs of unit length; begins near ``middle``."""
    layers: list[nn.Module] = []
    for width, out in zip((inputs, *hidden), hidden, strict=False):
        layers += [nn.Linear(width, out), nn.GELU(), nn.Dropout(dropout)]
    last = nn.Linear(hidden[-1] if hidden else inputs, 1)
    nn.init.constant_(last.bias, middle)
    first = layers[0] if layers else last
    assert isinstance(first, nn.Linear)
    with torch.no_grad():
        first.weight *= math.sqrt(
            inputs
        )  # a unit vector's numbers are that much smaller than a standard normal's
    return nn.Sequential(*layers, last)


def fit(
    embeddings: Tensor,
    ratings: Tensor,
    weights: Tensor,
    parts: Split,
    *,
    hidden: Sequence[int] = (64,),
    dropout: float = 0.1,
    learning_rate: float = 1e-3,
    epochs: int = 100,
    patience: int = 10,
    seed: int = 0,
    on_epoch: Callable[[int, float, float], None] | None = None,
) -> nn.Sequential:
    """Trains on ``embeddings`` [n, d], ``ratings`` [n], each image sampled in proportion to ``weights`` [n].

    Squared error, AdamW, learning rate falling by a cosine. Stops when the validation part's error, weighted
    alike, has not fallen for ``patience`` epochs, and returns the best epoch's net, calibrated on the
    validation part. ``on_epoch`` gets epoch, training and validation error (mean squares).
    """
    draw = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        train, valid = torch.from_numpy(parts.train), torch.from_numpy(parts.validation)
        net = new_net(embeddings.shape[1], hidden, dropout, float(ratings[train].mean()))
        rule = torch.optim.AdamW(net.parameters(), lr=learning_rate, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(rule, epochs)
        best, best_error, waited = copy.deepcopy(net.state_dict()), math.inf, 0
        for epoch in range(1, epochs + 1):
            net.train()
            errors = []
            drawn = train[torch.multinomial(weights[train], len(train), replacement=True, generator=draw)]
            for some in torch.split(drawn, BATCH):
                loss = nn.functional.mse_loss(net(embeddings[some])[:, 0], ratings[some])
                rule.zero_grad()
                torch.autograd.backward(loss)
                rule.step()
                errors.append(float(loss.detach()))
            schedule.step()
            error = weighted_error(net, embeddings[valid], ratings[valid], weights[valid])
            if on_epoch is not None:
                on_epoch(epoch, math.fsum(errors) / len(errors), error)
            if error < best_error:
                best, best_error, waited = copy.deepcopy(net.state_dict()), error, 0
            elif (waited := waited + 1) >= patience:
                break
    net.load_state_dict(best)
    net.eval()
    calibrate(net, embeddings[valid], ratings[valid], weights[valid])
    return net


@torch.no_grad()
def predict(net: nn.Module, embeddings: Tensor) -> Tensor:
    """Ratings [n] of embeddings [n, d], within 0..10 as the metric gives them."""
    net.eval()
    found: Tensor = net(embeddings)[:, 0].clamp(0, 10)
    return found


@torch.no_grad()
def weighted_error(net: nn.Module, embeddings: Tensor, ratings: Tensor, weights: Tensor) -> float:
    """The weighted mean of squared errors."""
    net.eval()
    errors = (net(embeddings)[:, 0] - ratings) ** 2
    return float((errors * weights).sum() / weights.sum())


@torch.no_grad()
def calibrate(
    net: nn.Sequential, embeddings: Tensor, ratings: Tensor, weights: Tensor
) -> tuple[float, float]:
    """Makes the net say slope * said + shift, the weighted least squares of ratings on what it says.

    Weighted as in training, else the balance would be undone here. It goes into the last layer. Returns
    (slope, shift); (1, 0) if all predictions are equal, or if the slope is not positive.
    """
    net.eval()
    predicted = net(embeddings)[:, 0].double()
    w = weights.double() / weights.double().sum()
    middle, wanted = (w * predicted).sum(), (w * ratings.double()).sum()
    spread = (w * (predicted - middle) ** 2).sum()
    if float(spread) < 1e-12:
        return 1.0, 0.0
    slope = float((w * (predicted - middle) * (ratings.double() - wanted)).sum() / spread)
    if slope <= 0:
        return 1.0, 0.0
    shift = float(wanted - slope * middle)
    last = net[-1]
    assert isinstance(last, nn.Linear)
    last.weight *= slope
    last.bias.mul_(slope).add_(shift)
    return slope, shift
