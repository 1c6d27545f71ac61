"""What the small CLIP recognises without further training: slots of the caption, traits of the face."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from diffusion_lab.miniature.looks import TRAITS
from diffusion_lab.miniature.phrases import NOUNS, SLOTS, caption
from diffusion_lab.recipes.miniature.clip import labels, look_captions, look_labels, slot_captions
from diffusion_lab.recipes.miniature.data import Portraits


@torch.no_grad()
def zero_shot(clip: Any, images: list[NDArray[np.uint8]]) -> dict[str, NDArray[np.int64]]:
    """Per slot (and "noun") the index of the best of :func:`slot_captions`, phrases and nouns averaged.

    ``clip`` is an encoder with embed_images and embed_texts (MiniatureClip).
    """
    seen = clip.embed_images(images)
    found = {}
    for slot in ("noun", *SLOTS):
        scores = [seen @ embed_slot(clip, slot, noun).T for noun in (NOUNS if slot != "noun" else NOUNS[:1])]
        found[slot] = torch.stack(scores).mean(0).argmax(1).numpy()
    return found


@torch.no_grad()
def embed_slot(clip: Any, slot: str, noun: str) -> Tensor:
    """Unit vectors [values, d] of a slot's values: the mean over phrases that draw alike."""
    if slot == "noun":
        embedded: Tensor = clip.embed_texts([caption(n, {}) for n in NOUNS])
        return embedded
    values = slot_captions(slot, noun)[0]
    each = clip.embed_texts([caption(noun, {slot: phrase}) for phrase in SLOTS[slot]])
    rows = [each[[i for i, p in enumerate(SLOTS[slot]) if p.value == value]].mean(0) for value in values]
    return F.normalize(torch.stack(rows), dim=-1)


def evaluate_clip(clip: Any, heldout: Portraits) -> dict[str, float]:
    """Zero-shot accuracy per slot on all held-out portraits; ``..._flawless``: on those that are not spoilt."""
    guesses, truth = zero_shot(clip, list(heldout.images)), labels(heldout)
    fine = np.array([v in ("none", "magic", None) for v in heldout.values("quality")])
    figures = {slot: float((guesses[slot] == truth[slot]).mean()) for slot in truth}
    figures["mean_other_slots"] = float(np.mean([figures[slot] for slot in SLOTS]))
    clean = {slot: float((guesses[slot] == truth[slot])[fine].mean()) for slot in truth}
    figures["noun_flawless"] = clean["noun"]
    figures["mean_other_slots_flawless"] = float(np.mean([clean[slot] for slot in SLOTS]))
    return figures


@torch.no_grad()
def guess_looks(
    clip: Any, images: list[NDArray[np.uint8]], nouns: NDArray[np.int64]
) -> dict[str, NDArray[np.int64]]:
    """Per trait the index of the best of :func:`look_captions`, in the words of each image's own noun."""
    seen, found = clip.embed_images(images), {}
    for trait in TRAITS:
        scores = torch.stack([seen @ clip.embed_texts(look_captions(trait, n)[1]).T for n in NOUNS])
        found[trait] = scores[torch.from_numpy(nouns), torch.arange(len(seen))].argmax(1).numpy()
    return found


def evaluate_looks(clip: Any, heldout: Portraits) -> dict[str, float]:
    """Zero-shot accuracy per trait of the face, on the held-out portraits that show one."""
    guesses, truth = guess_looks(clip, list(heldout.images), heldout.nouns), look_labels(heldout)
    return {
        trait: float((guesses[trait] == known)[known >= 0].mean())
        for trait, known in truth.items()
        if (known >= 0).any()
    }
