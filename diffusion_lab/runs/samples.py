"""Sheets of small labelled images, one per validation step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from diffusion_lab.runs import scores
from diffusion_lab.system import atomic
from diffusion_lab.system.images import png

if TYPE_CHECKING:
    from diffusion_lab.records import Evaluation, Pixels, PromptSet

PICTURE = 128  # maximum side in the sheet, in pixels
MARGIN = 6
TEXT = 11  # pixels
LINE = 13
TITLE = 16
LINES = 5  # maximum number of text lines under an image
MOST = 400  # images per sheet: keeps it below about 2600 x 3700 pixels

_PAPER, _INK, _PALE = (255, 255, 255), (30, 30, 30), (110, 110, 110)
_CHOSEN, _REJECTED = (0, 200, 80), (230, 60, 60)
DASH = 4  # length of a dash and of the gap after it, in pixels


def write(folder: Path, evaluation: Evaluation, prompts: PromptSet, title: str, *, each: bool) -> None:
    """Writes the evaluation's sheet, step-NNNNNN.png, and with `each` every image to a folder of that name.

    Writes nothing if there are no images.
    """
    if not evaluation.images:
        return
    name = f"step-{evaluation.step:06d}"
    image = sheet(evaluation.images, labels(evaluation, prompts), title=title)
    atomic.write_bytes(folder / f"{name}.png", png(image))
    made = zip(evaluation.images, scores.images_of(evaluation, prompts), strict=True)
    for pixels, (prompt_id, index) in made if each else ():
        atomic.write_bytes(folder / name / f"{prompt_id}-{index}.png", png(Image.fromarray(pixels)))


def labels(evaluation: Evaluation, prompts: PromptSet) -> list[str]:
    """The text under each image: its number in the evaluation, then the phrases that make up its prompt.

    Prompts without slots are quoted unchanged.
    """
    texts = {
        prompt.id: ", ".join(phrase for phrase in prompt.slots.values() if phrase) or prompt.text
        for prompt in prompts
    }
    images = scores.images_of(evaluation, prompts)
    return [f"{number} · {texts[prompt_id]}" for number, (prompt_id, _) in enumerate(images)]


@dataclass(frozen=True, slots=True)
class FaceBox:
    """A box to draw (left, top, right, bottom as fractions of the image); dashed if it was not chosen."""

    box: tuple[float, float, float, float]
    chosen: bool


def sheet(
    pictures: Sequence[Pixels],
    texts: Sequence[str],
    *,
    title: str = "",
    columns: int | None = None,
    frames: Sequence[Sequence[FaceBox]] = (),
) -> Image.Image:
    """RGB sheet of uint8 [height, width, 3] images with a few lines of text under each.

    Small images are enlarged by an integer factor without smoothing, so that individual pixels are visible;
    large ones are reduced. Of more than 400 images only the first 400 are shown, and the title says so.
    ``frames``: the boxes of each image, or empty.
    """
    if len(pictures) != len(texts):
        raise ValueError(f"{len(pictures)} pictures for {len(texts)} texts")
    shown = min(len(pictures), MOST)
    if shown < len(pictures):
        title = f"{title} (the first {shown} of {len(pictures)})".strip()
    columns = columns or max(1, min(10 if shown <= 100 else 20, shown))
    font, large = ImageFont.load_default(TEXT), ImageFont.load_default(TITLE)
    wrapped = [_wrap(text, font, PICTURE) for text in texts[:shown]]
    depth = max((len(lines) for lines in wrapped), default=0)
    cell = (PICTURE + MARGIN, PICTURE + depth * LINE + MARGIN)
    top = TITLE + 2 * MARGIN if title else MARGIN
    width = MARGIN + columns * cell[0]
    if title:
        width = max(width, math.ceil(large.getlength(title)) + 2 * MARGIN)
    image = Image.new("RGB", (width, top + math.ceil(shown / columns) * cell[1]), _PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((MARGIN, MARGIN), title, _INK, large)
    for number in range(shown):
        left, upper = MARGIN + number % columns * cell[0], top + number // columns * cell[1]
        small = _fit(pictures[number])
        for frame in frames[number] if frames else ():
            _draw_frame(small, frame)
        image.paste(small, (left + (PICTURE - small.width) // 2, upper + (PICTURE - small.height) // 2))
        for row, line in enumerate(wrapped[number]):
            colour = _INK if row == 0 else _PALE
            draw.text((left, upper + PICTURE + row * LINE), line, colour, font)
    return image


def _draw_frame(picture: Image.Image, frame: FaceBox) -> None:
    """Draws a solid green box if it was chosen, otherwise a dashed red box."""
    draw = ImageDraw.Draw(picture)
    width, height = picture.width - 1, picture.height - 1
    left, top, right, bottom = (
        round(part * size) for part, size in zip(frame.box, (width, height) * 2, strict=True)
    )
    if frame.chosen:
        draw.rectangle((left, top, right, bottom), outline=_CHOSEN, width=2)
        return
    for x in range(left, right, 2 * DASH):
        for y in (top, bottom):
            draw.line((x, y, min(x + DASH, right), y), _REJECTED, 1)
    for y in range(top, bottom, 2 * DASH):
        for x in (left, right):
            draw.line((x, y, x, min(y + DASH, bottom)), _REJECTED, 1)


def _fit(pixels: Pixels) -> Image.Image:
    """The image with sides of at most PICTURE pixels and its aspect ratio preserved."""
    image = Image.fromarray(pixels)
    factor = PICTURE // max(image.size)
    if factor >= 1:
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    image.thumbnail((PICTURE, PICTURE), Image.Resampling.LANCZOS)
    return image


def _wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """At most LINES lines, none wider than `width` pixels; truncated text ends with an ellipsis."""
    lines: list[str] = []
    line = ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if not line or font.getlength(longer) <= width:
            line = longer
            continue
        lines.append(line)
        line = word
    lines = [*lines, line] if line else lines
    cut = len(lines) > LINES
    lines = [_shorten(line, font, width) for line in lines[:LINES]]
    if cut:
        lines[-1] = _shorten(lines[-1] + " …", font, width)
    return lines


def _shorten(line: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    if font.getlength(line) <= width:
        return line
    body = line.rstrip(" …")
    while body and font.getlength(body + "…") > width:
        body = body[:-1]
    return body.rstrip() + "…"
