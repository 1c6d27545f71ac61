"""Can the metrics be trusted? They are asked about a world whose truth is known.

    python -m diffusion_lab.miniature.trust FOLDER [--people 20]

Every question has an answer that the drawing program knows: who is shown, how spoilt, how varied, what is worn. Each
is put to the metrics of `diffusion_lab.metrics` through the miniature's own encoders, for people whom no encoder was
trained on. One statistic a person (or set) is averaged with a 95 % interval over people. `FOLDER/trust.json` has all
numbers, `FOLDER/trust.md` the table.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffusion_lab.analysis.intervals import summarise
from diffusion_lab.metrics import METRICS

from . import world
from .identity import Identity, blend
from .phrases import SLOTS, Phrase, caption, phrase_of

if TYPE_CHECKING:
    from diffusion_lab.encoders.bank import EncoderBank
    from diffusion_lab.interfaces import Features

Pixels = NDArray[np.uint8]
FIRST_PERSON = world.EVALUATION_SEEDS + 400_000
REFERENCES = 14  # photographs of a person that similarity is measured against
SCENE = tuple(slot for slot in SLOTS if slot != "quality")  # what should not change who is seen
LEVELS = tuple(i / 8 for i in range(9))  # of the way from one person to another


@dataclass(frozen=True, slots=True)
class Answer:
    """One question put to one metric: a mean with its 95 % interval over people or sets."""

    metric: str
    question: str
    statistic: str
    mean: float
    low: float
    high: float
    n: int  # people or sets
    curve: Mapping[str, float] = field(default_factory=dict)


def answer(
    metric: str,
    question: str,
    statistic: str,
    values: Sequence[float],
    curve: Mapping[str, float] | None = None,
) -> Answer:
    """Average ``values``, one a person; those that are NaN are left out. ValueError for fewer than two."""
    found = summarise(values)
    if found.mean is None or found.low is None or found.high is None:
        raise ValueError(f"{metric}: {question}: {found.n} values are too few")
    return Answer(metric, question, statistic, found.mean, found.low, found.high, found.n, dict(curve or {}))


def person(k: int) -> Identity:
    """The k-th person of the study; women and men by turns."""
    return world.identity_from_seed(FIRST_PERSON + k)


def photos(identity: Identity, first: int, n: int, **values: str) -> list[Pixels]:
    """``n`` photographs of ``identity`` in random scenes that are not spoilt; ``values`` fix slots."""
    phrases: dict[str, Phrase] = {"style": SLOTS["style"][0], "quality": SLOTS["quality"][0]}
    phrases |= {slot: phrase_of(slot, value) for slot, value in values.items()}
    return [world.draw_portrait(first + i, identity=identity, phrases=phrases).image for i in range(n)]


def scores(
    bank: EncoderBank,
    metric: str,
    images: Sequence[Pixels],
    references: Features,
    texts: list[str] | None = None,
) -> NDArray[np.float64]:
    """The metric's value of each image, float64 [n], NaN where undefined."""
    from diffusion_lab.interfaces import Metric, References

    seen = bank.features(images, texts=texts, needs=set(METRICS[metric].needs))
    measure = METRICS[metric]
    assert isinstance(measure, Metric), f"{metric} has no value an image"
    values = measure(seen, References(train=references, heldout=None, impostors=None))
    return np.asarray(values, dtype=np.float64)


def reference(bank: EncoderBank, metric: str, images: Sequence[Pixels]) -> Features:
    """What the metric compares with."""
    return bank.features(images, texts=None, needs=set(METRICS[metric].needs) - {"clip_text"})


def spearman(x: Sequence[float] | NDArray[np.float64], y: Sequence[float] | NDArray[np.float64]) -> float:
    """Rank correlation of the pairs that are finite."""
    from scipy.stats import spearmanr

    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    there = np.isfinite(a) & np.isfinite(b)
    return float(spearmanr(a[there], b[there]).statistic)


def auc(higher: NDArray[np.float64], lower: NDArray[np.float64]) -> float:
    """Probability that one of ``higher`` exceeds one of ``lower`` (Mann and Whitney's U over the pairs)."""
    from scipy.stats import mannwhitneyu

    a, b = higher[np.isfinite(higher)], lower[np.isfinite(lower)]
    if not len(a) or not len(b):
        return float("nan")
    return float(mannwhitneyu(a, b).statistic / (len(a) * len(b)))


def ask_identity(bank: EncoderBank, people: int) -> list[Answer]:
    """Does similarity fall as the person turns into another of the same noun?"""
    correlations, curves = [], []
    for k in range(people):
        near, far = person(k), person(k + 2 * people)  # of the same noun, since the offset is even
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
    mean = np.nanmean(np.array(curves), axis=0)
    return [
        answer(
            "similarity",
            "falls as the face's parameters move to another person's",
            "rank correlation with the parameters' distance, sign turned",
            correlations,
            {f"{t:.3f}": float(v) for t, v in zip(LEVELS, mean, strict=True)},
        )
    ]


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
    found = []
    for slot in slots:
        means = {value: float(np.nanmean(lost)) for value, lost in table[slot].items()}
        worst = max(means, key=lambda value: means[value])
        found.append(
            answer(
                "similarity",
                f"is indifferent to {slot} (worst phrase: {worst})",
                "likeness lost, as a share of the way to another person",
                table[slot][worst],
                means,
            )
        )
    return found


