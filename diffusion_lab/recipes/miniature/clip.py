"""The small CLIP: images and captions in one space, and the text encoder of the diffusion model.

Trained with the contrastive loss of Radford et al. 2021 on captions that name some of what is shown, plus,
since 24,000 pictures are few, two things CLIP does not have: per slot, and per trait of the face, a cross-entropy over its phrases
("a photo of a man, smiling", "a photo of a man, looking sad", ...), and a linear probe for the rating.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion_lab.miniature.looks import TRAITS, described
from diffusion_lab.miniature.networks import (
    DIMENSION,
    SmallClip,
    image_features,
    normalise,
    text_features,
)
from diffusion_lab.miniature.phrases import NOUNS, SLOTS, Phrase, caption
from diffusion_lab.recipes.miniature.aesthetics import noisy_ratings
from diffusion_lab.recipes.miniature.data import PLAIN_LOOKS, Portraits
from diffusion_lab.recipes.miniature.export import halve
from diffusion_lab.recipes.miniature.loop import Schedule, Step, train
from diffusion_lab.recipes.miniature.tokenizer import MAX_LENGTH, encode
from diffusion_lab.system import tensors
from diffusion_lab.system.folders import replace_folder

BATCH = 64
LOOKS_AT_ONCE = (
    4  # traits besides the plain ones that a step asks for in words; the linear heads are asked for all
)


def new_clip(tokenizer: Any) -> SmallClip:
    """Untrained towers: a ResNet on 64 pixels, a three-layer CLIP text model of 77 positions."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=3,
        num_attention_heads=4,
        hidden_act="gelu",
        max_position_embeddings=MAX_LENGTH,
        projection_dim=DIMENSION,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return SmallClip(CLIPTextModelWithProjection(config))


def save_clip(model: SmallClip, tokenizer: Any, folder: Path) -> None:
    """`text/` in transformers' format with the tokenizer, `model.safetensors` for the rest; half precision."""
    with replace_folder(folder) as temporary:
        model.text.save_pretrained(temporary / "text")
        tokenizer.save_pretrained(temporary / "text")
        rest = {name: value for name, value in model.state_dict().items() if not name.startswith("text.")}
        tensors.write(temporary / "model.safetensors", rest)
        halve(temporary)


def slot_captions(
    slot: str, noun: str, rng: np.random.Generator | None = None
) -> tuple[list[str], list[str]]:
    """Values of a slot (or the nouns, for "noun") and a caption for each; of phrases that draw alike, ``rng`` picks."""
    if slot == "noun":
        return list(NOUNS), [caption(n, {}) for n in NOUNS]
    groups: dict[str, list[Phrase]] = {}
    for phrase in SLOTS[slot]:
        groups.setdefault(phrase.value, []).append(phrase)
    pick = {v: g[int(rng.integers(len(g))) if rng is not None else 0] for v, g in groups.items()}
    return list(pick), [caption(noun, {slot: phrase}) for phrase in pick.values()]


def labels(data: Portraits) -> dict[str, NDArray[np.int64]]:
    """Per slot (and "noun") the index of each portrait's value in :func:`slot_captions`; -1 where unknown."""
    found = {"noun": data.nouns.astype(np.int64)}
    for slot in SLOTS:
        values = slot_captions(slot, NOUNS[0])[0]
        found[slot] = np.array([values.index(v) if v is not None else -1 for v in data.values(slot)])
    return found


def look_captions(
    trait: str, noun: str, rng: np.random.Generator | None = None
) -> tuple[list[str], list[str]]:
    """Values of a trait and a caption for each: the adjective, or what ``rng`` picks.

    A trait of one value (freckles) has the plain caption as its other one, "".
    """
    pick = {value: rng is None or bool(rng.integers(2)) for value in TRAITS[trait]}
    texts = [
        caption(noun, {}, subject=described(noun, *(({trait: v}, {}) if first else ({}, {trait: v}))))
        for v, first in pick.items()
    ]
    return ([*pick, ""], [*texts, caption(noun, {})]) if len(pick) == 1 else (list(pick), texts)


