"""Files that job=score writes in addition to the usual record: a CSV table, and thumbnails for its page."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from diffusion_lab.records import Metric, ScoreRow
from diffusion_lab.runs.scores import by_image
from diffusion_lab.system import atomic
from diffusion_lab.system.images import encoded

if TYPE_CHECKING:
    from diffusion_lab.records import AnyMetric, Pixels
    from diffusion_lab.sampling.sample import PlannedImage

TABLE = "scores.csv"
PICTURES = "pictures"
SIDE = 192  # of a thumbnail, in pixels
SHOWN = 200  # this many images are always on the page, from the first on
EXTREMES = 6  # this many best and worst images of each metric are always on the page


def thumbnail(pixels: Pixels) -> bytes:
    """WebP with sides of at most 192 pixels."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return encoded(image, "WEBP", quality=80)


def write_score_files(
    folder: Path,
    rows: Iterable[ScoreRow],
    planned: Sequence[PlannedImage],
    metrics: Sequence[AnyMetric],
    small: Sequence[bytes],
) -> None:
    """Writes scores.csv and pictures/.

    scores.csv: one row per image, in order, with file, prompt and one column per metric, empty if undefined.
    pictures/: the thumbnails of the images that the page shows, 00000.webp and so on, numbered by row.
    """
    values = by_image(rows)
    named = [metric for metric in metrics if isinstance(metric, Metric)]
    scores_by_image = [values.get((item.prompt.id, item.index), {}) for item in planned]
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["file", "prompt", *(metric.name for metric in named)])
    for item, at in zip(planned, scores_by_image, strict=True):
        cells = ["" if (value := at.get(metric.name)) is None else f"{value:.6g}" for metric in named]
        table.writerow([item.prompt.slots["file"], item.prompt.text, *cells])
    atomic.write_text(folder / TABLE, text.getvalue())
    shown = set(range(min(SHOWN, len(planned))))
    for metric in named:
        shown |= set(best_and_worst([at.get(metric.name) for at in scores_by_image], metric.higher_is_better))
    for number in sorted(shown):
        atomic.write_bytes(folder / PICTURES / f"{number:05d}.webp", small[number])


def best_and_worst(values: Sequence[float | None], higher_is_better: bool) -> list[int]:
    """Indices of images with a value, best first: the 6 best and the 6 worst, or all if fewer than 12."""
    there = [number for number, value in enumerate(values) if value is not None]
    ranked = sorted(there, key=lambda number: values[number] or 0.0, reverse=higher_is_better)
    return ranked if len(ranked) <= 2 * EXTREMES else ranked[:EXTREMES] + ranked[-EXTREMES:]
