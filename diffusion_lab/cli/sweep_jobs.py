"""The jobs of a sweep, settled before the first one starts: configuration, folder, and what is there already."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_lab import jobs
from diffusion_lab.cli import sweep_names
from diffusion_lab.cli.compose_jobs import compose_jobs
from diffusion_lab.config.schema import as_plain_dict
from diffusion_lab.records import UserError
from diffusion_lab.runs.extended_sweep import best_of, identity, runs_in
from diffusion_lab.runs.resume import FolderStatus, folder_status
from diffusion_lab.studies.definition import Point, Study
from diffusion_lab.values.jsonable import plain
from diffusion_lab.values.quoting import always_quoted, literal

if TYPE_CHECKING:
    from diffusion_lab.config.schema import Config

PRECISIONS = ("fp32", "bf16", "fp16")  # what `auto` may have stood for on another device


@dataclass(frozen=True, slots=True)
class Job:
    """One run of a sweep."""

    words: tuple[str, ...]  # its overrides
    same: tuple[tuple[str, ...], ...]  # all overrides that give this configuration
    config: Config  # with defaults and absolute paths
    run: str  # identity of its configuration
    folder: str  # name of its folder in the sweep's folder
    status: FolderStatus | None = (
        None  # of its folder; None: only the job itself can say what is wrong with it
    )

    @property
    def launched(self) -> list[str]:
        """The overrides for Hydra's launchers, which add those of Hydra itself."""
        return [*self.words, f"hydra.sweep.subdir={always_quoted(self.folder)}"]


def union(studies: Sequence[Study], given: Collection[str]) -> list[tuple[str, ...]]:
    """The words of each point, once each; W&B groups the runs by the first study that has them."""
    found: dict[tuple[str, ...], str] = {}
    for study in studies:
        for point in study.points:
            found.setdefault(point.overrides, study.name)
    grouped = "tracker.group" in given
    return [words if grouped else (f"tracker.group={literal(name)}", *words) for words, name in found.items()]


def settle(
    words: Sequence[Sequence[str]], folder: Path, hydras: Sequence[str] = (), *, studies: bool = False
) -> list[Job]:
    """The jobs with their folders in `folder`; equal configurations count once.

    `words`: the overrides of each job. `hydras`: those of Hydra itself, which are the same for all jobs.
    `studies`: names say what is trained in any case, since runs of several studies are side by side.

    Raises UserError if a value is not allowed, and Hydra's errors for wrong keys, options and types.
    """
    known = runs_in(folder)
    held = best_of(known)
    found: dict[str, tuple[list[tuple[str, ...]], Config, dict[str, Any]]] = {}
    for job, (config, own_precision) in zip(words, compose_jobs(words, hydras), strict=True):
        config, recorded = _as_held(config, held) if own_precision else (config, plain(as_plain_dict(config)))
        found.setdefault(identity(recorded), ([], config, recorded))[0].append(tuple(job))
    always = sweep_names.WHAT if studies else ()
    names = sweep_names.by_what_varies([same[0] for same, _, _ in found.values()], always)
    configs = [recorded for _, _, recorded in found.values()]
    folders = sweep_names.settle(names, configs, folder, known)
    return [
        Job(same[0], tuple(same), config, run, name, _status(config, folder / name))
        for (run, (same, config, _)), name in zip(found.items(), folders, strict=True)
    ]


def _as_held(config: Config, held: Mapping[str, str]) -> tuple[Config, dict[str, Any]]:
    """The configuration in the precision in which its run was begun, if it was."""
    for precision in (config.model.precision, *PRECISIONS):
        other = dataclasses.replace(config, model=dataclasses.replace(config.model, precision=precision))
        recorded = plain(as_plain_dict(other))
        if identity(recorded) in held:
            return other, recorded
    return config, plain(as_plain_dict(config))


def _status(config: Config, folder: Path) -> FolderStatus | None:
    if config.job.name not in jobs.WITH_RUN_FOLDER:
        return "empty"
    try:
        return folder_status(config, folder)
    except UserError:
        return None


def placed(study: Study, found: Sequence[Job]) -> Study:
    """The study with the run id and folder of each of its points; points with equal configurations count once."""
    by_words = {_ungrouped(words): job for job in found for words in job.same}
    by_run: dict[str, Point] = {}
    for point in study.points:
        job = by_words[_ungrouped(point.overrides)]
        by_run.setdefault(job.run, Point(point.overrides, job.run, job.folder))
    return dataclasses.replace(study, points=tuple(by_run.values()))


def _ungrouped(words: Sequence[str]) -> tuple[str, ...]:
    return tuple(word for word in words if not word.startswith("tracker.group="))
