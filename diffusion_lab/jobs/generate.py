"""job=generate: images of any prompts with an artefact, of this or another tool, or with the model alone.

    python -m diffusion_lab job=generate job.artefact=outputs/RUN/artefact job.text='a photo of customcls dog'

If run again, it generates the missing images. Files contain their parameters in the format of web UIs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion_lab.artefacts.artefact import EMBEDDING, PIPELINE, Artefact, apply, recognise
from diffusion_lab.config import paths
from diffusion_lab.config.jobs import Generate, as_job
from diffusion_lab.config.schema import Config
from diffusion_lab.data.prompts import images_per_prompt
from diffusion_lab.models.devices import precision_row, precision_warnings
from diffusion_lab.models.place import check_model
from diffusion_lab.models.which_family import which_family
from diffusion_lab.plan.artefact_fits import check_fit, check_weight
from diffusion_lab.plan.downloads import of_model, rows
from diffusion_lab.plan.fits import check_device
from diffusion_lab.plan.origin import INDEX, as_trained
from diffusion_lab.plan.plan import Plan, check_downloads, check_place
from diffusion_lab.plan.sampling import ignored_negative
from diffusion_lab.records import Prompt, PromptSet, UserError
from diffusion_lab.system.readers import read_json

if TYPE_CHECKING:
    from diffusion_lab.config.schema import Model, Prompts
    from diffusion_lab.records import Pixels
    from diffusion_lab.sampling.sample import PlannedImage

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be generated, known before anything slow is loaded."""

    model: Model
    artefacts: tuple[Artefact, ...]
    prompts: PromptSet
    settings: Prompts
    folder: Path
    taken: str  # settings taken from the artefact, "" for none


def order(config: Config) -> Order:
    """The parts of the artefact, its base model, and the prompts with its learned words.

    UserError (job.artefact, prompts.*) if there is nothing to load, or if the prompts cannot be created.
    """
    from diffusion_lab.data.job_texts import job_texts
    from diffusion_lab.data.prompts import load_prompts

    job = as_job(config.job, Generate)
    place = Path(job.artefact).expanduser() if job.artefact else None
    found = recognise(place) if place is not None else ()
    check_weight(found, job.weight)
    header = {key: value for piece in reversed(found) for key, value in piece.header.items()}
    pipeline = next((piece.path for piece in found if piece.kind == PIPELINE), None)
    config, taken = as_trained(config, place, header, pipeline)
    made_for, settings = header.get("base_model"), config.prompts
    if made_for and made_for == config.model.path:
        _check_base(config.model)
    if made_for and pipeline is None and not paths.same(made_for, config.model.path):
        log.warning("the artefact was made for model.path=%s, not %s", made_for, config.model.path)
    own = job_texts(job)
    if own:
        texts = tuple(Prompt(f"p{i:03d}", text, text) for i, text in enumerate(own))
        settings = dataclasses.replace(settings, n=len(texts))  # prompts.n is for sets
        negative = settings.negative or ""
        prompts = PromptSet("texts", texts, negative, hashlib.sha256(repr(texts).encode()).hexdigest())
    else:
        noun = config.data.class_noun or "person"
        try:
            prompts = load_prompts(settings, identifier=config.data.identifier, class_noun=noun)
        except UserError as error:
            if "prompts.name=" not in taken:
                raise
            raise UserError(
                f"{error}; job.artefact was trained with this set: give prompts of your own, such as "
                "job.text='a photo', or another set, such as prompts=portrait"
            ) from error
    return Order(config.model, found, prompts, settings, Path(job.output).expanduser(), taken)


def _check_base(model: Model) -> None:
    """UserError if the artefact's base model has been moved or is on another machine."""
    from diffusion_lab.models.place import model_folder

    try:
        model_folder(model)
    except UserError as error:
        raise UserError(
            f"{error}; it is what job.artefact was made for: set model.path to where that model is now"
        ) from error


def unsaid(wanted: Order) -> list[str]:
    """Warnings for embeddings whose word is in no prompt, and for a LoRA used without its word."""
    from diffusion_lab.values.word_match import contains_word

    texts = [wanted.prompts.negative, *(prompt.text for prompt in wanted.prompts)]
    words = {piece.path: piece.header["trigger"] for piece in wanted.artefacts if piece.kind == EMBEDDING}
    lone = [piece for piece in wanted.artefacts if piece.header.get("method") == "pivotal" and not words]
    return [
        *(
            f"{path.name} is called {word!r}, which no prompt says, so it has no effect"
            for path, word in words.items()
            if not any(contains_word(word, text) for text in texts)
        ),
        *(
            f"{piece.path.name} was trained with a new word, {piece.header.get('trigger', '')!r}, which is in a file "
            "of its own: give the folder that holds both, or the word has no meaning"
            for piece in lone
        ),
    ]


