"""What an interval promises: of many simulated evaluations 95 % have the truth inside, for every metric and size.

The truth is the value of a sample of thousands of images; of FID and Vendi, which depend on the number of images, it is
the mean over all draws of the same size, which is what their notes say. An interval may be None. Shares are discrete:
their coverage is computed exactly in `tests/analysis/test_shares.py`; here one share is drawn.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from diffusion_lab.analysis.intervals import BOUNDS
from diffusion_lab.evaluation.metrics import METRICS
from diffusion_lab.evaluation.metrics.distances import kid
from diffusion_lab.evaluation.metrics.summaries import of_images
from diffusion_lab.records import Features, Metric, Prompt, References, Summary

SIZES = (2, 3, 5, 10, 40, 100)  # prompts
NONE_BELOW = {"diversity": 3, "kid": 3, "kid_clip": 3, "fid": 3, "fid_clip": 3, "vendi": 4, "face_rate": 5}
BIASED = {"fid", "fid_clip", "vendi"}
KINDS = {
    "prompt_similarity": "edits", "prompt_baseline": "class", "class_drift": "class", "class_leak": "class"
}  # fmt: skip
FACES = 0.8


def unit(rows: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True)).float()


class World:
    """Embeddings around a subject's direction: what a prompt adds, and what the noise of each image adds."""

    d = 16

    def __init__(self) -> None:
        self.rng = np.random.default_rng(7)
        self.subject, self.word = self.rng.normal(size=(2, self.d)) / 4
        self.references = References(
            train=self.images(8), heldout=self.images(4), impostors=self.images(6, shift=0.7)
        )

    def images(self, n: int, each: int = 1, *, shift: float = 0.0, texts: bool = True) -> Features:
        """n prompts with ``each`` images; the images of a prompt one after another."""
        total, rng = n * each, self.rng

        def around(prompt: float, noise: float) -> np.ndarray:
            rows = self.subject + shift * self.word
            rows = rows + (prompt * rng.normal(size=(n, self.d)) / 4).repeat(each, axis=0)
            return np.asarray(rows + noise * rng.normal(size=(total, self.d)) / 4)

        face = unit(around(0.4, 0.5))
        if texts:
            face[torch.from_numpy(rng.random(total) >= FACES)] = torch.nan
        clip = around(0.5, 0.4)
        ratings = 5.5 + (0.8 * rng.normal(size=n)).repeat(each) + 0.6 * rng.normal(size=total)
        inception = np.abs(np.tile(around(0.5, 0.6), 2) + 0.3 * rng.normal(size=(total, 2 * self.d)))
        return Features(
            n=total,
            face=face,
            clip_image=unit(clip),
            clip_text=unit(0.5 * clip + self.word + 0.3 * rng.normal(size=clip.shape)),
            aesthetics=torch.from_numpy(ratings).float(),
            dino=unit(around(0.6, 0.6)),
            inception=torch.from_numpy(inception).float(),
        )

    def evaluation(self, n: int, kind: str) -> tuple[Features, References, list[int]]:
        """Images of n prompts, what they are compared with, and each one's prompt."""
        each = 2 if kind == "class" else 1
        edit, said = "forest" if kind == "edits" else "", "without" if kind == "class" else "with"
        found = self.images(n, each)
        ids = np.arange(n).repeat(each).tolist()
        prompts = tuple(Prompt(f"p{i}", f"{i}", f"{i}", {"edit": edit, "identifier": said}) for i in ids)
        found = replace(found, prompts=prompts)
        assert found.clip_image is not None
        references = self.references
        if kind == "edits":
            without = self.twins(found)
            references = replace(references, without=replace(without, prompts=prompts))
        if kind == "class":
            references = replace(references, base=self.twins(found))
        return found, references, ids

    def twins(self, images: Features) -> Features:
        """Other images of the same prompts."""
        assert images.clip_image is not None
        noise = torch.from_numpy(0.2 * self.rng.normal(size=images.clip_image.shape))
        return Features(n=images.n, clip_image=unit((images.clip_image.double() + noise).numpy()))


def summary_of(metric: str, generated: Features, references: References, ids: list[int]) -> Summary:
    measure = METRICS[metric]
    if isinstance(measure, Metric):
        return of_images(measure, measure(generated, references), generated, references, ids)
    return measure.summary(generated, references, ids)


