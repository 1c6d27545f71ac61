"""The face embedder: crops around MTCNN's boxes to unit vectors, trained with a supervised contrastive loss."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion_lab.evaluation.encoders.detect import Face, FaceDetector, crop
from diffusion_lab.miniature.networks import DIMENSION, FACE_SIZE, FaceNet
from diffusion_lab.recipes.auc import auc
from diffusion_lab.recipes.miniature.data import Portraits
from diffusion_lab.recipes.miniature.export import save_net
from diffusion_lab.recipes.miniature.loop import Schedule, Step, train

SIZE, MARGIN = FACE_SIZE, 0.35
TEMPERATURE = 0.1
BATCH, PER_PERSON = 128, 4


class TraitHead(nn.Module):
    """Reads the drawn face's parameters off the embedding: the world knows them, and says so at every picture."""

    def __init__(self, traits: int, dimension: int = DIMENSION) -> None:
        super().__init__()
        self.read = nn.Linear(dimension, traits)

    def forward(self, embedded: Tensor, truth: Tensor) -> Tensor:
        """Unit vectors [n, d] and standardised parameters [n, traits] -> mean squared error."""
        return F.mse_loss(self.read(embedded * embedded.shape[-1] ** 0.5), truth)


def supervised_contrastive(embedded: Tensor, classes: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """SupCon (Khosla et al. 2020, eq. 2) on unit vectors [n, d]; every class needs two rows or more.

    With 30,000 pictures of 3,000 people it learns in minutes where ArcFace's class centres, each met a few dozen
    times, do not.
    """
    logits = embedded @ embedded.T / temperature
    own = torch.eye(len(classes), dtype=torch.bool, device=embedded.device)
    same = (classes[:, None] == classes[None]) & ~own
    log_share = logits - logits.masked_fill(own, -torch.inf).logsumexp(dim=1, keepdim=True)
    return -(log_share.masked_fill(~same, 0).sum(dim=1) / same.sum(dim=1)).mean()


def trait_table(identities: NDArray[np.int64]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Standardised parameters of each distinct identity [classes, traits], and the class of every row."""
    from diffusion_lab.miniature.identity import vector
    from diffusion_lab.miniature.world import identity_from_seed

    seeds, classes = np.unique(identities, return_inverse=True)
    table = np.stack([vector(identity_from_seed(int(seed))) for seed in seeds]).astype(np.float32)
    return (table - table.mean(axis=0)) / (table.std(axis=0) + 1e-6), classes


def box_offsets(data: Portraits, detector: FaceDetector, n: int = 300) -> NDArray[np.float64]:
    """How MTCNN's boxes differ from drawn ones: mean and spread of (x, y, log size), in box sides: [2, 3]."""
    rows = []
    for i in range(min(n, len(data))):
        face = detector.detect([np.asarray(data.images[i])])[0]
        if face is not None:
            (x, y, s), (u, v, r) = _square(np.array(face.box)), _square(data.boxes[i])
            if abs(x - u) < r / 2 and abs(y - v) < r / 2 and 0.5 < s / r < 2:
                rows.append(((x - u) / r, (y - v) / r, math.log(s / r)))
    if len(rows) < 10:
        return np.array([[0.0, 0.0, 0.05], [0.04, 0.04, 0.06]])
    found = np.array(rows)
    return np.stack([np.median(found, axis=0), np.subtract(*np.percentile(found, [84, 16], axis=0)) / 2])


def jittered_crop(
    image: NDArray[np.uint8], box: NDArray[np.float32], offsets: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.uint8]:
    """A crop as MTCNN's box would have given it, box drawn from the distribution of `box_offsets`."""
    x, y, side = _square(box)
    dx, dy, ds = offsets[0] + offsets[1] * rng.normal(size=3).clip(-2.5, 2.5)
    side, x, y = side * math.exp(ds), x + dx * side, y + dy * side
    return crop(image, Face((x - side / 2, y - side / 2, x + side / 2, y + side / 2), 1.0), SIZE, MARGIN)


def augment(crops: NDArray[np.uint8], step: Step) -> Tensor:
    """Weak blur, noise, brightness, contrast and colour: uint8 [n, s, s, 3] -> float [n, 3, s, s] about -1..1."""
    n, side = len(crops), crops.shape[1]
    x = torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 127.5 - 1

    def uniform(low: float, high: float, channels: int = 1) -> Tensor:
        return low + (high - low) * torch.rand(n, channels, 1, 1, generator=step.torch)

    soft = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    x = torch.where(uniform(0, 1) < 0.4, x.lerp(soft, uniform(0.2, 1)), x)
    x = x * uniform(0.8, 1.2) * uniform(0.93, 1.07, 3) + uniform(-0.15, 0.15) + uniform(-0.03, 0.03, 3)
    noise = torch.randn(n, 3, side, side, generator=step.torch) * uniform(0, 0.08)
    return torch.where(uniform(0, 1) < 0.5, x + noise, x)


def _square(box: NDArray[np.floating[Any]]) -> tuple[float, float, float]:
    """Centre and side (the longer one) of a box."""
    left, top, right, bottom = (float(v) for v in box)
    return (left + right) / 2, (top + bottom) / 2, max(right - left, bottom - top)


def train_face(
    data: Portraits,
    images: NDArray[np.uint8],
    offsets: NDArray[np.float64],
    folder: Path,
    *,
    steps: int,
    device: torch.device,
    seed: int = 0,
    batch: int = BATCH,
    lr: float = 2e-3,
    progress: bool = True,
    every: Any = None,
) -> FaceNet:
    """Train on ``images`` [n, 64, 64, 3] (the portraits, some through the VAE); return the EMA net."""
    torch.manual_seed(seed)
    table, classes = trait_table(data.identities)
    rows = [np.flatnonzero(classes == c) for c in range(len(table))]
    net, head = FaceNet().to(device), TraitHead(table.shape[1]).to(device)
    people = min(batch // PER_PERSON, len(rows))

    def loss(step: Step) -> tuple[Tensor, dict[str, float]]:
        who = step.numpy.choice(len(rows), people, replace=False)
        picked = np.concatenate(
            [step.numpy.choice(rows[c], min(PER_PERSON, len(rows[c])), replace=False) for c in who]
        )
        crops = np.stack([jittered_crop(images[i], data.boxes[i], offsets, step.numpy) for i in picked])
        with torch.autocast(device.type, torch.bfloat16):
            embedded = net(augment(crops, step).to(device))
        embedded, here = embedded.float(), torch.from_numpy(classes[picked]).to(device)
        contrast = supervised_contrastive(embedded, here)
        traits = head(embedded, torch.from_numpy(table[classes[picked]]).to(device))
        return contrast + 2 * traits, {
            "contrast": round(contrast.item(), 3),
            "traits": round(traits.item(), 3),
        }

    schedule = Schedule(steps=steps, lr=lr, warmup=100, ema=0.995, weight_decay=0.02, clip=5.0)
    states = train(
        "face", folder, {"net": net, "head": head}, loss, schedule, seed=seed, progress=progress, every=every
    )
    net.load_state_dict(states["net"])
    return net.eval()


def save_face_net(net: FaceNet, folder: Path) -> None:
    """model.safetensors (float32) and config.json."""
    config = {"size": SIZE, "margin": MARGIN, "dimension": net.dimension}
    save_net(net.state_dict(), config, folder)


def evaluate_face(embedder: Any, heldout: Portraits, detector: FaceDetector) -> dict[str, float]:
    """Verification on unseen identities with MTCNN's crops: AUC over all pairs, by which pictures are paired.

    ``auc``: photo style, not spoilt; ``auc_same_noun``: of these, impostors of the same noun only;
    ``auc_all_styles``: any style, not spoilt; ``auc_all``: everything in which a face is found.
    """
    faces = [detector.detect([np.asarray(image)])[0] for image in heldout.images]
    found = np.array([i for i, face in enumerate(faces) if face is not None])
    crops = [crop(np.asarray(heldout.images[i]), faces[i], embedder.size, embedder.margin) for i in found]
    vectors = embedder.embed(np.stack(crops)).numpy()
    photo = np.array([value == "photo" for value in heldout.values("style")])[found]
    fine = np.array([value in ("none", "magic", None) for value in heldout.values("quality")])[found]
    ids, nouns = heldout.identities[found], heldout.nouns[found]
    figures = {"found": len(found) / len(heldout)}
    everything = np.ones(len(found), bool)
    for name, keep in (("auc", photo & fine), ("auc_all_styles", fine), ("auc_all", everything)):
        v, who, noun = vectors[keep], ids[keep], nouns[keep]
        similar = (v @ v.T).astype(np.float64)
        upper = np.triu(np.ones(similar.shape, bool), 1)
        same = (who[:, None] == who[None]) & upper
        other = (who[:, None] != who[None]) & upper
        figures[name] = auc(similar[same], similar[other])
        if name == "auc":
            figures["auc_same_noun"] = auc(similar[same], similar[other & (noun[:, None] == noun[None])])
            figures["mean_same"], figures["mean_other"] = (
                float(similar[same].mean()),
                float(similar[other].mean()),
            )
    return figures
