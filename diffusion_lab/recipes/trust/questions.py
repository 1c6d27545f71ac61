"""The questions. The renderer knows each answer; one statistic per person or set is averaged."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from diffusion_lab.miniature import world
from diffusion_lab.miniature.identity import blend
from diffusion_lab.miniature.phrases import SLOTS, caption
from diffusion_lab.recipes.auc import auc
from diffusion_lab.recipes.trust.answers import Answer, answer, curve_of, spearman
from diffusion_lab.recipes.trust.people import (
    FIRST_PERSON,
    Pixels,
    no_reference,
    person,
    photos,
    reference,
    scores,
)
from diffusion_lab.system.images import encoded

if TYPE_CHECKING:
    from diffusion_lab.evaluation.encoders.bank import EncoderBank

REFERENCES = 14  # number of reference photos per person for similarity
SCENE = tuple(slot for slot in SLOTS if slot != "quality")  # what should not change who is seen
LEVELS = tuple(i / 8 for i in range(9))  # of the way from one person to another
CATEGORIES = ("eye_colour", "hair_colour", "hair_cut", "beard")  # they switch half way, all at once
FIFTHS = 5  # of a set of portraits, by merit, for the curves


def ask_identity(bank: EncoderBank, people: int) -> list[Answer]:
    """Does similarity fall as the person turns into another of the same noun? And where categories stay?"""
    kinds = {
        "falls as the face's parameters move to another person's": False,
        "falls as the face's numbers alone move there (cut and colour of hair, beard, eye colour stay)": True,
    }
    answers = []
    for question, numbers_only in kinds.items():
        correlations, curves = [], []
        for k in range(people):
            near, far = person(k), person(k + 2 * people)  # of the same noun, since the offset is even
            if numbers_only:
                far = replace(far, **{name: getattr(near, name) for name in CATEGORIES})
            base = reference(bank, "similarity", photos(near, 1000 * k, REFERENCES))
            curve = [
                float(
                    np.nanmean(
                        scores(bank, "similarity", photos(blend(near, far, t), 7_000_000 + 1000 * k, 6), base)
                    )
                )
                for t in LEVELS
            ]
            correlations.append(-spearman(LEVELS, curve))
            curves.append(curve)
        answers.append(
            answer(
                "similarity",
                question,
                "rank correlation with the parameters' distance, sign turned",
                correlations,
                curve_of(LEVELS, curves),
                ("share of the way to another person", "similarity"),
            )
        )
    return answers


def ask_scene(bank: EncoderBank, people: int, slots: Sequence[str] = SCENE) -> list[Answer]:
    """How far does a phrase move similarity, measured by the gap between this person and others?"""
    table: dict[str, dict[str, list[float]]] = {slot: {} for slot in slots}
    for k in range(people):
        base = reference(bank, "similarity", photos(person(k), 1000 * k, REFERENCES))
        own = np.nanmean(scores(bank, "similarity", photos(person(k), 8_000_000 + 1000 * k, 8), base))
        other = np.nanmean(
            scores(bank, "similarity", photos(person(k + 2 * people), 8_000_000 + 1000 * k, 8), base)
        )
        for slot in slots:
            for value in dict.fromkeys(phrase.value for phrase in SLOTS[slot]):
                seen = scores(
                    bank, "similarity", photos(person(k), 9_000_000 + 1000 * k, 3, **{slot: value}), base
                )
                lost = (
                    (own - seen[np.isfinite(seen)].mean()) / (own - other)
                    if np.isfinite(seen).any()
                    else np.nan
                )
                table[slot].setdefault(value, []).append(float(lost))
    answers = []
    for slot in slots:
        points = curve_of(list(table[slot]), list(zip(*table[slot].values(), strict=True)))
        worst = str(max(points, key=lambda point: point.mean).at)
        answers.append(
            answer(
                "similarity",
                f"is indifferent to {slot} (worst phrase: {worst})",
                "likeness lost, as a share of the way to another person",
                table[slot][worst],
                points,
                (slot, "share of the way to another person"),
            )
        )
    return answers


def ask_quality(bank: EncoderBank, sets: int, size: int = 40) -> list[Answer]:
    """Do aesthetics follow the rendered quality, and the renderer's own rating?"""
    by_quality, by_rating, curves, merits = [], [], [], []
    for k in range(sets):
        drawn = [world.draw_portrait(FIRST_PERSON + 10_000 + size * k + i) for i in range(size)]
        values = scores(bank, "aesthetics", [one.image for one in drawn], no_reference(bank, drawn[0].image))
        rated = np.array([one.rating for one in drawn])
        by_quality.append(spearman([one.scene.quality for one in drawn], values))
        by_rating.append(spearman(rated, values))
        fifths = np.array_split(np.argsort(rated, kind="stable"), FIFTHS)
        curves.append([float(values[rows].mean()) for rows in fifths])
        merits.append([float(rated[rows].mean()) for rows in fifths])
    text = "rank correlation in sets of random portraits"
    at = [float(merit) for merit in np.array(merits).mean(axis=0)]
    axes = ("the world's rating, by fifths", "aesthetics")
    return [
        answer("aesthetics", "follows the drawn quality", text, by_quality),
        answer("aesthetics", "follows the world's rating", text, by_rating, curve_of(at, curves), axes),
    ]


