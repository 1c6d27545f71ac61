"""job=generate: images of any prompts with an artefact, ours or another tool's, or with the model alone.

    python -m diffusion_lab job=generate job.artefact=outputs/RUN/artefact job.text='a photo of customcls dog'

Started again it draws what is missing. Files carry their parameters as web UIs write them.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import io
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion_lab import paths
from diffusion_lab.config import Config
from diffusion_lab.interfaces import Prompt, PromptSet, UserError
from diffusion_lab.models.artefacts import PIPELINE, Artefact, apply, recognise

if TYPE_CHECKING:
    from diffusion_lab.config import Model, Prompts
    from diffusion_lab.interfaces import Pixels
    from diffusion_lab.sampling.sample import Planned

log = logging.getLogger(__name__)
INDEX = "generated.json"  # what the images of the folder depend on, and which file is which


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be drawn, known before anything slow is loaded."""

    model: Model
    artefacts: tuple[Artefact, ...]
    prompts: PromptSet
    settings: Prompts
    folder: Path


def order(config: Config) -> Order:
    """The artefact's pieces, the model it belongs to, and the prompts with its own words.

    UserError (job.artefact, prompts.*): nothing to load there, or prompts that cannot be made.
    """
    from diffusion_lab.data.own_texts import own_texts
    from diffusion_lab.data.prompts import load_prompts

    job, data, settings = config.job, config.data, config.prompts
    found = recognise(Path(job.artefact).expanduser()) if job.artefact else ()
    header = {key: value for piece in reversed(found) for key, value in piece.header.items()}
    model = _base(config.model, found, header)
    own = own_texts(job)
    if own:
        texts = tuple(Prompt(f"p{i:03d}", text, text) for i, text in enumerate(own))
        settings = dataclasses.replace(settings, n=len(texts))  # prompts.n is for sets
        negative = settings.negative or ""
        prompts = PromptSet("texts", texts, negative, hashlib.sha256(repr(texts).encode()).hexdigest())
    else:
        noun = header.get("class_noun") or data.class_noun or "person"
        identifier = header.get("trigger") or data.identifier
        prompts = load_prompts(settings, identifier=identifier, class_noun=noun)
    return Order(model, found, prompts, settings, Path(job.output).expanduser())


def _base(model: Model, found: Sequence[Artefact], header: dict[str, str]) -> Model:
    """A whole pipeline is its own model; an artefact names its own, which counts where the config names none."""
    chosen = copy.deepcopy(model)
    if found and found[0].kind == PIPELINE:
        chosen.path, chosen.config, chosen.variant = str(found[0].path), None, None
    elif header.get("base_model") and model.path == "miniature":
        chosen.path = header["base_model"]
    elif not paths.same(header.get("base_model", model.path), model.path):
        log.warning("the artefact was made for model.path=%s, not %s", header["base_model"], model.path)
    if chosen.path != model.path:
        chosen.resolution = None  # the other model's own
    return chosen


