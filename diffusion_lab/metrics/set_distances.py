"""Distances of the generated images, as a set, to the training pictures: KID, the default one, and FID.

Both are conditional on the training pictures: the interval says how another draw of prompts would come out.
KID is unbiased, so runs with different numbers of training pictures compare; FID is not.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Literal

from diffusion_lab.interfaces import Features, References, Summary

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


class Kid:
    """Unbiased MMD^2 with the kernel (x . y / d + 1)^3; the interval is a bootstrap's over prompts.

    ``field`` names the features: Inception's pool features as in the paper, or CLIP's unit vectors times
    sqrt(d), whose kernel is (cos + 1)^3 (on the miniature, and where Inception's view of the world is not
    wanted). The two are two metrics: their numbers do not compare.
    """

    version = "1"
    higher_is_better = False
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
        """The held-out pictures against the training pictures: 0 up to chance."""
        return None if references.heldout is None else self._distance(references.heldout, references.train)

    def impostor_summary(self, references: References) -> Summary | None:
        """Photographs of other subjects against the training pictures."""
        if references.impostors is None:
            return None
        return self._distance(references.impostors, references.train)

    def _distance(
        self, some: Features, targets: Features, prompt_ids: Sequence[Hashable] | None = None
    ) -> Summary:
        import torch

        from diffusion_lab.analysis.intervals import bootstrap_weights, group_codes, of_set, undefined
        from diffusion_lab.metrics.distances import kid_draws

        x, y = _rows(some, self.field), _rows(targets, self.field)
        if min(len(x), len(y)) < 2:
            return undefined(_TOO_FEW, some.n)
        ids = list(range(some.n)) if prompt_ids is None else list(prompt_ids)
        groups = int(group_codes(ids).max()) + 1
        value, draws = kid_draws(x, y, torch.from_numpy(bootstrap_weights(ids)))
        error = float(draws.std()) if groups > 1 and len(draws) > 1 else None
        return of_set(value, some.n, error, groups)


class Fid:
    """The Frechet distance, exact for any number of images; every value of n < d carries a note.

    ``legacy``: the real part of a complex matrix root instead, which can be negative: only to set beside
    numbers that were made that way, and without an interval.
    """

    version = "1"
    higher_is_better = False
    over: Literal["subject", "class"] = "subject"

    def __init__(self, name: str, field: str, label: str, *, legacy: bool = False) -> None:
        self.name, self.field, self.label, self.legacy = name, field, label, legacy
        self.needs: tuple[str, ...] = (field,)
        self.unit = "squared distance"

    def summary(
        self, generated: Features, references: References, prompt_ids: Sequence[Hashable] | None = None
    ) -> Summary:
        return self._distance(generated, references.train, prompt_ids)

    def ceiling_summary(self, references: References) -> Summary | None:
        """The held-out pictures against the training pictures."""
        return None if references.heldout is None else self._distance(references.heldout, references.train)

    def impostor_summary(self, references: References) -> Summary | None:
        """Photographs of other subjects against the training pictures."""
        if references.impostors is None:
            return None
        return self._distance(references.impostors, references.train)

    def _distance(
        self, some: Features, targets: Features, prompt_ids: Sequence[Hashable] | None = None
    ) -> Summary:
        import torch

        from diffusion_lab.analysis.intervals import jackknife_error, of_set, undefined
        from diffusion_lab.metrics.distances import frechet, frechet_legacy

        x, y = _rows(some, self.field), _rows(targets, self.field)
        if min(len(x), len(y)) < 2:
            return undefined(_TOO_FEW, some.n)
        note = few_images(len(x), len(y), x.shape[1])
        if self.legacy:
            said = "the real part of a complex root; can be negative"
            return of_set(frechet_legacy(x, y), some.n, None, 0, note="; ".join(s for s in (note, said) if s))
        ids = list(range(some.n)) if prompt_ids is None else list(prompt_ids)

        def of_rows(rows: NDArray[np.int64]) -> float:
            return frechet(x[torch.from_numpy(rows)], y)  # of three groups two are left: two images

        error, groups = jackknife_error(of_rows, ids)
        return of_set(frechet(x, y), some.n, error, groups, note=note)


_TOO_FEW = "a distance between sets needs two images and two training pictures at least"


def few_images(n: int, m: int, dimensions: int) -> str | None:
    """The flag of every FID of fewer images than dimensions: it is biased upwards and grows as they get
    fewer.
    """
    fewest = min(n, m)
    if fewest >= dimensions:
        return None
    return f"of {n} and {m} images in {dimensions} dimensions: biased, compare only equal numbers"


def _rows(features: Features, field: str) -> Tensor:
    rows: Tensor | None = getattr(features, field)
    assert rows is not None
    return rows.double() * rows.shape[1] ** 0.5 if field == "clip_image" else rows