def check(config: Config, run_folder: Path) -> Plan:
    """The plan: checks that artefacts fit the model, prompts, and disk space. `run_folder` is not used."""

    ordered = order(config)
    check_device(ordered.model)
    warnings = [
        *ignored_negative(ordered.settings, ordered.prompts, which_family(ordered.model)),
        *unsaid(ordered),
        *precision_warnings(ordered.model),
    ]
    configs = check_model(ordered.model, warnings)
    if configs is not None:
        check_fit(ordered.artefacts, configs, ordered.model)
    images = len(ordered.prompts) * images_per_prompt(ordered.settings, ordered.prompts)
    check_place(ordered.folder, images * 1_000_000, "job.output")
    files = check_downloads(of_model(ordered.model))
    told = (
        ("job", "generate"),
        ("model", ordered.model.path),
        ("precision", precision_row(ordered.model)),
        ("with", ", ".join(f"{piece.kind} {piece.path}" for piece in ordered.artefacts) or "nothing"),
        ("images", f"{images}, prompts {ordered.prompts.name}"),
        *([("drawn with", ordered.taken)] if ordered.taken else []),
        ("into", str(ordered.folder)),
    )
    return Plan(rows=(*told, *rows(files)), warnings=tuple(warnings), downloads=files)


def run(config: Config, run_folder: Path) -> None:
    """Writes `<prompt>-<index>.png` into `job.output`, and `generated.json`. `run_folder` is not used."""
    from diffusion_lab.data.tokens import check_texts
    from diffusion_lab.models.load import cast_frozen, load_pipeline, resolution_of, resolve_device
    from diffusion_lab.sampling.embeddings import PromptEmbeddings
    from diffusion_lab.sampling.sample import draw, plan
    from diffusion_lab.system.atomic import write_bytes, write_json
    from diffusion_lab.system.progress import Progress

    wanted, job = order(config), as_job(config.job, Generate)
    if wanted.taken:
        log.info("drawn with %s", wanted.taken)
    if job.weight != 1 and {EMBEDDING} < {piece.kind for piece in wanted.artefacts}:
        log.info("job.weight=%g applies to the LoRA; the word beside it is used unscaled", job.weight)
    planned = plan(wanted.prompts, wanted.settings)
    facts = _facts(job, wanted)
    names = [f"{item.prompt.id}-{item.index}.png" for item in planned]
    _check_same(wanted.folder, facts)
    size = wanted.settings.batch_size
    # Complete batches, because the last bits of an image depend on its batch.
    starts = [
        start
        for start in range(0, len(planned), size)
        if not all((wanted.folder / name).is_file() for name in names[start : start + size])
    ]
    if not starts:
        log.info("%s: all %d images exist already", wanted.folder, len(planned))
        return
    pipe = load_pipeline(wanted.model, resolve_device(wanted.model.device))
    for piece in wanted.artefacts:
        if piece.kind != PIPELINE:
            apply(pipe, piece, job.weight)
    check_texts(pipe, wanted.prompts)
    cast_frozen(pipe, wanted.model.precision)
    resolution = resolution_of(pipe, wanted.model)
    rows = [
        {"file": name, "prompt": item.prompt.text, "index": item.index, "seed": item.seed}
        for name, item in zip(names, planned, strict=True)
    ]
    artefact = str(Path(job.artefact).expanduser().absolute()) if job.artefact else ""
    write_json(wanted.folder / INDEX, {"settings": facts, "artefact": artefact, "images": rows})
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


def _facts(job: Generate, wanted: Order) -> dict[str, object]:
    """Everything that the images depend on, except the machine."""
    settings = wanted.settings
    pieces = [
        file
        for piece in wanted.artefacts
        for file in ([piece.path] if piece.path.is_file() else sorted(piece.path.rglob("*.safetensors")))
    ]
    return {
        "model": wanted.model.path,
        "artefact": {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in pieces},
        "weight": job.weight,
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
    remedy = "remove it and the images beside it, or choose another folder"
    before = read_json(index, "job.output", remedy=remedy).get("settings")
    if not isinstance(before, dict):
        raise UserError(f"job.output: {index} holds no settings; {remedy}")
    differing = sorted(
        key
        for key in facts
        if facts[key] != before.get(key) and not (key == "model" and paths.same(before.get(key), facts[key]))
    )
    if differing:
        raise UserError(
            f"job.output={folder}: holds images made with another {', '.join(differing)}; choose another folder"
        )


def parameters(item: PlannedImage, wanted: Order, image: Pixels) -> str:
    """The parameters text that A1111's web UI and its forks write to PNG files and read from them."""
    settings = wanted.settings
    height, width = image.shape[:2]
    lines = [item.prompt.text]
    if wanted.prompts.negative:
        lines.append(f"Negative prompt: {wanted.prompts.negative}")
    family = which_family(wanted.model)
    scale = f"{settings.guidance_scale:g}"
    facts = [
        f"Steps: {settings.sampling_steps}", f"Sampler: {family.sampler}",
        # As written by Forge for FLUX.1.
        f"CFG scale: 1, Distilled CFG Scale: {scale}" if family.guidance == "embedded" else f"CFG scale: {scale}",
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
