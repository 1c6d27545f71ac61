"""The prompts of the images in a folder.

Sources, in this order: a table or a text file beside them (`data.sidecars`), the metadata of the file itself (A1111's
`parameters`, ComfyUI's graph), and prompts.json of a run of this program. Pillow is imported only to open an image.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from diffusion_lab.data.prompts import plain_prompt
from diffusion_lab.data.sidecar_files import NoCaptions, PictureText
from diffusion_lab.data.sidecars import Sidecars
from diffusion_lab.records import UserError
from diffusion_lab.values.word_match import replace_words

log = logging.getLogger(__name__)

_USER_COMMENT = (0x8769, 0x9286)  # Exif tag of A1111's parameters in JPEG and WebP
_MOST_HOPS = 8  # through a ComfyUI graph, from the sampler to the text


@dataclass(frozen=True, slots=True)
class ImagePrompt:
    """What is known about an image besides its pixels."""

    text: str | None = None  # the prompt; None: unknown
    plain: str | None = None  # with the class noun alone, for images of our runs
    slots: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0  # of its noise, if the file has it
    source: str = ""  # "metadata.csv", "text file", ...


def find_prompts(paths: Sequence[Path], folder: Path) -> list[ImagePrompt]:
    """What is known about each image of ``folder``. UserError (job.images) for a table or text that cannot be used."""
    beside = Sidecars(folder, paths, "job.images")
    try:
        table = beside.table()
    except NoCaptions as error:
        raise UserError(f"job.images: {folder}/{str(error).replace(':', ' cannot be used:', 1)}") from error
    if unmatched := beside.unmatched():
        log.warning(
            "%s: %d rows name no picture there, such as %s",
            folder / table, len(unmatched), ", ".join(sorted(unmatched)[:3]),
        )  # fmt: skip
    run = _run_prompts(folder)
    return [_image_prompt(beside.of(path)) or _inside(path) or _of_run(path, run) for path in paths]


def clip_text(text: str, identifier: str, class_noun: str) -> str:
    """The text for CLIP: without the identifier and the notation of tools (<lora:x:1>, (word:1.2))."""
    text = re.sub(r"<\w+:[^<>]*>", "", text)
    text = re.sub(r"\(([^()]*?):\s*[\d.]+\s*\)", r"\1", text)
    text = re.sub(r"\s{2,}", " ", text).strip(" ,\n")
    return plain_prompt(
        replace_words(text, [f"{identifier} {class_noun}"], "{subject}"), identifier, class_noun
    )


# --- beside the images ----------------------------------------------------------------------------------


def _image_prompt(said: PictureText | None) -> ImagePrompt | None:
    if said is not None and said.table:
        return ImagePrompt(text=said.text or None, slots=said.slots, source=said.table)
    if said is None or not said.text:
        return None
    if re.search(r"^(Negative prompt:|Steps: )", said.text, re.MULTILINE):  # as A1111 saves its parameters
        parsed = parse_parameters(said.text)
        return None if parsed is None else dataclasses.replace(parsed, source="text file")
    return ImagePrompt(text=said.text, source="text file")


def _run_prompts(folder: Path) -> dict[str, ImagePrompt]:
    """By id, if ``folder`` is RUN/samples/step-000100 of a run with tracker.keep_images."""
    try:
        content = json.loads((folder.resolve().parent.parent / "prompts.json").read_text(encoding="utf-8"))
        return {
            str(one["id"]): ImagePrompt(one["text"], one["plain"], dict(one["slots"]), source="prompts.json")
            for one in content["prompts"]
        }
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _of_run(path: Path, prompts: Mapping[str, ImagePrompt]) -> ImagePrompt:
    found = re.fullmatch(r"(.+)-\d+", path.stem)
    return prompts.get(found[1], ImagePrompt()) if found else ImagePrompt()


# --- inside the images ----------------------------------------------------------------------------------


def _inside(path: Path) -> ImagePrompt | None:
    """From the file's own metadata; damaged metadata is ignored."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            info = dict(image.info)
            comment = image.getexif().get_ifd(_USER_COMMENT[0]).get(_USER_COMMENT[1])
    except Exception:  # a file that is not an image is reported when its pixels are read
        return None
    parameters = info.get("parameters") or _decoded(comment)
    if isinstance(parameters, str) and parameters.strip():
        return parse_parameters(parameters)
    graph = info.get("prompt")
    text = comfy_text(graph) if isinstance(graph, str) else None
    return ImagePrompt(text=text, source="ComfyUI's graph") if text else None


def parse_parameters(parameters: str) -> ImagePrompt | None:
    """A1111's text: the prompt's lines, "Negative prompt: ...", then "Steps: ..., Seed: 1, ..."."""
    lines: list[str] = []
    for line in parameters.strip().split("\n"):
        if line.startswith(("Negative prompt:", "Steps: ")):
            break
        lines.append(line)
    text = "\n".join(lines).strip()
    seed = re.search(r"(?:^|, )Seed: (\d+)", parameters, re.MULTILINE)
    known = int(seed[1]) if seed and int(seed[1]) < 2**64 else 0
    return ImagePrompt(text=text, seed=known, source="parameters") if text else None


def comfy_text(graph: str) -> str | None:
    """The text connected to a sampler's `positive` input in a ComfyUI graph; None if the graph has no such text."""
    try:
        nodes = json.loads(graph)
        starts = [node["inputs"]["positive"] for node in nodes.values() if "positive" in node["inputs"]]
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    for link in starts:
        for _ in range(_MOST_HOPS):
            node = nodes.get(str(link[0])) if isinstance(link, list) and link else None
            inputs = node.get("inputs") if isinstance(node, dict) else None
            if not isinstance(inputs, dict):
                break
            if isinstance(inputs.get("text"), str) and inputs["text"].strip():
                return str(inputs["text"]).strip()
            link = next((inputs[k] for k in ("text", "positive", "conditioning") if k in inputs), None)
    return None


def _decoded(comment: object) -> str | None:
    """Exif's UserComment: eight bytes with the encoding, then the text."""
    if not isinstance(comment, bytes):
        return None
    if comment.startswith(b"UNICODE\0"):
        body = comment[8:]
        code = "utf-16-le" if body[1:2] == b"\0" else "utf-16-be"
        return body.decode(code, errors="replace")
    return comment.removeprefix(b"ASCII\0\0\0").decode("utf-8", errors="replace")
