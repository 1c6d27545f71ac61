"""Does the whole work? Faces found and attributes recognised in samples, against the same prompts drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffusion_lab.evaluation.encoders.detect import FaceDetector
from diffusion_lab.miniature import world
from diffusion_lab.miniature.looks import described, looks_of
from diffusion_lab.miniature.phrases import MAGIC, NOUNS, SLOTS, Phrase, caption
from diffusion_lab.recipes.miniature.clip import look_captions, slot_captions
from diffusion_lab.recipes.miniature.clip_accuracy import guess_looks, zero_shot
from diffusion_lab.recipes.miniature.data import PLAIN_LOOKS
from diffusion_lab.system.atomic import write_bytes
from diffusion_lab.system.images import encoded

PROMPT_SEED = 2_900_000  # scenes of the check's prompts; held out from training
PHOTOGRAPHIC = ("photo", "bw", "sepia")


def evaluation_prompts(n: int = 100, seed: int = PROMPT_SEED) -> list[tuple[str, dict[str, Phrase]]]:
    """Nouns by turns, a phrase in every slot, no spoilt quality: (noun, phrases) of ``n`` prompts."""
    prompts = []
    for i in range(n):
        rng = np.random.default_rng([seed, i])
        phrases = world.sample_phrases(rng)
        phrases["quality"] = MAGIC[int(rng.integers(len(MAGIC)))] if i % 2 else SLOTS["quality"][0]
        prompts.append((NOUNS[i // 2 % 2], phrases))
    return prompts


def drawn(
    prompts: Sequence[tuple[str, dict[str, Phrase]]], seed: int = PROMPT_SEED
) -> list[NDArray[np.uint8]]:
    """What the world draws for the prompts, each with a new person."""
    return [
        world.draw_portrait(seed + i, noun=noun, phrases=phrases).image
        for i, (noun, phrases) in enumerate(prompts)
    ]


def accuracy(
    clip: Any, images: Sequence[NDArray[np.uint8]], prompts: Sequence[tuple[str, dict[str, Phrase]]]
) -> dict[str, float]:
    """Per slot (and "noun") the share of images in which CLIP sees what the prompt asks."""
    guesses = zero_shot(clip, list(images))
    figures = {
        "noun": float(np.mean([NOUNS[g] == p[0] for g, p in zip(guesses["noun"], prompts, strict=True)]))
    }
    for slot in SLOTS:
        values = slot_captions(slot, NOUNS[0])[0]
        figures[slot] = float(
            np.mean([values[g] == p[1][slot].value for g, p in zip(guesses[slot], prompts, strict=True)])
        )
    return figures


def evaluate_samples(
    images: Sequence[NDArray[np.uint8]],
    prompts: Sequence[tuple[str, dict[str, Phrase]]],
    clip: Any,
    detector: FaceDetector,
) -> dict[str, Any]:
    """Face rates of samples and drawings, CLIP's accuracy on both by slot, and its ratio (mean over slots)."""
    real = drawn(prompts)
    rates = {}
    for name, pictures in (("samples", images), ("drawings", real)):
        faces = [face is not None for face in detector.detect(list(pictures))]
        for group, styles in (("photo", ("photo",)), ("photographic", PHOTOGRAPHIC), ("all", None)):
            chosen = [
                f
                for f, p in zip(faces, prompts, strict=True)
                if styles is None or p[1]["style"].value in styles
            ]
            rates[f"{name}_{group}"] = float(np.mean(chosen)) if chosen else float("nan")
    ours, theirs = accuracy(clip, images, prompts), accuracy(clip, real, prompts)
    ratios = {slot: ours[slot] / max(theirs[slot], 1e-9) for slot in ours}
    return {
        "face_rate": rates,
        "accuracy_samples": ours,
        "accuracy_drawings": theirs,
        "accuracy_ratio": ratios,
        "ratio_of_means": float(np.mean(list(ours.values())) / np.mean(list(theirs.values()))),
    }


def save_grid(images: Sequence[NDArray[np.uint8]], columns: int, path: Path, enlarge: int = 1) -> None:
    """A grid of equal-sized images as PNG, white lines between them."""
    height, width = images[0].shape[:2]
    rows = -(-len(images) // columns)
    page = Image.new("RGB", (columns * (width + 2) - 2, rows * (height + 2) - 2), "white")
    for i, image in enumerate(images):
        page.paste(Image.fromarray(image), (i % columns * (width + 2), i // columns * (height + 2)))
    page = page.resize((page.width * enlarge, page.height * enlarge), Image.Resampling.NEAREST)
    write_bytes(path, encoded(page, "PNG", optimize=True))


def prompt_texts(prompts: Sequence[tuple[str, dict[str, Phrase]]]) -> list[str]:
    """The captions of `evaluation_prompts`."""
    return [caption(noun, phrases) for noun, phrases in prompts]


def plain_looks(
    prompts: Sequence[tuple[str, dict[str, Phrase]]], seed: int = PROMPT_SEED
) -> list[dict[str, str]]:
    """Hair, skin and beard, as far as they show, of the people in :func:`drawn`."""
    found = []
    for i, (noun, phrases) in enumerate(prompts):
        person = world.identity_from_seed(seed + i, noun)
        looks = looks_of(person, {phrase.value for phrase in phrases.values()})
        found.append({trait: looks[trait] for trait in PLAIN_LOOKS if trait in looks})
    return found


def look_texts(prompts: Sequence[tuple[str, dict[str, Phrase]]]) -> list[str]:
    """The captions of `evaluation_prompts` with the looks of the people in :func:`drawn`."""
    return [
        caption(noun, phrases, subject=described(noun, looks, {}))
        for (noun, phrases), looks in zip(prompts, plain_looks(prompts), strict=True)
    ]


def evaluate_look_samples(
    images: Sequence[NDArray[np.uint8]], prompts: Sequence[tuple[str, dict[str, Phrase]]], clip: Any
) -> dict[str, dict[str, float]]:
    """CLIP's accuracy per plain look on samples of :func:`look_texts`, and on drawings of the same people."""
    looks, nouns = plain_looks(prompts), np.array([NOUNS.index(noun) for noun, _ in prompts])
    figures: dict[str, dict[str, float]] = {}
    for name, pictures in (("samples", list(images)), ("drawings", drawn(prompts))):
        guesses = guess_looks(clip, pictures, nouns)
        figures[name] = {}
        for trait in PLAIN_LOOKS:
            values = look_captions(trait, NOUNS[0])[0]
            right = [
                values[guesses[trait][i]] == shown[trait] for i, shown in enumerate(looks) if trait in shown
            ]
            if right:
                figures[name][trait] = float(np.mean(right))
    return figures