def ask_variety(bank: EncoderBank, sets: int, size: int = 24) -> list[Answer]:
    """Does diversity grow with the number of slots that vary?"""
    free = list(SCENE)
    correlations, curves = [], []
    for k in range(sets):
        order = np.random.default_rng([k, 21]).permutation(free)
        curve = []
        for m in range(len(free) + 1):
            pictures = []
            for i in range(size):
                rng = np.random.default_rng([k, i, 22])
                chosen = {"quality": SLOTS["quality"][0]}
                for j, slot in enumerate(order):
                    pick = int(
                        rng.integers(len(SLOTS[str(slot)]))
                    )  # drawn for every slot, used for the free ones
                    chosen[str(slot)] = SLOTS[str(slot)][pick if j < m else 0]
                pictures.append(world.draw_portrait(5000 * k + i, identity=person(k), phrases=chosen).image)
            curve.append(float(scores(bank, "diversity", pictures, no_reference(bank, pictures[0])).mean()))
        correlations.append(spearman(range(len(free) + 1), curve))
        curves.append(curve)
    return [
        answer(
            "diversity",
            "grows with the number of slots that vary",
            "rank correlation with that number",
            correlations,
            curve_of(range(len(free) + 1), curves),
            ("slots that vary", "diversity"),
        )
    ]


def ask_copies(bank: EncoderBank, people: int) -> list[Answer]:
    """Are slightly changed copies of training photos distinguished from new photos of the same person?"""
    answers = []
    for name, change in COPIES.items():
        values, means = [], []
        for k in range(people):
            known = photos(person(k), 1000 * k, REFERENCES)
            base = reference(bank, "memorisation", known)
            copied = [change(image, np.random.default_rng([k, i])) for i, image in enumerate(known)]
            fresh = photos(person(k), 6_000_000 + 1000 * k, REFERENCES)
            of_copies = scores(bank, "memorisation", copied, base)
            of_new = scores(bank, "memorisation", fresh, base)
            values.append(auc(of_copies, of_new))
            means.append([float(of_new.mean()), float(of_copies.mean())])
        answers.append(
            answer(
                "memorisation",
                f"finds planted copies ({name})",
                "AUC against new pictures",
                values,
                curve_of(["new pictures", "copies"], means),
                (name, "memorisation"),
            )
        )
    return answers


def ask_faces(bank: EncoderBank, people: int, each: int = 4) -> list[Answer]:
    """Is a face found where it is drawn well, and missed where it is spoilt?"""
    kinds = list(dict.fromkeys(phrase.value for phrase in SLOTS["quality"]))
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    for k in range(people):
        for kind in kinds:
            pictures = photos(person(k), 4_000_000 + 1000 * k, each, quality=kind)
            rates[kind].append(
                float(scores(bank, "face_rate", pictures, no_reference(bank, pictures[0])).mean())
            )
    return [answer("face_rate", f"quality: {kind}", "share of faces found", rates[kind]) for kind in kinds]


def ask_words(
    bank: EncoderBank, sets: int, size: int = 24, slots: Sequence[str] = tuple(SLOTS)
) -> list[Answer]:
    """Does the true caption score higher than one with a single wrong slot?"""
    right: dict[str, list[float]] = {slot: [] for slot in slots}
    for k in range(sets):
        drawn = [world.draw_portrait(FIRST_PERSON + 50_000 + size * k + i, clean=True) for i in range(size)]
        images, rng = [one.image for one in drawn], np.random.default_rng([k, 23])
        base = no_reference(bank, images[0])
        true = scores(bank, "clip_text", images, base, [caption(one.noun, one.phrases) for one in drawn])
        for slot in slots:
            wrong = []
            for one in drawn:
                shown = one.phrases.get(slot, next((p for p in SLOTS[slot] if not p.text), SLOTS[slot][0]))
                others = [p for p in SLOTS[slot] if p.value != shown.value]
                wrong.append(caption(one.noun, one.phrases | {slot: others[int(rng.integers(len(others)))]}))
            right[slot].append(float((true > scores(bank, "clip_text", images, base, wrong)).mean()))
    return [
        answer("clip_text", f"follows {slot}", "share in which the true caption scores higher", right[slot])
        for slot in slots
    ]


def _noisy(image: Pixels, rng: np.random.Generator) -> Pixels:
    out: Pixels = (image + rng.normal(0, 8, image.shape)).round().clip(0, 255).astype(np.uint8)
    return out


def _jpeg(image: Pixels, rng: np.random.Generator) -> Pixels:
    del rng
    content = encoded(Image.fromarray(image), "JPEG", quality=60)
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).copy()


def _shifted(image: Pixels, rng: np.random.Generator) -> Pixels:
    return np.roll(image, (int(rng.integers(1, 3)), int(rng.integers(1, 3))), axis=(0, 1))


COPIES: dict[str, Callable[[Pixels, np.random.Generator], Pixels]] = {
    "noise of 8 grey levels": _noisy,
    "JPEG at quality 60": _jpeg,
    "moved by 1 or 2 pixels": _shifted,
}
