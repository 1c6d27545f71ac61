"""Which runs of a study are put side by side, and quantities by subject.

Subjects are the units. Runs of one subject that differ only by seeds are averaged first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from diffusion_lab.analysis.scoring import MetricLike
from diffusion_lab.studies.bootstrap import Floats, prompt_weights
from diffusion_lab.studies.run import StudyRun
from diffusion_lab.studies.stops import OF_FACES, best_of, rule_of, scores_of, stop_of
from diffusion_lab.studies.table import Table

Weights = Mapping[str, float]
Ranges = Mapping[str, tuple[float, float]]

# Settings by which comparable runs may differ: what is compared, seeds, and what does not change the curves.
FREE = (
    "data.subject", "data.folder", "data.class_noun", "data.n_images", "data.identifier", "data.impostors", "seed",
    "data.subset_seed", "prompts.seed", "prompts.noise_seed", "steps.total", "steps.checkpoint_every",
    "steps.keep_checkpoints", "steps.keep_adapters", "steps.log_every", "metrics.names", "metrics.weights",
    "metrics.ranges", "tracker.", "job.", "resume", "as_typed", "memory.", "steps.every", "prompts.batch_size",
    "metrics.batch_size",
)  # fmt: skip


def comparable(
    runs: Sequence[StudyRun], *, metrics: Sequence[str] = (), apart: Sequence[str] = ("method.", "model.")
) -> list[StudyRun]:
    """The runs that can be put side by side: with these metrics, and with the most usual settings.

    A pool of runs holds several studies: other learning rates, prior weights, prompts. Settings outside of `FREE` and
    ``apart`` are those that most runs have; those under ``apart`` are, for each method and model, those that most runs of
    this method and model have (the first in order if several are as frequent).
    """
    some = [run for run in runs if all(_has(run, metric) for metric in metrics)]
    if not some:
        return []
    shared = Counter(_settings(run, apart, False) for run in some)
    common = shared.most_common(1)[0][0]
    some = [run for run in some if _settings(run, apart, False) == common]
    chosen: dict[tuple[str, str], Hashable] = {}
    for kind in dict.fromkeys((run.method, run.model) for run in some):
        own = Counter(_settings(run, apart, True) for run in some if (run.method, run.model) == kind)
        chosen[kind] = own.most_common(1)[0][0]
    return [run for run in some if _settings(run, apart, True) == chosen[run.method, run.model]]


def _has(run: StudyRun, metric: str) -> bool:
    values = run.values.get(metric.removesuffix(OF_FACES))
    return values is not None and bool(np.isfinite(values).any())


def _settings(run: StudyRun, apart: Sequence[str], inside: bool) -> Hashable:
    return tuple(
        (key, value)
        for key, value in run.chosen
        if key.startswith(tuple(apart)) is inside and not key.startswith(FREE)
    )


def main_runs(table: Table, *, metrics: Sequence[str] = ()) -> list[StudyRun]:
    """The comparable runs of the method and model with the most runs: those that the questions of 000 are about."""
    some = comparable(table.runs, metrics=metrics)
    if not some:
        return []
    kind = Counter((run.method, run.model) for run in some).most_common(1)[0][0]
    return [run for run in some if (run.method, run.model) == kind]


def complete(runs: Sequence[StudyRun]) -> list[StudyRun]:
    """A balanced part of a study that may still be running: every subject has every number of photos.

    Numbers of photos that at least half of the subjects have, and the subjects that have them all. Unfinished runs are
    left out if any run is finished.
    """
    done = [run for run in runs if run.finished] or list(runs)
    by_subject: dict[str, set[int]] = {}
    for run in done:
        by_subject.setdefault(run.subject, set()).add(run.n_images)
    counted = Counter(n for counts in by_subject.values() for n in counts)
    common = {n for n, some in counted.items() if 2 * some >= len(by_subject)}
    kept = {subject for subject, counts in by_subject.items() if common <= counts}
    return [run for run in done if run.subject in kept and run.n_images in common]


def by_subject(
    runs: Sequence[StudyRun], quantity: Callable[[StudyRun], Floats | None]
) -> tuple[list[str], Floats]:
    """Subjects, and each one's mean of a replicated quantity over its runs: [1 + draws, subjects].

    ``quantity``: [1 + draws] of a run, or None to leave the run out.
    """
    found: dict[str, list[Floats]] = {}
    for run in runs:
        values = quantity(run)
        if values is not None and np.isfinite(values[0]):
            found.setdefault(run.subject, []).append(values)
    if not found:
        return [], np.zeros((1, 0))
    return list(found), np.stack([np.mean(values, axis=0) for values in found.values()], axis=1)


def prompts_of(runs: Sequence[StudyRun]) -> int:
    return max((len(run.prompts) for run in runs), default=0)


# --- at the recommended stop --------------------------------------------------------------------------


def stops(
    run: StudyRun,
    infos: Mapping[str, MetricLike],
    weights: Weights | None = None,
    ranges: Ranges | None = None,
) -> NDArray[np.int64] | None:
    """Index of the recommended stop, replicated: [1 + draws]."""
    rule, own = rule_of(run, infos, weights, ranges), stop_of(run, infos, weights, ranges)
    if rule is None or own is None:
        return None
    best = best_of(scores_of(run, infos, rule))
    best[0] = own.index
    return best


def stop_steps(
    run: StudyRun,
    infos: Mapping[str, MetricLike],
    weights: Weights | None = None,
    ranges: Ranges | None = None,
) -> Floats | None:
    """The recommended stop in steps, replicated."""
    best = stops(run, infos, weights, ranges)
    return None if best is None else np.asarray(run.steps, dtype=np.float64)[best]


# --- methods ------------------------------------------------------------------------------------------


PLANES = (("image_similarity", "prompt_similarity"), ("clip_image", "clip_text"), ("similarity", "clip_text"))


def plane_metrics(table: Table) -> tuple[str, str] | None:
    """The pair (image similarity, prompt similarity) that the runs have: that of 003, else the nearest."""
    for image, prompt in PLANES:
        if any(_has(run, image) and _has(run, prompt) for run in table.runs):
            return image, prompt
    return None


def cost_of(name: str) -> Callable[[StudyRun], Floats | None]:
    """A run's cost as a quantity for `by_subject`."""

    def cost(run: StudyRun) -> Floats | None:
        value = run.costs.get(name)
        return None if value is None else np.full(len(prompt_weights(len(run.prompts))), float(value))

    return cost
