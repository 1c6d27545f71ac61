"""One evaluation: generates images, computes their features once, then values, rows and summaries of every metric."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from diffusion_lab.analysis.intervals import undefined_summary
from diffusion_lab.data.prompts import without_identifier
from diffusion_lab.evaluation.metrics import select
from diffusion_lab.evaluation.metrics.enough import check_enough
from diffusion_lab.evaluation.metrics.finite import FIELDS, without_broken_rows
from diffusion_lab.evaluation.metrics.summaries import of_images, of_photographs
from diffusion_lab.evaluation.shared import Shared, images_of
from diffusion_lab.records import Evaluation, Features, Metric, References, ScoreRow, UserError
from diffusion_lab.sampling.sample import plan
from diffusion_lab.system.readers import read_tensors
from diffusion_lab.system.rng import preserved_rng

if TYPE_CHECKING:
    from pathlib import Path

    from diffusion_lab.config.schema import Prompts
    from diffusion_lab.evaluation.encoders.bank import EncoderBank
    from diffusion_lab.evaluation.encoders.photographs import Photograph
    from diffusion_lab.records import AnyMetric, Picture, Pixels, PromptSet, Subject, Summary
    from diffusion_lab.sampling.embeddings import PromptEmbeddings
    from diffusion_lab.sampling.sample import PlannedImage
    from diffusion_lab.system.progress import Progress

TENSORS = (*FIELDS, "faces")  # of `Features`


def evaluate(
    pipe: Any,
    prompts: PromptSet,
    references: References,
    bank: EncoderBank,
    settings: Prompts,
    step: int,
    *,
    progress: Progress | None = None,
    cache: PromptEmbeddings | None = None,
    resolution: int | None = None,
    base: Path | None = None,
    shared: Shared | None = None,
) -> Evaluation:
    """Generates the prompt set's images with the current ``pipe`` and scores them with the metrics.

    Raises UserError before any image is generated if a metric compares images with each other and gets only one.
    The modes of all modules, `pipe.scheduler`, the weights and the global random generators are left unchanged.
    ``cache``: the run's prompt embeddings; ``resolution``: pixels, by default the model's own. ``base``: a
    file with the features of the base model's images without the identifier, written at step 0 and read at
    later steps; only the metrics that need it create it. ``shared``: at step 0, stored results of other
    runs, which are used and added to.
    """
    planned = plan(prompts, settings)
    metrics = select(bank.settings.names)
    check_enough(metrics, [item.prompt for item in planned])
    seconds: dict[str, float] = {}
    with preserved_rng():
        started = time.perf_counter()
        images, taken = images_of(
            pipe, prompts, settings, progress=progress, cache=cache, resolution=resolution, shared=shared
        )
        seconds["sampling"] = time.perf_counter() - started
        started = time.perf_counter()
        blocks = None if shared is None else shared.blocks
        computed = 0 if blocks is None else blocks.misses
        with (
            bank.caching(blocks),
            progress.task("encoding", len(planned)) if progress else nullcontext() as bar,
        ):
            features = bank.features(
                images,
                texts=[item.prompt.plain for item in planned],
                needs=fields_needed(metrics),
                progress=bar.advance if bar else None,
            )
        if blocks is not None and blocks.misses == computed:
            taken = (*taken, "features")
        seconds["encoding"] = time.perf_counter() - started
        started = time.perf_counter()
        if base is not None and any(metric.name == "class_drift" for metric in metrics):
            references = replace(references, base=_base_features(base, features, planned, step))
        rows, summaries = score(features, references, metrics, planned, step)
        seconds["metrics"] = time.perf_counter() - started
    return Evaluation(
        step=step, images=tuple(images), rows=rows, summaries=summaries, seconds=seconds,
        several_faces=several_faces(features), shared=taken,
    )  # fmt: skip


def score(
    features: Features,
    references: References,
    metrics: Sequence[AnyMetric],
    planned: Sequence[PlannedImage],
    step: int,
) -> tuple[tuple[ScoreRow, ...], dict[str, Summary]]:
    """One row per metric and image, sorted by metric, and the summary of each metric, clustered by prompt.

    A metric of the whole set has no rows.
    Images of prompts without the identifier are used only by the metrics of the class; in all others
    their value is None.
    """
    rows: list[ScoreRow] = []
    summaries: dict[str, Summary] = {}
    subject, klass = split_by_identifier(planned)
    features = without_broken_rows(features, [f"{item.prompt.id}-{item.index}" for item in planned])
    features = replace(features, prompts=tuple(item.prompt for item in planned))
    groups = {"subject": (take(features, subject), subject), "class": (take(features, klass), klass)}
    references = replace(references, without=groups["class"][0])
    for metric in metrics:
        seen, numbers = groups[metric.over]
        ids = [planned[number].prompt.id for number in numbers]
        if seen is None:
            identifier_side = "without" if metric.over == "class" else "with"
            summaries[metric.name] = undefined_summary(
                f"no prompt of the set is {identifier_side} the identifier"
            )
            continue
        if not isinstance(metric, Metric):
            summaries[metric.name] = metric.summary(seen, references, ids)
            continue
        values = metric(seen, references)
        at = dict(zip(numbers, values.tolist(), strict=True))
        summaries[metric.name] = of_images(metric, values, seen, references, ids)
        rows.extend(
            ScoreRow(
                step=step,
                prompt_id=item.prompt.id,
                index=item.index,
                seed=item.seed,
                metric=metric.name,
                version=metric.version,
                value=None if math.isnan(value := at.get(number, math.nan)) else value,
                slots=item.prompt.slots,
            )
            for number, item in enumerate(planned)
        )
    return tuple(rows), summaries


def split_by_identifier(planned: Sequence[PlannedImage]) -> tuple[list[int], list[int]]:
    """Indices of the images with the identifier in their prompt, and of those without it."""
    klass = [number for number, item in enumerate(planned) if without_identifier(item.prompt)]
    left_out = set(klass)
    return [number for number in range(len(planned)) if number not in left_out], klass


def take(features: Features, numbers: Sequence[int]) -> Features | None:
    """The features of these images: the same object for all images, None for none."""
    if not numbers:
        return None
    if len(numbers) == features.n:
        return features
    fields: dict[str, Any] = {}
    for name in TENSORS:
        value = getattr(features, name)
        fields[name] = None if value is None else value[list(numbers)]
    prompts = None if features.prompts is None else tuple(features.prompts[number] for number in numbers)
    more = {name: rows[list(numbers)] for name, rows in features.more.items()}
    return Features(n=len(numbers), prompts=prompts, more=more, **fields)


def concatenate_features(parts: Sequence[Features]) -> Features:
    """The features of several batches, concatenated; at least one batch."""
    import torch

    fields: dict[str, Any] = {
        name: None if getattr(parts[0], name) is None else torch.cat([getattr(part, name) for part in parts])
        for name in TENSORS
    }
    more = {name: torch.cat([part.more[name] for part in parts]) for name in parts[0].more}
    return Features(n=sum(part.n for part in parts), more=more, **fields)


LOST = "start again in another folder with hydra.run.dir=FOLDER, or remove class_drift from metrics.names"


def _base_features(
    path: Path, features: Features, planned: Sequence[PlannedImage], step: int
) -> Features | None:
    """Features of the base model's class images: stored at step 0 and read later, also by a resumed run."""

    from diffusion_lab.system import tensors

    klass = take(features, split_by_identifier(planned)[1])
    if klass is None or klass.clip_image is None:
        return None
    if step == 0:
        tensors.write(path, {"clip_image": klass.clip_image})
        return klass
    if not path.is_file():
        return None
    found = read_tensors(path, "class_drift", remedy=LOST).get("clip_image")
    if found is None or found.ndim != 2 or found.shape[1] != klass.clip_image.shape[1]:
        raise UserError(f"class_drift: {path} has features of another run; {LOST}")
    return Features(n=len(found), clip_image=found)


