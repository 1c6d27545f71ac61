"""Every metric against plain loops over NumPy rows, and the properties its definition promises."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_lab.config.schema import Metrics
from diffusion_lab.evaluation.metrics import METRICS, select
from diffusion_lab.evaluation.metrics.diversity import diversity
from diffusion_lab.records import Features, Metric, References, UserError

MakeFeatures = Callable[..., Features]
ALL = sorted(Metrics().names)  # one value an image each; the others have files of their own


def rows(tensor: torch.Tensor | None) -> list[np.ndarray]:
    assert tensor is not None
    return list(tensor.double().numpy())


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(
        sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(a * a)) / math.sqrt(sum(b * b))
    )


def mean(values: list[float]) -> float:
    values = [value for value in values if not math.isnan(value)]
    return sum(values) / len(values) if values else math.nan


def by_loops(name: str, g: Features, r: References) -> list[float]:
    """The definitions of the protocol, written as a reader would."""
    assert r.heldout is not None
    if name == "similarity":
        return [mean([cosine(x, t) for t in rows(r.train.face)]) for x in rows(g.face)]
    if name == "similarity_heldout":
        return [mean([cosine(x, t) for t in rows(r.heldout.face)]) for x in rows(g.face)]
    if name == "face_rate":
        return [0.0 if any(math.isnan(v) for v in x) else 1.0 for x in rows(g.face)]
    if name == "aesthetics":
        assert g.aesthetics is not None
        return [value / 10 for value in g.aesthetics.tolist()]
    images = rows(g.clip_image)
    if name == "diversity":
        return [
            mean([1 - cosine(x, y) for j, y in enumerate(images) if j != i]) for i, x in enumerate(images)
        ]
    if name == "clip_text":
        return [cosine(x, t) for x, t in zip(images, rows(g.clip_text), strict=True)]
    cosines = [[cosine(x, t) for t in rows(r.train.clip_image)] for x in images]
    return [{"clip_image": mean, "memorisation": max}[name](row) for row in cosines]


@pytest.mark.parametrize("name", ALL)
def test_equals_plain_loops(name: str, features: MakeFeatures, references: References) -> None:
    generated = features(7, 4, without_face=(0, 5))
    values = METRICS[name](generated, references)
    assert values.dtype == torch.float32
    assert values.shape == (7,)
    np.testing.assert_allclose(values.numpy(), by_loops(name, generated, references), atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_is_a_metric_with_a_definition(name: str) -> None:
    metric = METRICS[name]
    assert isinstance(metric, Metric)
    assert metric.name == name
    assert metric.version
    assert metric.label
    assert metric.unit
    assert set(metric.needs) <= {"face", "face_found", "clip_image", "clip_text", "aesthetics"}
    assert metric.pairwise <= {"values", "ceiling"}
    assert metric.higher_is_better == (name != "memorisation")


@pytest.mark.parametrize("name", ALL)
def test_order_of_images_and_photographs_changes_nothing(
    name: str, features: MakeFeatures, references: References
) -> None:
    generated = features(7, 4, without_face=(0, 5))
    order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
    shuffled = _take(generated, order)
    turned = References(
        train=_take(references.train, torch.tensor([4, 3, 2, 1, 0])),
        heldout=_take(references.heldout, torch.tensor([2, 0, 1])),  # type: ignore[arg-type]
        impostors=references.impostors,
    )
    before, after = METRICS[name](generated, references), METRICS[name](shuffled, turned)
    torch.testing.assert_close(before[order], after, equal_nan=True)


@pytest.mark.parametrize("name", [name for name in ALL if name != "diversity"])
def test_a_value_does_not_depend_on_the_other_images(
    name: str, features: MakeFeatures, references: References
) -> None:
    generated = features(9, 5, without_face=(1,))
    together = METRICS[name](generated, references)
    alone = torch.cat([METRICS[name](_take(generated, torch.tensor([i])), references) for i in range(9)])
    assert torch.equal(together.nan_to_num(-9), alone.nan_to_num(-9))


def _take(features: Features, order: torch.Tensor) -> Features:
    def pick(tensor: torch.Tensor | None) -> torch.Tensor | None:
        return None if tensor is None else tensor[order]

    return Features(
        n=len(order),
        face=pick(features.face),
        clip_image=pick(features.clip_image),
        clip_text=pick(features.clip_text),
        aesthetics=pick(features.aesthetics),
    )


# --- without faces ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["similarity", "similarity_heldout"])
def test_an_image_without_a_face_has_no_value(
    name: str, features: MakeFeatures, references: References
) -> None:
    values = METRICS[name](features(4, 6, without_face=(1, 3)), references)
    assert values.isnan().tolist() == [False, True, False, True]


def test_a_subject_without_a_face(features: MakeFeatures) -> None:
    """A dog: nothing to compare, and nothing fails."""
    nobody = features(3, 1, without_face=(0, 1, 2))
    references = References(train=nobody, heldout=nobody, impostors=features(2, 2))
    for name in ("similarity", "similarity_heldout"):
        assert METRICS[name](features(4, 3), references).isnan().all()
        assert METRICS[name].ceiling(references) is None
        assert METRICS[name].impostor(references) is None
    assert METRICS["face_rate"](nobody, references).tolist() == [0, 0, 0]
    ceiling = METRICS["face_rate"].ceiling(references)
    assert ceiling is not None
    assert ceiling.tolist() == [0] * 6


def test_no_held_out_pictures(features: MakeFeatures) -> None:
    alone = References(train=features(4, 1), heldout=None, impostors=None)
    generated = features(3, 2)
    for name in ALL:
        METRICS[name](generated, alone)
        METRICS[name].ceiling(alone)
        assert METRICS[name].impostor(alone) is None
    assert METRICS["similarity_heldout"](generated, alone).isnan().all()
    assert METRICS["similarity_heldout"].ceiling(alone) is None
    assert METRICS["memorisation"].ceiling(alone) is None


def test_no_aesthetics_head(features: MakeFeatures) -> None:
    bare = replace(features(3, 1), aesthetics=None)
    metric = METRICS["aesthetics"]
    assert metric(bare, References(train=bare, heldout=None, impostors=None)).isnan().tolist() == [True] * 3
    assert metric.ceiling(References(train=bare, heldout=None, impostors=None)) is None


# --- ceilings and impostors --------------------------------------------------------------------------


def leave_one_out_loops(photographs: list[np.ndarray]) -> list[float]:
    return [
        math.nan if math.isnan(x[0]) else mean([cosine(x, y) for j, y in enumerate(photographs) if j != i])
        for i, x in enumerate(photographs)
    ]


def test_similarity_ceilings_leave_the_picture_itself_out(references: References) -> None:
    train, heldout = (
        METRICS["similarity"].ceiling(references),
        METRICS["similarity_heldout"].ceiling(references),
    )
    assert train is not None
    assert heldout is not None
    assert references.heldout is not None
    np.testing.assert_allclose(train.numpy(), leave_one_out_loops(rows(references.train.face)), atol=1e-6)
    np.testing.assert_allclose(heldout.numpy(), leave_one_out_loops(rows(references.heldout.face)), atol=1e-6)
    assert train.isnan().tolist() == [False, False, True, False, False]  # counted, not dropped


def test_a_single_held_out_picture_is_held_against_the_training_pictures(
    features: MakeFeatures, references: References
) -> None:
    single = features(1, 8)
    ceiling = METRICS["similarity_heldout"].ceiling(replace(references, heldout=single))
    assert ceiling is not None
    expected = mean([cosine(rows(single.face)[0], t) for t in rows(references.train.face)])
    assert ceiling.tolist() == pytest.approx([expected], abs=1e-6)


def test_other_ceilings(references: References) -> None:
    r, heldout = references, references.heldout
    assert heldout is not None
    photographs = rows(r.train.clip_image) + rows(heldout.clip_image)
    expected = {
        "clip_image": leave_one_out_loops(rows(r.train.clip_image)),
        "diversity": [1 - value for value in leave_one_out_loops(photographs)],
        "memorisation": [
            max(cosine(x, t) for t in rows(r.train.clip_image)) for x in rows(heldout.clip_image)
        ],
        "aesthetics": [v / 10 for part in (r.train, heldout) for v in part.aesthetics.tolist()],  # type: ignore[union-attr]
        "face_rate": [1, 1, 0, 1, 1, 1, 1, 1],
    }
    for name, values in expected.items():
        ceiling = METRICS[name].ceiling(r)
        assert ceiling is not None
        np.testing.assert_allclose(ceiling.numpy(), values, atol=1e-6)
    assert METRICS["clip_text"].ceiling(r) is None


def test_impostors_are_scored_like_images(references: References) -> None:
    """The impostor line is the metric itself on other subjects' photographs."""
    assert references.impostors is not None
    for name in ("similarity", "similarity_heldout", "clip_image", "memorisation"):
        line = METRICS[name].impostor(references)
        assert line is not None
        assert torch.equal(line, METRICS[name](references.impostors, references))
    for name in ("face_rate", "aesthetics", "diversity", "clip_text"):
        assert METRICS[name].impostor(references) is None