def look_labels(data: Portraits) -> dict[str, NDArray[np.int64]]:
    """Per trait the index of each portrait's value in :func:`look_captions`; -1 where none is shown."""
    shown = [data.looks_of(i) for i in range(len(data))]
    found = {}
    for trait in TRAITS:
        values = look_captions(trait, NOUNS[0])[0]
        absent = values.index("") if "" in values else -1
        found[trait] = np.array([values.index(s[trait]) if trait in s else absent for s in shown])
    return found


def augment(images: NDArray[np.uint8], step: Step) -> Tensor:
    """Shifts up to 3 pixels, weak blur and noise: uint8 [n, 64, 64, 3] -> float [n, 3, 64, 64] in -1..1."""
    n, side = len(images), images.shape[1]
    padded = np.pad(images, ((0, 0), (3, 3), (3, 3), (0, 0)), mode="edge")
    offsets = step.numpy.integers(0, 7, (n, 2))
    moved = np.stack([p[y : y + side, x : x + side] for p, (y, x) in zip(padded, offsets, strict=True)])
    pixels = normalise(torch.from_numpy(moved).permute(0, 3, 1, 2))
    some = torch.rand(n, 1, 1, 1, generator=step.torch)
    soft = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    strength = torch.rand(n, 1, 1, 1, generator=step.torch) * 0.5
    pixels = torch.where(some < 0.3, pixels.lerp(soft, strength), pixels)
    noise = torch.randn(n, 3, side, side, generator=step.torch) * 0.04 * strength
    return torch.where(some > 0.6, pixels + noise, pixels)


class ClipTask:
    """What a step of CLIP's training asks: the captions, every slot's and some traits' values, the rating."""

    def __init__(
        self, data: Portraits, images: NDArray[np.uint8], tokenizer: Any, device: torch.device, seed: int
    ) -> None:
        """``images`` [n, 64, 64, 3]: the portraits, or what the VAE makes of them."""
        self.data, self.images, self.tokenizer, self.device = data, images, tokenizer, device
        self.slots, self.traits = labels(data), look_labels(data)
        self.ratings = noisy_ratings(data.ratings, seed)
        self.sizes = [len(slot_captions(slot, NOUNS[0])[0]) for slot in self.slots]
        self.sizes += [len(look_captions(trait, NOUNS[0])[0]) for trait in self.traits]
        # The rating, then every slot's and trait's values.
        self.probe = nn.Linear(DIMENSION, 1 + sum(self.sizes)).to(device)

    def choices(self, rng: np.random.Generator) -> tuple[list[str], dict[str, slice]]:
        """Captions of all values of every slot, the plain traits and a few others; which belong to which."""
        noun = NOUNS[int(rng.integers(2))]
        captions: list[str] = []
        spans: dict[str, slice] = {}

        def add(name: str, options: list[str]) -> None:
            spans[name] = slice(len(captions), len(captions) + len(options))
            captions.extend(options)

        for slot in self.slots:
            add(slot, slot_captions(slot, noun, rng)[1])
        others = [trait for trait in self.traits if trait not in PLAIN_LOOKS]
        for trait in [*PLAIN_LOOKS, *rng.choice(others, LOOKS_AT_ONCE, replace=False)]:
            add(trait, look_captions(trait, noun, rng)[1])
        return captions, spans

    def loss(self, model: Any, step: Step, batch: int) -> tuple[Tensor, dict[str, float]]:
        """Contrast with the captions, cross-entropy of the values, and the heads that are dropped afterwards."""
        picked = np.sort(step.numpy.choice(len(self.data), min(batch, len(self.data)), replace=False))
        pixels = augment(self.images[picked], step).to(self.device)
        texts = [self.data.caption(step.numpy, i) for i in picked]
        choices, spans = self.choices(step.numpy)
        with torch.autocast(self.device.type, torch.bfloat16):
            embedded = image_features(model, pixels)
            captions = text_features(model, encode(self.tokenizer, texts, length=None).to(self.device))
            options = text_features(model, encode(self.tokenizer, choices, length=None).to(self.device))
        scale = model.logit_scale.exp().clamp(max=100)
        contrast = contrastive(scale * embedded @ captions.T, texts)
        logits = scale * embedded @ options.T
        truth = {
            name: torch.from_numpy(known[picked]).to(self.device)
            for name, known in (self.slots | self.traits).items()
        }

        def cross_entropy(values: Tensor, name: str) -> Tensor:
            return F.cross_entropy(values, truth[name], ignore_index=-1, reduction="sum") / len(picked)

        slots = torch.stack([cross_entropy(logits[:, spans[slot]], slot) for slot in self.slots])
        faces = torch.stack([cross_entropy(logits[:, spans[t]], t) for t in self.traits if t in spans])
        read = self.probe(embedded * DIMENSION**0.5)
        rating = F.mse_loss(read[:, 0], torch.from_numpy(self.ratings[picked]).to(self.device) / 10)
        parts = zip(truth, read[:, 1:].split(self.sizes, dim=1), strict=True)
        # Hair is where the first try failed: at 1/8 its colour was still unseen after 1,300 steps.
        heads = sum(
            (1 / 2 if name in PLAIN_LOOKS else 1 / 4) * cross_entropy(part, name) for name, part in parts
        )
        value = 0.5 * contrast + slots.sum() / 4 + faces.sum() / 4 + 4 * rating + heads
        shown = {
            "contrast": contrast.item(),
            "slots": slots.mean().item(),
            "noun": slots[0].item(),
            "looks": faces.mean().item(),
        }
        return value, {name: round(number, 3) for name, number in shown.items()}


