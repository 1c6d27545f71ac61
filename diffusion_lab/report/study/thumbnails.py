"""Small images of every run for the page of a study, cut out of the sheets in `samples/`.

All images of a run are one WebP: a row for each evaluation, a column for each image. Their number and size shrink
as runs are added, so that the page stays below a fixed size; a run's own sheets are loaded on demand. Finished
images are kept in `thumbnails/` beside the page, because a sheet takes about 30 ms to decode.
"""

from __future__ import annotations

import base64
import hashlib
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from diffusion_lab.runs import samples
from diffusion_lab.studies.run import StudyRun
from diffusion_lab.system import atomic
from diffusion_lab.system.images import encoded

log = logging.getLogger(__name__)

BUDGET = 2_000_000  # bytes of all images together; a third more as base64
MOST_SHEETS = 1500  # read for one page: 20 ms each
QUALITY = 70  # of WebP
# (images per evaluation, side in pixels, expected bytes per evaluation), the largest first
LAYOUTS = (
    (6, 96, 9400),
    (4, 96, 6300),
    (4, 64, 3700),
    (2, 64, 1950),
    (1, 64, 950),
    (1, 48, 650),
    (1, 32, 360),
)
THREADS = 2


@dataclass(frozen=True, slots=True)
class Thumbnails:
    """Of one run: `steps` are the rows, from the top."""

    steps: tuple[int, ...]
    source: str  # a data URI


@dataclass(frozen=True, slots=True)
class Layout:
    images: int  # per evaluation
    side: int  # pixels
    steps: int  # evaluations per run, at most


def layout_for(runs: Sequence[StudyRun]) -> Layout:
    """The largest images that are expected to fit into the budget."""
    most = max((len(run.steps) for run in runs), default=1)
    steps = max(1, min(most, MOST_SHEETS // max(1, len(runs))))
    sheets = max(1, sum(min(steps, len(run.steps)) for run in runs))
    for images, side, expected in LAYOUTS:
        if expected * sheets <= BUDGET:
            return Layout(images, side, steps)
    return Layout(*LAYOUTS[-1][:2], steps)


def thumbnails(runs: Sequence[StudyRun], cache: Path) -> tuple[Layout, dict[str, Thumbnails]]:
    """The small images by run id, within the budget; runs without a readable sheet have none.

    ``cache``: a folder; files in it that are not used any more are deleted.
    """
    layout = layout_for(runs)
    with ThreadPoolExecutor(THREADS) as pool:
        made = list(pool.map(lambda run: _of_run(run, layout, cache), runs))
    found: dict[str, Thumbnails] = {}
    spent, used = 0, set()
    for run, one in zip(runs, made, strict=True):
        if one is None:
            continue
        steps, path, content = one
        used.add(path.name)
        if spent + len(content) > BUDGET:
            continue
        spent += len(content)
        found[run.id] = Thumbnails(steps, "data:image/webp;base64," + base64.b64encode(content).decode())
    for path in cache.glob("*.webp"):
        if path.name not in used:
            path.unlink(missing_ok=True)
    return layout, found


def _of_run(run: StudyRun, layout: Layout, cache: Path) -> tuple[tuple[int, ...], Path, bytes] | None:
    steps = spread([step for step in run.steps if sheet_of(run, step).is_file()], layout.steps)
    if not steps:
        return None
    states = [sheet_of(run, step).stat() for step in steps]
    told = f"{layout} {QUALITY} {[(s, t.st_size, t.st_mtime_ns) for s, t in zip(steps, states, strict=True)]}"
    path = cache / f"{run.id}-{hashlib.sha256(told.encode()).hexdigest()[:12]}.webp"
    try:
        return steps, path, path.read_bytes()
    except OSError:
        pass
    sprite = Image.new("RGB", (layout.images * layout.side, len(steps) * layout.side), "white")
    for row, step in enumerate(steps):
        try:
            for column, image in enumerate(cut(sheet_of(run, step), _images(run), layout.images)):
                small = image.resize((layout.side, layout.side), _filter(layout.side))
                sprite.paste(small, (column * layout.side, row * layout.side))
        except (OSError, ValueError, SyntaxError) as error:  # Pillow's errors for a damaged file
            log.warning("%s cannot be read and is not shown: %s", sheet_of(run, step), error)
    content = encoded(sprite, "WEBP", quality=QUALITY)
    atomic.write_bytes(path, content)
    return steps, path, content


def sheet_of(run: StudyRun, step: int) -> Path:
    return run.folder / "samples" / f"step-{step:06d}.png"


def spread(steps: Sequence[int], most: int) -> tuple[int, ...]:
    """At most `most` of the steps, evenly over their positions, with the first and the last."""
    if len(steps) <= most:
        return tuple(steps)
    if most == 1:
        return (steps[-1],)
    return tuple(steps[round(i * (len(steps) - 1) / (most - 1))] for i in range(most))


def cut(path: Path, images: int, wanted: int) -> list[Image.Image]:
    """The first images of a sheet with `images` images, by the layout of `runs.samples.sheet`."""
    with Image.open(path) as whole:
        whole.load()
    shown = min(images, samples.MOST)
    columns = max(1, min(10 if shown <= 100 else 20, shown))
    cell = samples.PICTURE + samples.MARGIN
    top = samples.TITLE + 2 * samples.MARGIN
    depth = (whole.height - top) // max(1, -(-shown // columns))
    boxes = [
        (samples.MARGIN + n % columns * cell, top + n // columns * depth) for n in range(min(wanted, shown))
    ]
    return [whole.crop((x, y, x + samples.PICTURE, y + samples.PICTURE)).convert("RGB") for x, y in boxes]


def _images(run: StudyRun) -> int:
    """Images per evaluation."""
    per_prompt = run.settings.get("prompts.images_per_prompt")
    return max(1, len(run.prompts) * (per_prompt if isinstance(per_prompt, int) else 1))


def _filter(side: int) -> Image.Resampling:
    """Half the size of an image in a sheet: BOX averages four pixels, which restores small images that the sheet doubled."""
    return Image.Resampling.BOX if side * 2 == samples.PICTURE else Image.Resampling.LANCZOS