# --- properties --------------------------------------------------------------------------------------

clouds = st.tuples(st.integers(2, 9), st.integers(2, 6), st.integers(0, 2**32 - 1))


@settings(max_examples=40, deadline=None)
@given(clouds)
def test_bounds(cloud: tuple[int, int, int]) -> None:
    n, d, seed = cloud
    points = torch.from_numpy(np.random.default_rng(seed).normal(size=(n, d)))
    points = (points / points.norm(dim=1, keepdim=True)).float()
    found = Features(n=n, face=points, clip_image=points, clip_text=points, aesthetics=torch.full((n,), 10.0))
    references = References(train=found, heldout=found, impostors=None)
    for name in ("similarity", "similarity_heldout", "clip_image", "clip_text", "memorisation"):
        assert METRICS[name](found, references).abs().max() <= 1 + 1e-6
    spread = METRICS["diversity"](found, references)
    assert spread.min() >= -1e-6
    assert spread.max() <= 2 + 1e-6
    torch.testing.assert_close(
        METRICS["memorisation"](found, references), torch.ones(n)
    )  # each is its own copy


@settings(max_examples=40, deadline=None)
@given(clouds, st.integers(0, 2))
def test_cosines_know_no_axes_and_no_faceless_photographs(cloud: tuple[int, int, int], blank: int) -> None:
    """All embeddings turned together: the same scores. Photographs without a face: as if they were not there."""
    n, d, seed = cloud
    generator = np.random.default_rng(seed)
    turn = torch.linalg.qr(torch.from_numpy(generator.normal(size=(d, d)))).Q

    def features(rows: torch.Tensor) -> Features:
        rows = rows.float()
        return Features(n=len(rows), face=rows, clip_image=rows, clip_text=rows, dino=rows)

    def unit(count: int) -> torch.Tensor:
        rows = torch.from_numpy(generator.normal(size=(count, d)))
        return rows / rows.norm(dim=1, keepdim=True)

    def against(rows: torch.Tensor) -> References:
        return References(train=features(rows), heldout=features(rows), impostors=None)

    x, y = unit(n), unit(4)
    padded = torch.cat([y, torch.full((blank, d), torch.nan, dtype=y.dtype)])
    for name in ("similarity", "similarity_heldout", "clip_image", "memorisation", "dino"):
        metric = METRICS[name]
        assert isinstance(metric, Metric)
        plain = metric(features(x), against(y))
        turned = metric(features(x @ turn), against(y @ turn))
        torch.testing.assert_close(plain, turned, atol=1e-5, rtol=0)
        with_blank = metric(features(x), against(padded))
        torch.testing.assert_close(plain, with_blank, atol=1e-6, rtol=0)
        back = metric(features(y), against(x))
        if name != "memorisation":  # a mean over all pairs is the same from either side
            torch.testing.assert_close(plain.double().mean(), back.double().mean(), atol=1e-5, rtol=0)


