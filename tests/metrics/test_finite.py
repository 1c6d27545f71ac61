"""One image that an encoder made nothing of: missing for the metrics that need it, named, and the rest goes on."""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from diffusion_lab.evaluation.evaluate import score
from diffusion_lab.evaluation.metrics import METRICS, select
from diffusion_lab.evaluation.metrics.finite import FIELDS, without_broken_rows
from diffusion_lab.records import Features, Prompt, References
from diffusion_lab.sampling.sample import PlannedImage

N = 8


def features(n: int, seed: int) -> Features:
    rng = np.random.default_rng(seed)

    def unit() -> torch.Tensor:
        return torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(n, 6))), dim=1).float()

    return Features(
        n=n, face=unit(), faces=torch.ones(n), clip_image=unit(), clip_text=unit(), dino=unit(),
        aesthetics=torch.from_numpy(rng.uniform(2, 8, n)).float(),
        inception=torch.from_numpy(rng.normal(1, 1, (n, 5))).float(),
        inception_logits=torch.from_numpy(rng.normal(1, 1, (n, 7))).float(),
    )  # fmt: skip


REFERENCES = References(
    train=features(4, 1), heldout=features(3, 2), impostors=features(3, 3), base=features(N // 2, 4)
)


def planned() -> list[PlannedImage]:
    """Two plain and two edit prompts with the identifier, and the same without; as many images as `N`."""
    found = []
    for number in range(N):
        said, edit = "with" if number < N // 2 else "without", "" if number % 2 else "forest"
        plain = f"a dog {number % (N // 2)}"
        found.append(
            PlannedImage(Prompt(f"p{number}", plain, plain, {"edit": edit, "identifier": said}), 0, 0)
        )
    return found


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", [0, 1, N - 1])
@pytest.mark.parametrize("field", FIELDS)
def test_one_broken_image_is_missing_and_named(
    field: str, which: int, value: float, caplog: pytest.LogCaptureFixture
) -> None:
    whole = features(N, 0)
    rows = getattr(whole, field).clone()
    if rows.ndim == 1:
        rows[which] = value
    else:
        rows[which, 2] = value
    broken = replace(whole, **{field: rows})
    metrics = select(list(METRICS))
    with caplog.at_level(logging.WARNING):
        scored, found = score(broken, REFERENCES, metrics, planned(), 0)
    assert (
        f"{field}: 1 of {N} images have features that are not finite and count as missing: p{which}-0"
        in caplog.text
    )
    _, expected = score(whole, REFERENCES, metrics, planned(), 0)
    group = "subject" if which < N // 2 else "class"
    for metric in metrics:
        summary = found[metric.name]
        if field not in metric.needs:
            assert summary == expected[metric.name]
        elif metric.over == group and expected[metric.name].n and summary.n:
            assert summary.missing >= expected[metric.name].missing
            assert summary.n <= expected[metric.name].n
    assert all(row.value is None or math.isfinite(row.value) for row in scored)


def test_a_face_that_nothing_can_be_made_of_is_a_face(caplog: pytest.LogCaptureFixture) -> None:
    whole = features(N, 0)
    face, faces = whole.face.clone(), torch.ones(N)  # type: ignore[union-attr]
    face[0], face[1], faces[1] = math.nan, math.nan, 0  # the first was found, in the second there is none
    _, found = score(
        replace(whole, face=face, faces=faces), REFERENCES, select(["similarity", "face_rate"]), planned(), 0
    )
    assert found["face_rate"].mean == 0.75
    assert (found["similarity"].n, found["similarity"].missing) == (2, 2)
    assert "face: 1 of 8 images have features that are not finite and count as missing: p0-0" in caplog.text


def test_what_may_be_missing_is_not_called_broken(caplog: pytest.LogCaptureFixture) -> None:
    """No face, no prompt: rows of nothing but NaN, as ever."""
    whole = features(N, 0)
    for field in ("face", "clip_text"):
        rows = getattr(whole, field).clone()
        rows[3] = math.nan
        same = replace(whole, faces=None, **{field: rows})
        assert without_broken_rows(same, ["x"] * N) is same
    assert caplog.text == ""


def test_many_are_counted_and_a_few_are_named(caplog: pytest.LogCaptureFixture) -> None:
    whole = features(N, 0)
    rows = torch.full_like(whole.dino, math.inf)  # type: ignore[arg-type]
    without_broken_rows(replace(whole, dino=rows), [f"i{k}" for k in range(N)])
    assert "i0, i1, i2, i3, i4 and 3 more" in caplog.text


def test_an_embedding_of_length_zero_is_not_an_image() -> None:
    whole = features(N, 0)
    rows = whole.clip_image.clone()  # type: ignore[union-attr]
    rows[0] = 0
    _, found = score(
        replace(whole, clip_image=rows), REFERENCES, select(["diversity", "vendi"]), planned(), 0
    )
    assert (found["diversity"].n, found["diversity"].missing) == (N // 2 - 1, 1)
    assert (found["vendi"].n, found["vendi"].missing) == (N // 2 - 1, 1)