def reference_features(
    subject: Subject,
    bank: EncoderBank,
    resolution: int,
    faces: Mapping[str, Sequence[Photograph]] | None = None,
) -> References:
    """Features of the reference photos and of other subjects' photos, cropped and resized.

    The photos are compared at the model's ``resolution`` in pixels, because a sharper photo would give
    values that are not comparable. ``faces``: the choice of `look_at`, made here by default.
    """
    from diffusion_lab.data.pictures import center_crop_resize
    from diffusion_lab.evaluation.encoders.photographs import subject_faces

    needs = fields_needed(select(bank.settings.names)) - {"clip_text"}
    if faces is None and "face" in needs:
        faces = subject_faces(subject, bank, resolution)

    def seen(group: str, pictures: Sequence[Picture]) -> Features | None:
        if not pictures:
            return None
        pixels: list[Pixels] = [center_crop_resize(picture.pixels, resolution) for picture in pictures]
        features = bank.features(pixels, texts=None, needs=needs - {"face"})
        if faces is not None:
            features = with_faces(features, faces[group])
        return without_broken_rows(features, [picture.path.name for picture in pictures])

    train = seen("train", subject.train)
    if train is None:
        raise UserError("data.n_images: there is no training photo to compare with")
    return References(
        train=train, heldout=seen("heldout", subject.heldout), impostors=seen("impostors", subject.impostors)
    )


def with_faces(features: Features, photographs: Sequence[Photograph]) -> Features:
    """`features` with the embeddings of the chosen faces; NaN if there is none."""
    import torch

    rows = torch.stack([photograph.embedding for photograph in photographs])
    counts = torch.tensor([float(len(photograph.faces)) for photograph in photographs])
    return replace(features, face=rows, faces=counts)


def reference_scores(
    references: References, metrics: Iterable[AnyMetric]
) -> dict[str, dict[Literal["ceiling", "impostor"], Summary | None]]:
    """Ceiling (real photos against each other, leave-one-out) and impostor line of each metric; None if it has none.

    A summary's `missing` is the number of photos without a face.
    """
    result: dict[str, dict[Literal["ceiling", "impostor"], Summary | None]] = {}
    for metric in metrics:
        if not isinstance(metric, Metric):
            lines = metric.ceiling_summary(references), metric.impostor_summary(references)
            result[metric.name] = {"ceiling": lines[0], "impostor": lines[1]}
            continue
        result[metric.name] = {
            "ceiling": of_photographs(metric, "ceiling", references),
            "impostor": of_photographs(metric, "impostor", references),
        }
    return result


def several_faces(features: Features) -> int | None:
    """The number of images with more than one face. The most prominent face is used."""
    return None if features.faces is None else int((features.faces > 1).sum())


def without_face(references: References) -> dict[str, tuple[int, int]]:
    """The number of photos without a face and the total number, by "train", "heldout" and "impostors".

    Photos without a face are excluded from the reference pairs. Empty if no metric uses faces.
    """
    groups = {"train": references.train, "heldout": references.heldout, "impostors": references.impostors}
    return {
        name: (int(features.face.isnan().any(dim=1).sum()), features.n)
        for name, features in groups.items()
        if features is not None and features.face is not None
    }


def fields_needed(metrics: Iterable[AnyMetric]) -> set[str]:
    """The fields of `Features` that these metrics read."""
    return {field for metric in metrics for field in metric.needs}