@settings(max_examples=40, deadline=None)
@given(clouds)
def test_copies_lower_diversity(cloud: tuple[int, int, int]) -> None:
    n, d, seed = cloud
    points = torch.from_numpy(np.random.default_rng(seed).normal(size=(n, d)))
    assert diversity(torch.cat([points, points])).mean() <= diversity(points).mean() + 1e-6
    copies = points[:1].expand(5, d)
    torch.testing.assert_close(diversity(copies), torch.zeros(5))


@settings(max_examples=40, deadline=None)
@given(clouds, st.floats(0.01, 100))
def test_diversity_ignores_length(cloud: tuple[int, int, int], factor: float) -> None:
    n, d, seed = cloud
    points = torch.from_numpy(np.random.default_rng(seed).normal(size=(n, d)))
    torch.testing.assert_close(diversity(points * factor), diversity(points))


def test_opposite_images_are_as_diverse_as_can_be() -> None:
    assert diversity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])).tolist() == [2, 2]


@pytest.mark.parametrize(
    "points", [torch.ones(1, 3), torch.tensor([[1.0, 0], [0, 0]]), torch.tensor([[1.0, 0], [torch.nan, 0]])]
)
def test_diversity_of_one_or_of_nothing_is_an_error(points: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="diversity"):
        diversity(points)


def test_diversity_agrees_with_torchmetrics() -> None:
    from torchmetrics.functional.pairwise import pairwise_cosine_similarity

    points = torch.from_numpy(np.random.default_rng(0).normal(size=(20, 8)))
    cosines = pairwise_cosine_similarity(points, zero_diagonal=True)
    torch.testing.assert_close(diversity(points).double(), 1 - cosines.sum(1) / 19, atol=1e-6, rtol=0)


# --- the table ---------------------------------------------------------------------------------------


def test_select() -> None:
    assert [metric.name for metric in select(["diversity", "similarity", "diversity"])] == [
        "diversity",
        "similarity",
    ]
    with pytest.raises(UserError, match=r"metrics\.names.*likeness.*similarity"):
        select(["likeness"])


def test_the_default_configuration_names_every_metric() -> None:
    from diffusion_lab.config.schema import Metrics

    assert sorted(Metrics().names) == ALL


def test_importing_the_table_does_not_import_torch() -> None:
    code = "import sys, diffusion_lab.evaluation.metrics; print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"
