"""Metrics that run by wish only: sets, DINO, prompts with and without the identifier, the class."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion_lab.analysis.intervals import BOUNDS
from diffusion_lab.config.schema import Metrics
from diffusion_lab.evaluation.evaluate import _base_features, reference_scores, score
from diffusion_lab.evaluation.metrics import METRICS, NEEDS_TWINS, select
from diffusion_lab.evaluation.metrics.distances import frechet, kid
from diffusion_lab.records import Features, Metric, Prompt, References, SetMetric
from diffusion_lab.sampling.sample import PlannedImage

SETS = [name for name, metric in METRICS.items() if isinstance(metric, SetMetric)]
PLAIN, FOREST = "a photo of a dog", "a photo of a dog in a forest"


def rich(n: int, seed: int) -> Features:
    generator = np.random.default_rng(seed)

    def unit() -> torch.Tensor:
        return torch.nn.functional.normalize(torch.from_numpy(generator.normal(size=(n, 6))), dim=1).float()

    return Features(
        n=n,
        face=unit(),
        clip_image=unit(),
        clip_text=unit(),
        dino=unit(),
        inception=torch.from_numpy(generator.normal(1, 1, (n, 6))).float(),
    )


@pytest.fixture
def photographs() -> References:
    return References(train=rich(5, 1), heldout=rich(3, 2), impostors=rich(4, 3))


def planned(*texts: tuple[str, str, bool], each: int = 2) -> list[PlannedImage]:
    """(plain text, edit, with the identifier)."""
    found = []
    for number, (plain, edit, with_it) in enumerate(texts):
        slots = {"edit": edit, "identifier": "with" if with_it else "without"}
        text = plain.replace("a dog", "customcls dog") if with_it else plain
        found += [PlannedImage(Prompt(f"p{number}", text, plain, slots), i, i) for i in range(each)]
    return found


BOTH = planned((PLAIN, "", True), (FOREST, "forest", True), (PLAIN, "", False), (FOREST, "forest", False))


def test_each_is_one_of_two_kinds_and_none_is_on_by_default() -> None:
    assert set(SETS) == {"kid", "kid_clip", "fid", "fid_clip", "fid_legacy", "vendi"}
    for name, metric in METRICS.items():
        assert isinstance(metric, Metric) != isinstance(metric, SetMetric), name
        assert metric.name == name
        assert metric.version
        assert metric.label
        assert metric.unit
    assert not set(Metrics().names) & {*SETS, *NEEDS_TWINS, "dino"}


def test_dino_is_the_mean_over_all_pairs(photographs: References) -> None:
    generated = rich(3, 9)
    assert generated.dino is not None
    assert photographs.train.dino is not None
    expected = [np.mean([float(a @ b) for b in photographs.train.dino]) for a in generated.dino]
    metric = METRICS["dino"]
    assert isinstance(metric, Metric)
    np.testing.assert_allclose(metric(generated, photographs).numpy(), expected, atol=1e-6)
    ceiling = metric.ceiling(photographs)
    assert ceiling is not None
    assert len(ceiling) == 5


@pytest.mark.parametrize("name", SETS)
def test_sets_have_a_summary_and_no_rows(name: str, photographs: References) -> None:
    generated = rich(8, 4)
    prompts = planned(*[(f"a dog {i}", "", True) for i in range(4)])
    rows, summaries = score(generated, photographs, select([name, "clip_image"]), prompts, 3)
    assert {row.metric for row in rows} == {"clip_image"}
    summary = summaries[name]
    assert (summary.n, summary.missing) == (8, 0)
    assert summary.mean is not None
    if name == "fid_legacy":
        assert summary.low is None
        assert "can be negative" in (summary.note or "")
    else:
        assert summary.standard_error is not None
        assert summary.standard_error > 0
        assert summary.low is not None
        assert summary.high is not None
        assert summary.low < summary.mean < summary.high
    again = score(generated, photographs, select([name]), prompts, 3)[1][name]
    assert again == summary


def test_the_legacy_distance_is_of_logits_in_float32() -> None:
    """Identical sets of five images and a thousand classes: as published code had it, far below 0; exactly, 0."""
    rows = torch.from_numpy(np.random.default_rng(0).normal(size=(5, 1000))).float()
    same = replace(rich(5, 1), inception_logits=rows)
    references = References(train=same, heldout=None, impostors=None)
    prompts = planned(*[(f"a dog {i}", "", True) for i in range(5)], each=1)
    _, found = score(same, references, select(["fid", "fid_legacy"]), prompts, 0)
    assert found["fid"].mean == pytest.approx(0, abs=1e-9)
    assert found["fid_legacy"].mean is not None
    assert -60 < found["fid_legacy"].mean < -5
    assert found["fid_legacy"].low is None
    assert "of class logits" in (found["fid_legacy"].note or "")
    assert "in 1000 dimensions" in (found["fid_legacy"].note or "")
    _, without = score(rich(5, 1), replace(references, train=rich(5, 2)), select(["fid_legacy"]), prompts, 0)
    assert "the weights have no classifier" in (without["fid_legacy"].note or "")
    assert METRICS["fid_legacy"].version == "2"


def test_values_of_sets_are_the_functions_own(photographs: References) -> None:
    generated = rich(8, 4)
    _, found = score(generated, photographs, select(SETS), planned(*[("a dog", "", True)] * 4), 0)
    x, y = generated.inception, photographs.train.inception
    assert x is not None
    assert y is not None
    assert found["kid"].mean == pytest.approx(kid(x, y))
    assert found["fid"].mean == pytest.approx(frechet(x, y))
    a, b = generated.clip_image, photographs.train.clip_image
    assert a is not None
    assert b is not None
    assert found["kid_clip"].mean == pytest.approx(kid(a.double() * 6**0.5, b.double() * 6**0.5))
    assert "5 images in 6 dimensions: biased" in (found["fid"].note or "")


def test_sets_too_small_have_no_value_and_say_why(photographs: References) -> None:
    alone = replace(photographs, train=rich(1, 7))
    prompts = planned(*[("a dog", "", True)] * 4)
    for name in ("kid", "fid"):
        summary = score(rich(8, 4), alone, select([name]), prompts, 0)[1][name]
        assert summary.mean is None
        assert "two training photos" in (summary.note or "")
    lines = reference_scores(photographs, select(SETS))
    assert lines["vendi"] == {"ceiling": None, "impostor": None}
    ceiling, impostor = lines["kid"]["ceiling"], lines["kid"]["impostor"]
    assert ceiling is not None
    assert impostor is not None
    assert photographs.heldout is not None
    assert ceiling.mean == pytest.approx(kid(photographs.heldout.inception, photographs.train.inception))  # type: ignore[arg-type]


def test_one_prompt_gives_the_noise_and_says_so(photographs: References) -> None:
    for name in [*SETS, "diversity", "clip_image"]:
        prompts = planned(("a dog", "", True), each=8)
        summary = score(rich(8, 4), photographs, select([name]), prompts, 0)[1][name]
        assert summary.mean is not None
        if name == "fid_legacy":
            assert summary.low is None
            continue
        assert summary.low is not None
        assert summary.within_one_prompt
        assert "noise only" in (summary.note or "")


@pytest.mark.parametrize("name", [*SETS, "diversity", "face_rate"])
def test_two_images_of_two_prompts_have_no_interval(name: str, photographs: References) -> None:
    prompts = planned(("a dog", "", True), ("a cat", "", True), each=1)
    summary = score(rich(2, 4), photographs, select([name]), prompts, 0)[1][name]
    assert summary.mean is not None
    assert (summary.low, summary.high) == (None, None)
    assert "no interval" in (summary.note or "")


@pytest.mark.parametrize("name", [name for name in METRICS if name != "fid_legacy"])
def test_ceilings_and_impostors_stay_within_the_range_and_say_what_they_lack(
    name: str, photographs: References
) -> None:
    low, high = BOUNDS.get(METRICS[name].unit, (None, None))
    for summary in reference_scores(photographs, select([name]))[name].values():
        if summary is None:
            continue
        assert (summary.low is None) == (summary.high is None)
        assert summary.low is not None or "no interval" in (summary.note or "")
        if summary.low is not None and summary.high is not None:
            assert low is None or summary.low >= low
            assert high is None or summary.high <= high
            assert summary.low < summary.high


def test_the_papers_two_axes(photographs: References) -> None:
    generated = rich(8, 5)
    clip, targets = generated.clip_image, photographs.train.clip_image
    assert clip is not None
    assert targets is not None
    names = ["image_similarity", "prompt_similarity", "prompt_baseline"]
    rows, found = score(generated, photographs, select(names), BOTH, 0)
    by = {name: [row.value for row in rows if row.metric == name] for name in names}
    assert all(len(values) == 8 for values in by.values())
    cosines = clip @ clip.T
    np.testing.assert_allclose(by["image_similarity"][:2], (clip[:2] @ targets.T).mean(1), atol=1e-6)
    assert by["image_similarity"][2:] == [None] * 6
    np.testing.assert_allclose(by["prompt_similarity"][2:4], cosines[2:4, 6:8].mean(1), atol=1e-6)
    assert by["prompt_similarity"][:2] + by["prompt_similarity"][4:] == [None] * 6
    expected = [cosines[4, 5], cosines[5, 4], cosines[6, 7], cosines[7, 6]]
    np.testing.assert_allclose(by["prompt_baseline"][4:], expected, atol=1e-6)
    assert by["prompt_baseline"][:4] == [None] * 4
    assert (found["image_similarity"].n, found["prompt_similarity"].n, found["prompt_baseline"].n) == (
        2,
        2,
        4,
    )


def test_images_without_the_identifier_are_left_out_of_the_subjects_scores(photographs: References) -> None:
    generated = rich(8, 5)
    _, found = score(generated, photographs, select(["clip_image", "diversity"]), BOTH, 0)
    _, alone = score(rich(8, 5), photographs, select(["clip_image"]), planned(*[("a dog", "", True)] * 4), 0)
    assert found["clip_image"].n == found["diversity"].n == 4
    assert alone["clip_image"].n == 8
    assert found["clip_image"].mean != alone["clip_image"].mean


def test_class_drift_is_nothing_where_nothing_moved(photographs: References, tmp_path: Path) -> None:
    path = tmp_path / "base.safetensors"
    before, after = rich(8, 5), rich(8, 6)
    at_start = replace(photographs, base=_base_features(path, before, BOTH, 0))
    later = replace(photographs, base=_base_features(path, after, BOTH, 50))  # read back from the file
    names = ["class_drift", "class_leak"]
    start = score(before, at_start, select(names), BOTH, 0)[1]
    end = score(after, later, select(names), BOTH, 50)[1]
    assert start["class_drift"].mean == 0
    a, b, targets = before.clip_image, after.clip_image, photographs.train.clip_image
    assert a is not None
    assert b is not None
    assert targets is not None
    assert end["class_drift"].mean == pytest.approx(float((1 - (a[4:] * b[4:]).sum(1)).mean()), abs=1e-6)
    assert end["class_leak"].mean == pytest.approx(float((b[4:] @ targets.T).mean()), abs=1e-6)
    assert _base_features(tmp_path / "none", after, BOTH, 50) is None
    nothing = score(after, photographs, select(names), BOTH, 50)[1]["class_drift"]
    assert (nothing.mean, nothing.missing) == (None, 4)


def test_without_such_prompts_there_is_no_value_but_a_reason(photographs: References) -> None:
    prompts = planned(*[("a dog", "", True)] * 4)
    rows, found = score(rich(8, 5), photographs, select(["class_drift", "prompt_similarity"]), prompts, 0)
    assert found["class_drift"].mean is None
    assert "without the identifier" in (found["class_drift"].note or "")
    assert found["prompt_similarity"].mean is None
    assert found["prompt_similarity"].missing == 8
    assert {row.value for row in rows} == {None}
