"""Portraits drawn once into memory-mapped arrays, and the captions that training makes of them."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion_lab.miniature.identity import Identity
from diffusion_lab.miniature.looks import described, looks_of
from diffusion_lab.miniature.networks import SIDE
from diffusion_lab.miniature.phrases import NOUNS, SLOTS, Phrase, caption
from diffusion_lab.miniature.world import identity_from_seed
from diffusion_lab.system import atomic

TRAIN_SEED, FACES_SEED = 0, 200_000  # identities below 1,000,000: pretraining
HELDOUT_SEED, HELDOUT_FACES_SEED = 2_000_000, 2_500_000  # never trained on


@dataclass(frozen=True, slots=True)
class Portraits:
    """n drawn portraits: pixels, identities and everything that the world knows about them."""

    images: NDArray[np.uint8]  # [n, 64, 64, 3], memory-mapped
    nouns: NDArray[np.int64]  # [n], index into NOUNS
    phrases: NDArray[np.int64]  # [n, slots], index into SLOTS[slot]; -1: slot absent
    ratings: NDArray[np.float32]  # [n], 0..10
    identities: NDArray[np.int64]  # [n], identity seeds
    boxes: NDArray[np.float32]  # [n, 4], the drawn face: left, top, right, bottom in pixels

    def __len__(self) -> int:
        return len(self.images)

    def phrase(self, i: int, slot: str) -> Phrase | None:
        """What portrait ``i`` shows in ``slot``."""
        index = int(self.phrases[i, list(SLOTS).index(slot)])
        return None if index < 0 else SLOTS[slot][index]

    def phrases_of(self, i: int) -> dict[str, Phrase]:
        """All phrases of portrait ``i`` by slot."""
        found = {slot: self.phrase(i, slot) for slot in SLOTS}
        return {slot: phrase for slot, phrase in found.items() if phrase is not None}

    def identity(self, i: int) -> Identity:
        """Who portrait ``i`` shows."""
        return identity_from_seed(int(self.identities[i]))

    def looks_of(self, i: int) -> dict[str, str]:
        """The looks that portrait ``i`` shows, by trait."""
        return looks_of(self.identity(i), {phrase.value for phrase in self.phrases_of(i).values()})

    def caption(self, rng: np.random.Generator, i: int) -> str:
        """A caption of portrait ``i`` for training."""
        return training_caption(rng, self.noun(i), self.phrases_of(i), self.looks_of(i))

    def values(self, slot: str) -> list[str | None]:
        """The attribute value of each portrait in ``slot``."""
        shown = [self.phrase(i, slot) for i in range(len(self))]
        return [phrase.value if phrase else None for phrase in shown]

    def noun(self, i: int) -> str:
        """Class noun of portrait ``i``."""
        return NOUNS[int(self.nouns[i])]


def portraits(
    folder: Path, name: str, identities: Sequence[int], seeds: Sequence[int], *, workers: int | None = None
) -> Portraits:
    """Portrait k shows ``identities[k]`` in the scene of ``seeds[k]``; read from ``folder`` if already drawn."""
    folder.mkdir(parents=True, exist_ok=True)
    array, meta = folder / f"{name}.npy", folder / f"{name}.json"
    wanted = {"n": len(seeds), "first": [int(identities[0]), int(seeds[0])], "slots": _slots_key()}
    if not meta.exists() or json.loads(meta.read_text()) != wanted:
        _draw_all(folder, name, list(identities), list(seeds), workers)
        atomic.write_text(meta, json.dumps(wanted))
    known = np.load(folder / f"{name}.npz")
    return Portraits(
        np.load(array, mmap_mode="r"),
        known["nouns"],
        known["phrases"],
        known["ratings"],
        np.asarray(identities, dtype=np.int64),
        known["boxes"],
    )


LOOKS_SHARE = 0.7  # of the captions that say something about the face
LOOKS_MOST = 6  # at once: with a full scene, 77 tokens are soon used up
# What one sees first is named three times as often.
PLAIN_LOOKS = ("hair_colour", "hair_cut", "skin", "beard")


def training_caption(
    rng: np.random.Generator, noun: str, phrases: dict[str, Phrase], looks: Mapping[str, str] | None = None
) -> str:
    """A caption that names all, some, one or none of what is shown, and often some of the person's ``looks``.

    A style other than a photo is always named, since "a photo" stands where none is; a spoilt quality nearly
    always, so that an unnamed quality means an ordinary one.
    """
    kind = rng.uniform()
    slots = list(phrases)
    if kind < 0.35:
        drop = set()
    elif kind < 0.80:
        drop = {slot for slot in slots if rng.uniform() < 0.5}
    elif kind < 0.92:
        drop = set(slots) - {slots[int(rng.integers(len(slots)))]}
    else:
        drop = set(slots)
    if "style" in drop and phrases["style"].value != "photo":
        drop.discard("style")
    if "quality" in drop and phrases["quality"].value not in ("none", "magic") and rng.uniform() < 0.9:
        drop.discard("quality")
    subject = None
    if looks and rng.uniform() < LOOKS_SHARE:
        subject = described(noun, *some_looks(rng, looks))
    return caption(noun, phrases, drop=drop, subject=subject)


def some_looks(rng: np.random.Generator, looks: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """One to six of ``looks``, in any order: those said before the noun, those said after it."""
    traits = list(looks)
    weights = np.array([3.0 if trait in PLAIN_LOOKS else 1.0 for trait in traits])
    n = int(rng.integers(1, min(LOOKS_MOST, len(traits)) + 1))
    chosen = [traits[i] for i in rng.choice(len(traits), n, replace=False, p=weights / weights.sum())]
    before = rng.uniform(size=n) < rng.choice((0.0, 0.5, 1.0))
    return (
        {trait: looks[trait] for trait, first in zip(chosen, before, strict=True) if first},
        {trait: looks[trait] for trait, first in zip(chosen, before, strict=True) if not first},
    )


def _draw_all(folder: Path, name: str, identities: list[int], seeds: list[int], workers: int | None) -> None:
    n = len(seeds)
    temporary = folder / f".{name}.npy"
    np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=(n, SIDE, SIDE, 3)).flush()
    workers = workers if workers is not None else (os.cpu_count() or 1) if n > 500 else 1
    pieces = np.array_split(np.arange(n), max(1, min(n, workers * 8)))
    jobs = [(temporary, p, [identities[k] for k in p], [seeds[k] for k in p]) for p in pieces]
    if workers > 1:
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            parts = pool.map(_draw_some, jobs, chunksize=1)
    else:
        parts = [_draw_some(job) for job in jobs]
    keys = ("nouns", "phrases", "ratings", "boxes")
    columns: dict[str, Any] = {k: np.concatenate([p[j] for p in parts]) for j, k in enumerate(keys)}
    buffer = io.BytesIO()
    np.savez(buffer, **columns)
    atomic.write_bytes(folder / f"{name}.npz", buffer.getvalue())
    atomic.move(temporary, folder / f"{name}.npy")


def _draw_some(job: tuple[Path, NDArray[np.int64], list[int], list[int]]) -> tuple[NDArray[np.generic], ...]:
    from diffusion_lab.miniature import world

    path, places, identities, seeds = job
    array = np.load(path, mmap_mode="r+")
    slots = list(SLOTS)
    nouns = np.zeros(len(seeds), np.int64)
    unsaid = [next((i for i, p in enumerate(SLOTS[slot]) if not p.text), -1) for slot in slots]
    phrases = np.tile(np.array(unsaid, np.int64), (len(seeds), 1))
    ratings, boxes = np.zeros(len(seeds), np.float32), np.zeros((len(seeds), 4), np.float32)
    for k, (place, identity, seed) in enumerate(zip(places, identities, seeds, strict=True)):
        drawn = world.draw_portrait(int(seed), identity=world.identity_from_seed(int(identity)))
        array[place] = drawn.image
        nouns[k], ratings[k] = NOUNS.index(drawn.noun), drawn.rating
        for slot, phrase in drawn.phrases.items():
            phrases[k, slots.index(slot)] = SLOTS[slot].index(phrase)
        boxes[k] = world.face_box(drawn.identity, drawn.scene)
    array.flush()
    return nouns, phrases, ratings, boxes


def _slots_key() -> list[list[str]]:
    return [[slot, *(phrase.text for phrase in phrases)] for slot, phrases in SLOTS.items()]
