"""The effective number of different images."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from itertools import compress
from typing import TYPE_CHECKING, Literal

from diffusion_lab.records import Features, References, Summary

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FEWEST = 4  # prompts for an interval: with three, the jackknife interval covers the true value in 74 to 91 %
MOST_GROUPS = 10  # of prompts, left out one and two at a time: 56 scores
CORRECTED_FROM = 8  # groups: with fewer, the second-order part is too uncertain to subtract


class Vendi:
    """exp of the entropy of the eigenvalues of the cosine matrix / n (Friedman & Dieng 2022), on CLIP.

    1 if all images are the same, n if all are orthogonal. It depends on the number of images, so compare only
    evaluations of equal size. The interval is for the mean score of this number of images, by the jackknife over
    groups of prompts on the logarithm (`pairs.py`). Images whose features are not finite count as missing.
    """

    name = "vendi"
    version = "1-clip"  # the embeddings are part of the definition
    higher_is_better = True
    needs: tuple[str, ...] = ("clip_image",)
    label = "Effective number of different images (Vendi)"
    unit = "images"
    least_images = 2
    over: Literal["subject", "class"] = "subject"

    def summary(
        self, generated: Features, references: References, prompt_ids: Sequence[Hashable] | None = None
    ) -> Summary:
        import math

        import torch

        from diffusion_lab.analysis.intervals import interval_of, too_few, undefined_summary, units
        from diffusion_lab.analysis.pairs import jackknife_error
        from diffusion_lab.evaluation.metrics.distances import vendi
        from diffusion_lab.evaluation.metrics.set_distances import expected_of

        assert generated.clip_image is not None
        there = generated.clip_image.isfinite().all(dim=1) & (generated.clip_image != 0).any(dim=1)
        rows, missing = generated.clip_image[there], int((~there).sum())
        n = len(rows)
        if n < 2:
            return undefined_summary(
                "the Vendi score compares images with each other and needs two", generated.n
            )
        ids = list(range(generated.n)) if prompt_ids is None else list(prompt_ids)
        codes, alone = units(list(compress(ids, there.tolist())))

        def of_rows(some: NDArray[np.int64]) -> float:
            return math.log(vendi(rows[torch.from_numpy(some)]))

        error, groups = jackknife_error(of_rows, codes, MOST_GROUPS, second_order_from=CORRECTED_FROM)
        why = too_few(groups, FEWEST, alone)
        note = f"{n} images: compare only with equal numbers"
        if why is None:
            note = f"{note}; {expected_of(n)}"
        log_summary = interval_of(
            math.log(vendi(rows)), n, error, groups,
            missing=missing, bounds=(0.0, math.log(n)), note=note, why=why, alone=alone,
        )  # fmt: skip
        value = vendi(rows)
        return replace(
            log_summary,
            mean=value,
            standard_error=None if log_summary.standard_error is None else log_summary.standard_error * value,
            low=None if log_summary.low is None else math.exp(log_summary.low),
            high=None if log_summary.high is None else math.exp(log_summary.high),
        )

    def ceiling_summary(self, references: References) -> Summary | None:
        """None: the score of a few photos is not comparable with that of many images."""
        return None

    def impostor_summary(self, references: References) -> Summary | None:
        """None: it does not use references."""
        return None
