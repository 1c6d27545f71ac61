"""One evaluation from prompts to summaries, with the real encoders' classes on a real, tiny pipeline."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from diffusion_lab.config.schema import Metrics, Prompts
from diffusion_lab.evaluation.encoders.bank import EncoderBank
from diffusion_lab.evaluation.evaluate import (
    evaluate,
    reference_features,
    reference_scores,
    score,
    without_face,
)
from diffusion_lab.evaluation.metrics import METRICS, select
from diffusion_lab.records import Features, Prompt, PromptSet, References, Subject, UserError
from diffusion_lab.sampling.sample import plan, sample

MakeFeatures = Callable[..., Features]
PROMPTS = PromptSet(
    name="two",
    prompts=(
        Prompt("p000", "a photo of customcls dog", "a photo of a dog", {"place": "in the photo"}),
        Prompt("p001", "portrait of customcls dog", "portrait of a dog", {"place": ""}),
    ),
    negative="blurry",
    sha256="",
)
DEFAULT = Metrics().names
SETTINGS = Prompts(n=2, images_per_prompt=2, sampling_steps=2, batch_size=3)


@pytest.fixture(scope="module")
def bank() -> EncoderBank:
    return EncoderBank(Metrics(batch_size=3))


@pytest.fixture
def seen(bank: EncoderBank, tiny_subject: Subject) -> References:
    return reference_features(tiny_subject, bank, 64)


def test_rows_and_summaries(tiny_pipe: Any, bank: EncoderBank, seen: References) -> None:
    found = evaluate(tiny_pipe, PROMPTS, seen, bank, SETTINGS, 30)
    assert found.step == 30
    assert len(found.images) == 4
    assert all(
        a.tolist() == b.tolist()
        for a, b in zip(found.images, sample(tiny_pipe, PROMPTS, SETTINGS), strict=True)
    )
    assert sorted(found.summaries) == sorted(DEFAULT)
    assert set(found.seconds) == {"sampling", "encoding", "metrics"}
    assert len(found.rows) == 4 * len(DEFAULT)
    planned = plan(PROMPTS, SETTINGS)
    for name, metric in zip(DEFAULT, select(DEFAULT), strict=True):
        rows = [row for row in found.rows if row.metric == name]
        assert [(row.prompt_id, row.index, row.seed) for row in rows] == [
            (item.prompt.id, item.index, item.seed) for item in planned
        ]
        assert {(row.step, row.version) for row in rows} == {(30, metric.version)}
        assert [dict(row.slots) for row in rows] == [dict(item.prompt.slots) for item in planned]
        there = [row.value for row in rows if row.value is not None]
        summary = found.summaries[name]
        assert (summary.n, summary.missing) == (len(there), 4 - len(there))
        if there:
            assert summary.mean == pytest.approx(sum(there) / len(there), abs=1e-6)
    assert found.summaries["aesthetics"].n == 4


def test_twice_the_same_bits(tiny_pipe: Any, bank: EncoderBank, seen: References) -> None:
    torch.manual_seed(1)
    first = evaluate(tiny_pipe, PROMPTS, seen, bank, SETTINGS, 0)
    torch.manual_seed(2)
    again = evaluate(tiny_pipe, PROMPTS, seen, bank, SETTINGS, 0)
    assert first.rows == again.rows
    assert first.summaries == again.summaries


def test_leaves_training_as_it_was(tiny_pipe: Any, seen: References) -> None:
    """Also with a fresh bank, whose networks are initialised at random before their weights are read."""
    tiny_pipe.unet.train()
    modes = [part.training for part in tiny_pipe.unet.modules()]
    scheduler, config = tiny_pipe.scheduler, dict(tiny_pipe.scheduler.config)
    grads = [parameter.requires_grad for parameter in tiny_pipe.unet.parameters()]
    streams = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    evaluate(tiny_pipe, PROMPTS, seen, EncoderBank(Metrics()), SETTINGS, 0)
    assert [part.training for part in tiny_pipe.unet.modules()] == modes
    assert tiny_pipe.scheduler is scheduler
    assert dict(scheduler.config) == config
    assert [parameter.requires_grad for parameter in tiny_pipe.unet.parameters()] == grads
    assert all(parameter.grad is None for parameter in tiny_pipe.unet.parameters())
    assert random.getstate() == streams[0]
    assert np.array_equal(np.random.get_state()[1], streams[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), streams[2])


def test_photographs_are_seen_at_the_models_resolution(bank: EncoderBank, tiny_subject: Subject) -> None:
    """A photograph enlarged fourfold is the same reference, as it is reduced again before it is looked at."""
    big = tuple(
        replace(picture, pixels=picture.pixels.repeat(4, axis=0).repeat(4, axis=1))
        for picture in tiny_subject.train
    )
    small = reference_features(tiny_subject, bank, 32).train.clip_image
    large = reference_features(replace(tiny_subject, train=big), bank, 32).train.clip_image
    assert small is not None
    assert large is not None
    assert (small * large).sum(1).min() > 0.97


def test_one_image_is_refused_before_it_is_drawn(tiny_pipe: Any, bank: EncoderBank, seen: References) -> None:
    single = replace(PROMPTS, prompts=PROMPTS.prompts[:1])
    tiny_pipe.unet = None  # drawing would fail
    with pytest.raises(UserError, match=r"prompts\.n.*diversity"):
        evaluate(tiny_pipe, single, seen, bank, Prompts(n=1), 0)


def test_mixed_faces(features: MakeFeatures, references: References) -> None:
    generated = features(4, 9, without_face=(1,))
    rows, summaries = score(
        generated, references, select(["similarity", "face_rate"]), plan(PROMPTS, SETTINGS), 5
    )
    assert [row.value is None for row in rows] == [False, True, False, False] + [False] * 4
    similarity = summaries["similarity"]
    assert (similarity.n, similarity.missing) == (3, 1)
    assert similarity.mean is not None
    values = [row.value for row in rows[:4] if row.value is not None]
    line = METRICS["similarity"].impostor(references)
    assert line is not None
    assert similarity.imputed == pytest.approx(min(0.0, float(line.double().mean()), similarity.mean))
    assert similarity.penalised == pytest.approx((sum(values) + similarity.imputed) / 4)
    assert similarity.penalised <= similarity.mean
    assert summaries["face_rate"].mean == 0.75
    assert summaries["face_rate"].penalised is None


def test_a_dog(features: MakeFeatures) -> None:
    nobody = features(4, 1, without_face=(0, 1, 2, 3))
    references = References(train=nobody, heldout=nobody, impostors=None)
    _, summaries = score(nobody, references, select(DEFAULT), plan(PROMPTS, SETTINGS), 0)
    for name in ("similarity", "similarity_heldout"):
        summary = summaries[name]
        assert (summary.mean, summary.n, summary.missing, summary.penalised) == (None, 0, 4, None)
    assert summaries["face_rate"].mean == 0
    assert summaries["clip_image"].n == 4
    assert without_face(references) == {"train": (4, 4), "heldout": (4, 4)}
    scores = reference_scores(references, select(DEFAULT))
    assert scores["similarity"] == {"ceiling": None, "impostor": None}
    assert scores["clip_image"]["ceiling"] is not None


def test_no_generated_face_at_all_counts_no_more_than_others_photographs(
    features: MakeFeatures, references: References
) -> None:
    generated = features(4, 1, without_face=(0, 1, 2, 3))
    _, summaries = score(generated, references, select(["similarity"]), plan(PROMPTS, SETTINGS), 0)
    line = METRICS["similarity"].impostor(references)
    assert line is not None
    nowhere = summaries["similarity"]
    assert (nowhere.mean, nowhere.penalised) == (None, pytest.approx(min(0.0, float(line.double().mean()))))


def test_reference_scores_count_photographs_without_a_face(references: References) -> None:
    scores = reference_scores(references, select(DEFAULT))
    ceiling = scores["similarity"]["ceiling"]
    assert ceiling is not None
    assert (ceiling.n, ceiling.missing) == (4, 1)
    assert without_face(references) == {"train": (1, 5), "heldout": (0, 3), "impostors": (0, 4)}


def test_pairs_have_the_larger_error(features: MakeFeatures, references: References) -> None:
    """Diversity's values share their pairs: at most the standard error of four values times 2 * 3 / 2 (the jackknife's),
    and well above the plain one.
    """
    generated = features(4, 3)
    planned = plan(replace(PROMPTS, prompts=PROMPTS.prompts * 2), Prompts(n=4))
    distinct = [replace(item, prompt=replace(item.prompt, id=f"p{i}")) for i, item in enumerate(planned)]
    _, summaries = score(generated, references, select(["diversity"]), distinct, 0)
    values = METRICS["diversity"](generated, references).double()
    jackknife = 3 * values.std().item() / math.sqrt(4)
    found = summaries["diversity"].standard_error
    assert found is not None
    assert 0.7**0.5 * jackknife - 1e-6 <= found <= jackknife + 1e-6


def test_progress_has_a_task_for_each_phase(tiny_pipe: Any, bank: EncoderBank, seen: References) -> None:
    from diffusion_lab.system.progress import Progress

    done: dict[str, int] = {}
    with Progress("off") as progress:
        real = progress.task

        def watched(name: str, total: int) -> Any:
            task = real(name, total)
            advance = task.advance

            def count(n: int = 1) -> None:
                done[name] = done.get(name, 0) + n
                advance(n)

            task.advance = count  # type: ignore[method-assign]
            return task

        progress.task = watched  # type: ignore[method-assign]
        evaluate(tiny_pipe, PROMPTS, seen, bank, SETTINGS, 0, progress=progress)
    assert done == {"sampling": 4, "encoding": 4}
