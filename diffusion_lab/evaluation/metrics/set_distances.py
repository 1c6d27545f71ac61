"""Distances of the generated images, as a set, to the training photos: KID, the default one, and FID.

Both are conditional on the training photos: the interval refers to another draw of prompts. KID is unbiased, so runs
with different numbers of training photos are comparable. FID is biased, and its interval is for the mean FID of this
number of images, not for the FID of infinitely many. Images whose features are not finite count as missing.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import compress
from typing import TYPE_CHECKING, Literal

from diffusion_lab.records import Features, References, Summary

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


class Kid:
    """Unbiased MMD^2 with the kernel (x . y / d + 1)^3; the interval is for a mean over pairs (`pairs.py`).

    ``field`` names the features: Inception's pool features as in the paper, or CLIP's unit vectors times
    sqrt(d), whose kernel is (cos + 1)^3 (for the miniature, and if Inception features are not wanted). These
    are two different metrics whose values are not comparable.
    """

    version = "1"
    higher_is_better = False
    least_images = 2
    over: Literal["subject", "class"] = "subject"

    def __init__(self, name: str, field: str, label: str) -> None:
        self.name, self.field, self.label = name, field, label
        self.needs: tuple[str, ...] = (field,)
        self.unit = "squared distance"

    def summary(
        self, generated: Features, references: References, prompt_ids: Sequence[Hashable] | None = None
    ) -> Summary:
        return self._distance(generated, references.train, prompt_ids)

    def ceiling_summary(self, references: References) -> Summary | None:
        """The held-out photos against the training photos: 0 up to chance."""
        return None if references.heldout is None else self._distance(references.heldout, references.train)

    def impostor_summary(self, references: References) -> Summary | None:
        """Photos of other subjects against the training photos."""
        if references.impostors is None:
            return None
        return self._distance(references.impostors, references.train)

    def _distance(
        self, some: Features, targets: Features, prompt_ids: Sequence[Hashable] | None = None
    ) -> Summary:
        from diffusion_lab.analysis.intervals import of_pairs, undefined_summary
        from diffusion_lab.evaluation.metrics.distances import kid_pairs

        x, ids, missing = _rows(some, self.field, prompt_ids)
        y, _, _ = _rows(targets, self.field)
        if min(len(x), len(y)) < 2:
            return undefined_summary(_TOO_FEW, some.n)
        value, pairs = kid_pairs(x, y)
        return of_pairs(value, pairs.numpy(), ids, missing=missing)


class Fid:
    """The Frechet distance, exact for any number of images. Every value with n < d has a note.

    ``legacy``: as in some published code, the real part of a complex matrix square root in float32, on the classifier's
    logits. With fewer images than classes it is mostly rounding error and can be negative, so it has no interval. It
    shows how unreliable such values are. For weights without a classifier it uses the pool features; its note says so.
    """

    higher_is_better = False
    least_images = 2
    over: Literal["subject", "class"] = "subject"

    def __init__(self, name: str, field: str, label: str, *, legacy: bool = False) -> None:
        self.name, self.field, self.label, self.legacy = name, field, label, legacy
        self.version = "2" if legacy else "1"  # 2: in float32, of logits
        self.needs: tuple[str, ...] = (field, "inception_logits") if legacy else (field,)
        self.unit = "squared distance"

    def summary(
        self, generated: Features, references: References, prompt_ids: Sequence[Hashable] | None = None
    ) -> Summary:
        return self._distance(generated, references.train, prompt_ids)

    def ceiling_summary(self, references: References) -> Summary | None:
        """The held-out photos against the training photos."""
        return None if references.heldout is None else self._distance(references.heldout, references.train)

    def impostor_summary(self, references: References) -> Summary | None:
        """Photos of other subjects against the training photos."""
        if references.impostors is None:
            return None
        return self._distance(references.impostors, references.train)

    def _distance(
        self, some: Features, targets: Features, prompt_ids: Sequence[Hashable] | None = None
    ) -> Summary:
        import torch

        from diffusion_lab.analysis.intervals import interval_of, too_few, undefined_summary, units
        from diffusion_lab.analysis.pairs import FEWEST, jackknife_error
        from diffusion_lab.evaluation.metrics.distances import frechet, frechet_legacy

        classified = self.legacy and None not in (some.inception_logits, targets.inception_logits)
        field = "inception_logits" if classified else self.field
        x, ids, missing = _rows(some, field, prompt_ids)
        y, _, _ = _rows(targets, field)
        if min(len(x), len(y)) < 2:
            return undefined_summary(_TOO_FEW, some.n)
        note = few_images(len(x), len(y), x.shape[1])
        if self.legacy:
            what = "class logits" if classified else "pool features, since the weights have no classifier"
            complex_note = f"the real part of a complex root in float32, of {what}: mostly rounding error, can be negative; no interval"
            note = "; ".join(part for part in (note, complex_note) if part)
            return interval_of(frechet_legacy(x, y), len(x), None, 0, missing=missing, note=note)
        codes, alone = units(ids)

        def of_rows(rows: NDArray[np.int64]) -> float:
            return frechet(
                x[torch.from_numpy(rows)], y
            )  # with three groups, two are left: at least two images

        error, groups = jackknife_error(of_rows, codes)
        why = too_few(groups, FEWEST, alone)
        if why is None:
            note = "; ".join(part for part in (note, expected_of(len(x))) if part)
        return interval_of(
            frechet(x, y), len(x), error, groups,
            missing=missing, bounds=(0.0, None), note=note, why=why, alone=alone,
        )  # fmt: skip


_TOO_FEW = "a distance between sets needs at least two images and two training photos"


def few_images(n: int, m: int, dimensions: int) -> str | None:
    """The note for a FID of fewer images than dimensions: it is biased upwards, the more so the fewer images
    there are.
    """
    fewest = min(n, m)
    if fewest >= dimensions:
        return None
    return f"{n} and {m} images in {dimensions} dimensions: biased; compare only with equal numbers"


def expected_of(n: int) -> str:
    """The note on what the interval of a biased value refers to."""
    return f"the interval is for its mean over draws of {n} images"


def _rows(
    features: Features, field: str, prompt_ids: Sequence[Hashable] | None = None
) -> tuple[Tensor, list[Hashable], int]:
    """The finite rows, float64; their prompts; and the number of other rows."""
    rows: Tensor | None = getattr(features, field)
    assert rows is not None
    there = rows.isfinite().all(dim=1)
    ids = list(range(len(rows)) if prompt_ids is None else prompt_ids)
    kept = rows[there].double() * rows.shape[1] ** 0.5 if field == "clip_image" else rows[there]
    return kept, list(compress(ids, there.tolist())), int((~there).sum())