def ask_quality(bank: EncoderBank, sets: int, size: int = 40) -> list[Answer]:
    """Do aesthetics follow the quality that was drawn, and the world's own rating?"""
    by_quality, by_rating = [], []
    for k in range(sets):
        drawn = [world.draw_portrait(FIRST_PERSON + 10_000 + size * k + i) for i in range(size)]
        values = scores(bank, "aesthetics", [one.image for one in drawn], _none(bank, drawn[0].image))
        by_quality.append(spearman([one.scene.quality for one in drawn], values))
        by_rating.append(spearman([one.rating for one in drawn], values))
    text = "rank correlation in sets of random portraits"
    return [
        answer("aesthetics", "follows the drawn quality", text, by_quality),
        answer("aesthetics", "follows the world's rating", text, by_rating),
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
            curve.append(float(scores(bank, "diversity", pictures, _none(bank, pictures[0])).mean()))
        correlations.append(spearman(range(len(free) + 1), curve))
        curves.append(curve)
    mean = np.array(curves).mean(axis=0)
    return [
        answer(
            "diversity",
            "grows with the number of slots that vary",
            "rank correlation with that number",
            correlations,
            {str(m): float(v) for m, v in enumerate(mean)},
        )
    ]


def ask_copies(bank: EncoderBank, people: int) -> list[Answer]:
    """Are slightly changed copies of training pictures told from new pictures of the same person?"""
    found = []
    for name, change in COPIES.items():
        values = []
        for k in range(people):
            known = photos(person(k), 1000 * k, REFERENCES)
            base = reference(bank, "memorisation", known)
            copied = [change(image, np.random.default_rng([k, i])) for i, image in enumerate(known)]
            fresh = photos(person(k), 6_000_000 + 1000 * k, REFERENCES)
            values.append(
                auc(scores(bank, "memorisation", copied, base), scores(bank, "memorisation", fresh, base))
            )
        found.append(
            answer("memorisation", f"finds planted copies ({name})", "AUC against new pictures", values)
        )
    return found


def ask_faces(bank: EncoderBank, people: int, each: int = 4) -> list[Answer]:
    """Is a face found where it is drawn well, and missed where it is spoilt?"""
    kinds = list(dict.fromkeys(phrase.value for phrase in SLOTS["quality"]))
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    for k in range(people):
        for kind in kinds:
            pictures = photos(person(k), 4_000_000 + 1000 * k, each, quality=kind)
            rates[kind].append(float(scores(bank, "face_rate", pictures, _none(bank, pictures[0])).mean()))
    return [answer("face_rate", f"quality: {kind}", "share of faces found", rates[kind]) for kind in kinds]


def ask_words(
    bank: EncoderBank, sets: int, size: int = 24, slots: Sequence[str] = tuple(SLOTS)
) -> list[Answer]:
    """Does the true caption score higher than one with a single slot told wrongly?"""
    right: dict[str, list[float]] = {slot: [] for slot in slots}
    for k in range(sets):
        drawn = [world.draw_portrait(FIRST_PERSON + 50_000 + size * k + i, clean=True) for i in range(size)]
        images, rng = [one.image for one in drawn], np.random.default_rng([k, 23])
        base = _none(bank, images[0])
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
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=60)
    return np.asarray(Image.open(buffer).convert("RGB")).copy()


def _shifted(image: Pixels, rng: np.random.Generator) -> Pixels:
    return np.roll(image, (int(rng.integers(1, 3)), int(rng.integers(1, 3))), axis=(0, 1))


COPIES: dict[str, Callable[[Pixels, np.random.Generator], Pixels]] = {
    "noise of 8 grey levels": _noisy,
    "JPEG at quality 60": _jpeg,
    "moved by 1 or 2 pixels": _shifted,
}


def _none(bank: EncoderBank, image: Pixels) -> Features:
    """A reference for metrics that need none."""
    return bank.features([image], texts=None, needs=set())


def study(people: int = 20) -> list[Answer]:
    """All questions, about ``people`` people (two or more)."""
    from diffusion_lab.config import Metrics
    from diffusion_lab.encoders.bank import EncoderBank

    bank = EncoderBank(Metrics(encoders="miniature"))
    answers: list[Answer] = []
    for ask in (ask_identity, ask_scene, ask_quality, ask_variety, ask_copies, ask_faces, ask_words):
        answers += ask(bank, people)
        print(f"{ask.__name__}: done", flush=True)
    return answers


def table(answers: Sequence[Answer]) -> str:
    """The answers as a Markdown table."""
    rows = ["| metric | question | statistic | mean | 95 % interval | n |", "|---|---|---|---|---|---|"]
    rows += [
        f"| `{a.metric}` | {a.question} | {a.statistic} | {a.mean:.3f} | {a.low:.3f} to {a.high:.3f} | {a.n} |"
        for a in answers
    ]
    return "\n".join(rows) + "\n"


def main() -> None:
    """Command line: ask, write, show."""
    parser = argparse.ArgumentParser(description="Ask the metrics about a world whose truth is known.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--people", type=int, default=20)
    asked = parser.parse_args()
    answers = study(asked.people)
    asked.folder.mkdir(parents=True, exist_ok=True)
    plain: list[dict[str, Any]] = [asdict(one) for one in answers]
    (asked.folder / "trust.json").write_text(json.dumps(plain, indent=1) + "\n")
    (asked.folder / "trust.md").write_text(table(answers))
    print(table(answers))


if __name__ == "__main__":
    main()