def contrastive(logits: Tensor, texts: Sequence[str]) -> Tensor:
    """CLIP's loss over ``logits`` [images, texts]; another image's caption that reads the same is no negative."""
    n, device = len(texts), logits.device
    same = torch.tensor([[a == b for b in texts] for a in texts], device=device)
    pairs = logits.masked_fill(same & ~torch.eye(n, dtype=torch.bool, device=device), -1e4)
    own = torch.arange(n, device=device)
    return (F.cross_entropy(pairs, own) + F.cross_entropy(pairs.T, own)) / 2


def train_clip(
    data: Portraits,
    tokenizer: Any,
    folder: Path,
    *,
    steps: int,
    device: torch.device,
    seed: int = 0,
    batch: int = BATCH,
    lr: float = 1e-3,
    progress: bool = True,
    every: Any = None,
    model: Any = None,
    images: NDArray[np.uint8] | None = None,
) -> Any:
    """Train both towers; return the EMA model.

    With a ``model`` given, it goes on learning (stage "polish"), from ``images`` [n, 64, 64, 3] where given: the
    portraits, some as the VAE shows them. Linear heads on the image embedding, dropped afterwards, tell the image
    tower of every slot: without them a slot that it does not see at first (noun, pose, expression) makes the
    texts of that slot collapse into one, after which there is nothing left to learn from.
    """
    torch.manual_seed(seed)
    stage, images = "clip" if model is None else "polish", data.images if images is None else images
    model = (new_clip(tokenizer) if model is None else model).to(device)
    model.text.set_attn_implementation("eager")  # on a CPU 1.4 times as fast as the fused one at this size
    task = ClipTask(data, images, tokenizer, device, seed)

    def loss(step: Step) -> tuple[Tensor, dict[str, float]]:
        return task.loss(model, step, batch)

    schedule = Schedule(steps=steps, lr=lr, warmup=100, ema=0.995, weight_decay=0.05, betas=(0.9, 0.98))
    states = train(
        stage,
        folder,
        {"clip": model, "probe": task.probe},
        loss,
        schedule,
        seed=seed,
        progress=progress,
        every=every,
    )
    model.load_state_dict(states["clip"])
    return model.eval()
