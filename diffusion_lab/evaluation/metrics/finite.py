"""Non-finite features: the image counts as missing for the metrics that need them, and a warning names it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from diffusion_lab.records import Features

log = logging.getLogger(__name__)

FIELDS = ("face", "clip_image", "clip_text", "aesthetics", "dino", "inception", "inception_logits")
MAY_LACK = frozenset({"face", "clip_text"})  # all NaN: no face found (where nobody counted), no prompt
MOST_NAMES = 5


def without_broken_rows(features: Features, names: Sequence[str]) -> Features:
    """The features with NaN in every row that has a value that is not finite. A warning names the images.

    ``names``: of the images, in order. An encoder may overflow on a single image, for example in half precision; the
    other images of the evaluation are still valid.
    """
    mended: dict[str, Any] = {}
    for field in (*FIELDS, *features.more):
        rows = features.more[field] if field in features.more else getattr(features, field)
        if rows is None:
            continue
        flat = rows.reshape(len(rows), -1)
        broken = ~flat.isfinite().all(dim=1)
        reported = broken
        if field == "face" and features.faces is not None:
            reported = broken & (features.faces > 0)
        elif field in MAY_LACK:
            reported = broken & ~flat.isnan().all(dim=1)
        if bool(reported.any()):
            numbers = reported.nonzero().flatten().tolist()
            shown = ", ".join(names[number] for number in numbers[:MOST_NAMES])
            more = f" and {len(numbers) - MOST_NAMES} more" if len(numbers) > MOST_NAMES else ""
            log.warning(
                "%s: %d of %d images have features that are not finite and count as missing: %s%s",
                field, len(numbers), len(rows), shown, more,
            )  # fmt: skip
        if bool((broken & ~flat.isnan().all(dim=1)).any()):
            kept = rows.clone()
            kept[broken] = float("nan")
            mended[field] = kept
    others = {name: mended.pop(name, rows) for name, rows in features.more.items()}
    return replace(features, more=others, **mended) if mended or others else features
