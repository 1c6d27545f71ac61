"""The aesthetics head: CLIP image embedding -> rating of 0 to 10, learned from noisy raters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from diffusion_lab.miniature.networks import AestheticsNet
from diffusion_lab.recipes.miniature.data import Portraits
from diffusion_lab.recipes.miniature.export import save_net
from diffusion_lab.recipes.miniature.loop import Schedule, Step, train

RATERS, RATER_SD = 10, 1.0


def noisy_ratings(true: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """What raters say: each rounds the true rating plus their own noise to 0..10; the mean of ten."""
    rng = np.random.default_rng([seed, 77])
    votes = true[:, None] + rng.normal(0, RATER_SD, (len(true), RATERS))
    means: NDArray[np.float32] = votes.round().clip(0, 10).mean(axis=1).astype(np.float32)
    return means


def train_aesthetics(
    embeddings: Tensor,
    ratings: NDArray[np.float32],
    folder: Path,
    *,
    steps: int,
    seed: int = 0,
    batch: int = 256,
    progress: bool = True,
) -> AestheticsNet:
    """Train on CLIP embeddings [n, d] and noisy ratings [n]; return the EMA net."""
    torch.manual_seed(seed)
    net = AestheticsNet(embeddings.shape[1])
    wanted = torch.from_numpy(ratings)

    def loss(step: Step) -> tuple[Tensor, dict[str, float]]:
        picked = torch.randint(len(embeddings), (batch,), generator=step.torch)
        value = F.mse_loss(net(embeddings[picked]), wanted[picked])
        return value, {}

    schedule = Schedule(steps=steps, lr=2e-3, warmup=50, ema=0.99, weight_decay=0.01)
    states = train("aesthetics", folder, {"net": net}, loss, schedule, seed=seed, progress=progress)
    net.load_state_dict(states["net"])
    return net.eval()


def save_aesthetics_net(net: AestheticsNet, folder: Path) -> None:
    """model.safetensors and config.json."""
    sizes = {"inputs": net.first.in_features, "hidden": net.first.out_features}
    save_net(net.state_dict(), sizes, folder)


def evaluate_aesthetics(net: Any, embeddings: Tensor, heldout: Portraits) -> dict[str, float]:
    """Spearman's rank correlation with the true rating on held-out portraits, and the mean absolute error."""
    with torch.no_grad():
        said = net(embeddings).clamp(0, 10).numpy()
    ranks = [np.argsort(np.argsort(v)).astype(float) for v in (said, heldout.ratings)]
    return {
        "spearman": float(np.corrcoef(ranks[0], ranks[1])[0, 1]),
        "mean_absolute_error": float(np.abs(said - heldout.ratings).mean()),
    }