def drawn(metrics: list[str], n: int, count: int, seed: int = 1) -> dict[str, list[Summary]]:
    """Summaries of ``count`` simulated evaluations of n prompts; metrics of one kind share their images."""
    world = World()
    world.rng = np.random.default_rng([seed, n])
    kinds: dict[str, list[str]] = {}
    for name in metrics:
        kinds.setdefault(KINDS.get(name, "subject"), []).append(name)
    found: dict[str, list[Summary]] = {name: [] for name in metrics}
    for _ in range(count):
        for kind, names in kinds.items():
            seen = world.evaluation(n, kind)
            for name in names:
                found[name].append(summary_of(name, *seen))
    return found


@cache
def truth(metric: str) -> tuple[float, float | None]:
    """Mean, and mean with an image without a face counted 0, of a sample of thousands of images."""
    world = World()
    world.rng = np.random.default_rng(99)
    seen = world.evaluation(4000, KINDS.get(metric, "subject"))
    measure = METRICS[metric]
    if not isinstance(measure, Metric):
        return kid_of(metric, *seen[:2]), None
    values = measure(*seen[:2]).double()
    return float(values.nanmean()), float(values.nan_to_num(0).mean())


def kid_of(metric: str, generated: Features, references: References) -> float:
    field = "clip_image" if metric == "kid_clip" else "inception"
    x, y = getattr(generated, field), getattr(references.train, field)
    factor = x.shape[1] ** 0.5 if field == "clip_image" else 1.0
    return kid(x.double() * factor, y.double() * factor)


def judge(name: str, n: int, found: list[Summary]) -> list[str]:
    """What is wrong with these intervals; nothing, if all is well."""
    low, high, bounds = 0.90, 0.98, BOUNDS.get(METRICS[name].unit, (None, None))
    wrong = []
    if name in BIASED:
        true, true_penalised = float(np.mean([s.mean for s in found if s.mean is not None])), None
    else:
        true, true_penalised = truth(name)
    for what, value, limits in (
        ("mean", true, [(s.low, s.high) for s in found]),
        ("penalised", true_penalised, [(s.penalised_low, s.penalised_high) for s in found]),
    ):
        known = [(a, b) for a, b in limits if a is not None and b is not None]
        if what == "mean" and n < NONE_BELOW.get(name, 2) and known:
            wrong.append(f"{name}, n={n}: an interval of too few")
        if not known or value is None:
            continue
        share, noise = np.mean([a <= value <= b for a, b in known]), 2 / math.sqrt(len(known))
        if not low - noise * 0.30 <= share <= high + noise * 0.14:  # standard deviations at .90 and at .98
            wrong.append(f"{name}, n={n}: the {what}'s covers {share:.3f} of {len(known)}")
        if any(a > b or a == b for a, b in known):
            wrong.append(f"{name}, n={n}: the {what}'s has no width")
        for k, bound in enumerate(bounds):
            if bound is not None and any((x[k] - bound) * (1, -1)[k] < 0 for x in known):
                wrong.append(f"{name}, n={n}: the {what}'s leaves the metric's range")
    for s in found:
        if s.mean is not None and s.low is None and not s.note:
            wrong.append(f"{name}, n={n}: no interval, and no word why")
    return wrong


NAMES = [name for name in METRICS if name != "fid_legacy"]
DEAR = ("vendi", "fid", "fid_clip")  # computed again for every group of prompts


def test_every_metric_is_simulated() -> None:
    assert {*NAMES, "fid_legacy"} == set(METRICS)
    assert set(NONE_BELOW) <= set(NAMES)


@pytest.mark.parametrize("n", SIZES)
def test_intervals_cover_the_truth(n: int) -> None:
    found = drawn([name for name in NAMES if name not in DEAR], n, 400 if n < 40 else 200)
    assert [text for name, summaries in found.items() for text in judge(name, n, summaries)] == []


@pytest.mark.parametrize("n", SIZES)
def test_intervals_of_biased_numbers_cover_their_mean(n: int) -> None:
    found = drawn(list(DEAR), n, 200 if n < 10 else 100)
    assert [text for name, summaries in found.items() for text in judge(name, n, summaries)] == []


@pytest.mark.slow
@pytest.mark.parametrize("n", SIZES)
def test_intervals_cover_the_truth_more_exactly(n: int) -> None:
    found = drawn([name for name in NAMES if name not in DEAR], n, 3000, seed=2)
    assert [text for name, summaries in found.items() for text in judge(name, n, summaries)] == []
