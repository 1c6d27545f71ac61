"""job=score: compare any folder of images, from any tool, with photos of a subject, without training.

Importing this module loads nothing slow, because `check_images` is one of the checks before a job.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from diffusion_lab.config.jobs import Score, as_job
from diffusion_lab.config.schema import Config, Data, as_plain_dict
from diffusion_lab.data.image_prompts import ImagePrompt, clip_text, find_prompts
from diffusion_lab.data.picture_checks import check_headers, check_subject_pictures
from diffusion_lab.data.pictures import list_pictures, read_picture
from diffusion_lab.data.subjects import load_subject, subject_folder
from diffusion_lab.evaluation.encoders.check import encoder_warnings
from diffusion_lab.plan.downloads import rows, wanted
from diffusion_lab.plan.fits import check_device
from diffusion_lab.plan.inputs import check_impostors, check_metrics
from diffusion_lab.plan.origin import as_measured
from diffusion_lab.plan.plan import Plan, check_downloads, check_new_folder, check_place
from diffusion_lab.records import Evaluation, Prompt, PromptSet, Status, Subject, Summary, UserError
from diffusion_lab.system.cache import default_cache

if TYPE_CHECKING:
    import torch

    from diffusion_lab.evaluation.encoders.bank import EncoderBank
    from diffusion_lab.records import AnyMetric, Features, References
    from diffusion_lab.runs.files import FileTracker
    from diffusion_lab.sampling.sample import PlannedImage

log = logging.getLogger(__name__)

MOST_HEADERS = 2000  # images whose headers are read before the job; takes about a second
CACHE = "features.sqlite"  # in the cache folder: encoder outputs by image and encoder


# --- before anything is loaded --------------------------------------------------------------------------


def check(config: Config, run_folder: Path) -> Plan:
    """The plan: checks the images, the subject and the folder for the record."""
    config, taken = as_measured(config)
    check_device(config.model)
    check_impostors(config)
    check_metrics(config)
    told, warnings = check_images(config)
    check_new_folder(run_folder)
    check_place(run_folder, 0, "hydra.run.dir")
    files = check_downloads(wanted(config))
    warnings += encoder_warnings(config.metrics)
    measured = [("measured with", taken)] if taken else []
    return Plan(rows=(*told, *measured, *rows(files)), warnings=tuple(warnings), downloads=files)


def check_images(config: Config) -> tuple[list[tuple[str, str]], list[str]]:
    """Rows of the plan and warnings. UserError if images or metrics cannot be scored."""
    from diffusion_lab.data.subjects import check_subject, passed_over
    from diffusion_lab.evaluation.metrics import NEEDS_TWINS, select
    from diffusion_lab.evaluation.metrics.enough import check_enough

    folder, names = Path(as_job(config.job, Score).images).expanduser(), config.metrics.names
    paths = list_pictures(folder, "job.images")
    data = scored_data(config.data)
    noun = check_subject(data)
    warnings = check_subject_pictures(data, usual_side(paths))
    check_headers(paths[:MOST_HEADERS], data.on_corrupt)
    if "class_drift" in names:
        raise UserError(
            "metrics.names: class_drift compares with the untouched model's images, which a run draws at step 0; "
            "leave it out here"
        )
    found = find_prompts(paths, folder)
    check_enough(select(names), [Prompt("", one.text or "", "", one.slots) for one in found], scored=True)
    wanting = [name for name in names if name in NEEDS_TWINS]
    if wanting and not any(told.slots.get("identifier") == "without" for told in found):
        raise UserError(
            f"metrics.names: {', '.join(wanting)} compare images of prompts with and without the identifier; say "
            "which is which in metadata.csv: columns file_name, text, edit and identifier (with or without)"
        )
    warnings += passed_over(folder, "job.images")
    if config.metrics.encoders == "miniature" and data.source == "folder":
        warnings.append("metrics=miniature knows drawn portraits only; for photos use metrics=full")
    if data.source == "folder" and Path(str(data.folder)).expanduser().resolve() == folder.resolve():
        warnings.append("job.images is data.folder: pictures are compared with themselves")
    rows = [
        ("job", "score"),
        ("images", f"{len(paths)} in {folder}"),
        ("against", f"{data.subject}, a {noun}, {data.n_images} pictures"),
        ("metrics", ", ".join(names)),
    ]
    return rows, warnings


def scored_data(data: Data) -> Data:
    """``data`` as a run would read it, or with all photos if there are fewer than requested."""
    if data.source != "folder":
        return data
    from diffusion_lab.data.subsets import heldout_count

    total = len(list_pictures(subject_folder(data, None)[0]))
    if data.n_images + heldout_count(total, data.n_heldout) <= total:
        return data
    held = data.n_heldout or 0
    return dataclasses.replace(data, n_images=max(1, total - held), n_heldout=held)


# --- the job --------------------------------------------------------------------------------------------


def run(config: Config, run_folder: Path) -> None:
    """Scores `job.images`; writes scores.parquet, scores.csv, result.json and report.html to `run_folder`."""
    from diffusion_lab.models.load import resolve_device
    from diffusion_lab.report.score_page import print_table, write_score_report
    from diffusion_lab.runs.files import FileTracker

    device = resolve_device(config.model.device)
    config, taken = as_measured(config)
    if taken:
        log.info("measured with %s", taken)
    config = dataclasses.replace(config, data=scored_data(config.data))
    files = FileTracker(run_folder, device=str(device))
    status: Status = "failed"
    files.start(as_plain_dict(config))
    try:
        _score_folder(config, run_folder, device, files)
        report = write_score_report(run_folder, files.closing("completed", {}))
        status = "completed"  # last, after all other files
    except KeyboardInterrupt:
        status = "interrupted"
        files.error("stopped by the user (Ctrl-C)")
        raise
    except BaseException as error:
        files.error(f"{type(error).__name__}: {error}")
        raise
    finally:
        files.finish(status, {})
    print_table(run_folder)
    log.info("report: %s", report)


def _score_folder(config: Config, run_folder: Path, device: torch.device, files: FileTracker) -> None:
    from diffusion_lab.data.prompts import prompts_sha256
    from diffusion_lab.evaluation.encoders.bank import EncoderBank
    from diffusion_lab.evaluation.encoders.cache import FeatureCache
    from diffusion_lab.evaluation.evaluate import (
        fields_needed,
        reference_features,
        reference_scores,
        score,
        several_faces,
    )
    from diffusion_lab.evaluation.metrics import select
    from diffusion_lab.jobs.photographs import record_photographs
    from diffusion_lab.runs.score_files import write_score_files

    folder = Path(as_job(config.job, Score).images).expanduser()
    paths = list_pictures(folder, "job.images")
    told = find_prompts(paths, folder)
    subject = load_subject(config.data)
    metrics = select(config.metrics.names)
    cache = FeatureCache(default_cache() / CACHE)
    bank = EncoderBank(config.metrics, device, cache=cache)
    resolution = usual_side(paths)
    faces = record_photographs(subject, bank, resolution, metrics, files)
    references = reference_features(subject, bank, resolution, faces)
    planned = _planned(paths, told, subject)
    started = time.perf_counter()
    kept, features, small = _encode(config, paths, planned, bank, fields_needed(metrics))
    encoding = time.perf_counter() - started
    planned = [planned[number] for number in kept]
    _describe(files, metrics, bank, references, reference_scores(references, metrics))
    rows, summaries = score(features, references, metrics, planned, 0)
    _tell_prompts(planned, told, summaries)
    _tell_faces(references, summaries)
    prompts = tuple(item.prompt for item in planned)
    found = Evaluation(
        step=0, images=(), rows=rows, summaries=summaries,
        seconds={"encoding": encoding, "metrics": time.perf_counter() - started - encoding},
        several_faces=several_faces(features),
    )  # fmt: skip
    write_score_files(run_folder, rows, planned, metrics, small)
    files.evaluation(found, PromptSet("images", prompts, "", prompts_sha256(prompts, "")))
    if found.several_faces:
        log.info("%d images show several faces: the most prominent one is scored", found.several_faces)
    log.info("%d images; %d features from the cache, %d made", len(planned), cache.hits, cache.misses)


def _planned(paths: Sequence[Path], told: Sequence[ImagePrompt], subject: Subject) -> list[PlannedImage]:
    """One entry per image; images of the same prompt share its id, because they are not independent."""
    from diffusion_lab.sampling.sample import PlannedImage

    ids: dict[str, str] = {}
    seen: Counter[str] = Counter()
    planned = []
    for number, (path, one) in enumerate(zip(paths, told, strict=True)):
        text = one.text or ""
        name = ids.setdefault(text, f"p{len(ids):03d}") if text else f"image{number:05d}"
        plain = one.plain or clip_text(text, subject.identifier, subject.class_noun)
        prompt = Prompt(id=name, text=text, plain=plain, slots={**one.slots, "file": path.name})
        planned.append(PlannedImage(prompt, seen[name], one.seed))
        seen[name] += 1
    return planned


def _encode(
    config: Config, paths: Sequence[Path], planned: Sequence[PlannedImage], bank: EncoderBank, needs: set[str]
) -> tuple[list[int], Features, list[bytes]]:
    """The indices of the readable images, their features, and thumbnails for the report.

    Works in batches, because the images of a folder may not fit into memory.
    """
    from diffusion_lab.evaluation.evaluate import concatenate_features
    from diffusion_lab.runs.score_files import thumbnail
    from diffusion_lab.system.progress import Progress

    kept: list[int] = []
    small: list[bytes] = []
    parts: list[Features] = []
    size = config.metrics.batch_size
    with Progress(config.tracker.progress) as progress, progress.task("encoding", len(paths)) as bar:
        for start in range(0, len(paths), size):
            pixels, texts = [], []
            for number in range(start, min(start + size, len(paths))):
                try:
                    pixels.append(read_picture(paths[number]).pixels)
                except UserError as error:
                    if config.data.on_corrupt != "skip":
                        raise
                    log.warning("left out: %s", error)
                    continue
                kept.append(number)
                texts.append(planned[number].prompt.plain or None)
            if pixels:
                parts.append(bank.features(pixels, texts=texts, needs=needs))
                small += [thumbnail(one) for one in pixels]
            bar.advance(min(size, len(paths) - start))
    if not parts:
        raise UserError(
            f"job.images: none of the {len(paths)} images in {as_job(config.job, Score).images} can be read"
        )
    return kept, concatenate_features(parts), small


def _describe(
    files: FileTracker,
    metrics: Sequence[AnyMetric],
    bank: EncoderBank,
    references: References,
    lines: Mapping[str, Mapping[Literal["ceiling", "impostor"], Summary | None]],
) -> None:
    """Writes the reference scores to the record, and logs photos without a face."""
    from diffusion_lab.evaluation.evaluate import without_face

    files.metrics(metrics)
    files.encoders(bank.identities())
    ceilings = {name: pair["ceiling"] for name, pair in lines.items()}
    files.references(ceilings, {name: pair["impostor"] for name, pair in lines.items()})
    for group, (missing, total) in without_face(references).items():
        if missing:
            log.warning("no face found in %d of %d %s photos", missing, total, group)


def _tell_prompts(
    planned: Sequence[PlannedImage], told: Sequence[ImagePrompt], summaries: dict[str, Summary]
) -> None:
    """Reports how many images have a prompt, and from where. The summary of clip_text notes the others."""
    sources = Counter(one.source for one in told if one.text)
    without = sum(not item.prompt.text for item in planned)
    said = [f"{n} from {source}" for source, n in sources.items()]
    log.info("prompts: %s", ", ".join([*said, *([f"{without} images without"] if without else [])]))
    if without and (clip := summaries.get("clip_text")):
        told_before = [clip.note] if clip.note else []
        note = "; ".join([f"{without} of {len(planned)} images have no prompt", *told_before])
        summaries["clip_text"] = dataclasses.replace(clip, note=note)


def _tell_faces(references: References, summaries: dict[str, Summary]) -> None:
    """Notes in the summary why similarity has no value for any image."""
    for name, group, what in (
        ("similarity", references.train, "pictures it is compared with"),
        ("similarity_heldout", references.heldout, "held-out pictures"),
    ):
        found = summaries.get(name)
        if found is None or found.mean is not None:
            continue
        if group is None:
            note = "there are no held-out pictures (data.n_heldout)"
        elif group.face is not None and bool(group.face.isnan().any(dim=1).all()):
            note = f"no face found in the {group.n} {what}; for things without one: clip_image, dino"
        else:
            note = "no face found in any of the images"
        summaries[name] = dataclasses.replace(found, note=note)


def usual_side(paths: Sequence[Path]) -> int:
    """The most frequent short side of the images, in pixels: photos are compared at that size."""
    from PIL import Image

    sides: Counter[int] = Counter()
    for path in paths:
        try:
            with Image.open(path) as image:
                sides[min(image.size)] += 1
        except Exception:  # reported when its pixels are read
            continue
    return sides.most_common(1)[0][0] if sides else 512