def run(config: Config, run_folder: Path) -> None:
    """Writes `<prompt>-<index>.png` into `job.output`, and `generated.json`. `run_folder` stays unused."""
    from diffusion_lab.data.tokens import check_lengths
    from diffusion_lab.models.load import cast_frozen, load_pipeline, resolution_of, resolve_device
    from diffusion_lab.sampling.embeddings import PromptEmbeddings
    from diffusion_lab.sampling.sample import draw, plan
    from diffusion_lab.tracking.atomic import write_bytes, write_json
    from diffusion_lab.tracking.progress import Progress

    wanted = order(config)
    planned = plan(wanted.prompts, wanted.settings)
    facts = _facts(config, wanted)
    names = [f"{item.prompt.id}-{item.index}.png" for item in planned]
    _check_same(wanted.folder, facts)
    size = wanted.settings.batch_size
    # Whole batches, since a picture's last bits depend on its batch.
    starts = [
        start
        for start in range(0, len(planned), size)
        if not all((wanted.folder / name).is_file() for name in names[start : start + size])
    ]
    if not starts:
        log.info("%s: all %d images are there", wanted.folder, len(planned))
        return
    pipe = load_pipeline(wanted.model, resolve_device(wanted.model.device))
    for piece in wanted.artefacts:
        if piece.kind != PIPELINE:
            apply(pipe, piece, config.job.weight)
    check_lengths(pipe.tokenizer, "", wanted.prompts)
    cast_frozen(pipe, wanted.model.precision)
    resolution = resolution_of(pipe, wanted.model)
    rows = [
        {"file": name, "prompt": item.prompt.text, "index": item.index, "seed": item.seed}
        for name, item in zip(names, planned, strict=True)
    ]
    write_json(wanted.folder / INDEX, {"settings": facts, "images": rows})
    embeddings = PromptEmbeddings()
    with (
        Progress(config.tracker.progress) as progress,
        progress.task("images", sum(len(planned[start : start + size]) for start in starts)) as bar,
    ):
        for start in starts:
            batch = planned[start : start + size]
            images = draw(
                pipe, batch, wanted.prompts.negative, wanted.settings,
                prompt_embeds=embeddings, progress=bar.advance, resolution=resolution,
            )  # fmt: skip
            for name, item, image in zip(names[start:], batch, images, strict=False):
                if not (wanted.folder / name).is_file():
                    text = parameters(item, wanted, image)
                    write_bytes(wanted.folder / name, png(image, text))
    log.info("%s: %d images", wanted.folder, len(planned))


def _facts(config: Config, wanted: Order) -> dict[str, object]:
    """Everything the images depend on but the machine."""
    settings = wanted.settings
    pieces = [
        file
        for piece in wanted.artefacts
        for file in ([piece.path] if piece.path.is_file() else sorted(piece.path.rglob("*.safetensors")))
    ]
    return {
        "model": wanted.model.path,
        "artefact": {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in pieces},
        "weight": config.job.weight,
        "prompts": wanted.prompts.sha256,
        "negative": wanted.prompts.negative,
        "noise_seed": settings.noise_seed,
        "images_per_prompt": settings.images_per_prompt,
        "sampling_steps": settings.sampling_steps,
        "guidance_scale": settings.guidance_scale,
        "batch_size": settings.batch_size,
        "resolution": wanted.model.resolution,
        "precision": wanted.model.precision,
    }


def _check_same(folder: Path, facts: dict[str, object]) -> None:
    index = folder / INDEX
    if not index.is_file():
        return
    before = json.loads(index.read_text("utf-8"))["settings"]
    differing = sorted(
        key
        for key in facts
        if facts[key] != before.get(key) and not (key == "model" and paths.same(before.get(key), facts[key]))
    )
    if differing:
        raise UserError(
            f"job.output={folder}: holds images made with another {', '.join(differing)}; choose another folder"
        )


def parameters(item: Planned, wanted: Order, image: Pixels) -> str:
    """What A1111's web UI and its relatives write into a PNG, and read from one dropped onto them."""
    settings = wanted.settings
    height, width = image.shape[:2]
    lines = [item.prompt.text]
    if wanted.prompts.negative:
        lines.append(f"Negative prompt: {wanted.prompts.negative}")
    facts = [
        f"Steps: {settings.sampling_steps}", "Sampler: DPM++ 2M", f"CFG scale: {settings.guidance_scale:g}",
        f"Seed: {item.seed}", f"Size: {width}x{height}", f"Model: {Path(wanted.model.path).name}",
        *(f"Artefact: {piece.path.name}" for piece in wanted.artefacts), "Version: diffusion_lab",
    ]  # fmt: skip
    return "\n".join([*lines, ", ".join(facts)])


def png(image: Pixels, text: str) -> bytes:
    """uint8 [height, width, 3] as a PNG file with `text` under the key `parameters`."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    (info.add_text if text.isascii() else info.add_itxt)("parameters", text)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()
