"""A sweep: checks its values, settles its jobs' folders, runs those that are not finished, compares the results."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_lab.cli import optuna_trials, single, sweep_end
from diffusion_lab.cli.compose import compose_raw, expand, is_basic, single_valued, to_config
from diffusion_lab.cli.folders import claim, refuse_reference, shown
from diffusion_lab.cli.hand_over import hand_over
from diffusion_lab.cli.sweep_job import prints, sweep_job
from diffusion_lab.cli.words import keys
from diffusion_lab.config import paths
from diffusion_lab.records import UserError
from diffusion_lab.studies import definition
from diffusion_lab.studies.watch import Watch, Watched, seconds_of
from diffusion_lab.values.checks import text
from diffusion_lab.values.quoting import always_quoted, pasted

if TYPE_CHECKING:
    from diffusion_lab.cli.sweep_jobs import Job
    from diffusion_lab.cli.words import Line

log = logging.getLogger("diffusion_lab")

FINISHED = ("finished", "diverged")  # folders whose run need not be launched
NO_SETTINGS = (
    "hydra.",
    "hydra/",
    "tracker",
    "memory.",
    "job.",
)  # beginnings of keys that do not change results


def run(line: Line, typed: Sequence[str]) -> int:
    """Runs all jobs, sequentially or as the launcher decides; a failed job does not stop the others.

    `typed`: the words of the command line, for the command that repeats it. Returns the exit status.
    """
    composed = compose_raw(single_valued(line.overrides))
    if not is_basic(composed.hydra.sweeper):
        if line.studies:
            raise UserError("hydra/sweeper: a study lists its runs; use -m with a sweeper that chooses them")
        return _sampled(line, composed)
    given = [[word for word in job if not _is_hydras(word)] for job in expand(line.overrides)]
    studies = _studies(line, given)
    return _points(line, composed, given, studies, typed)


def _is_hydras(word: str) -> bool:
    """Whether the word sets something of Hydra itself, which is the same for all jobs."""
    return word.lstrip("+~").startswith(("hydra.", "hydra/"))


def _studies(line: Line, given: Sequence[Sequence[str]]) -> list[definition.Study]:
    """The studies of --sweep, with the words of the command line in each point."""
    replaced = keys(line.given)
    return [
        definition.combined(definition.load(name, quick=line.quick, replaced=replaced), given)
        for name in _names(line)
    ]


def _names(line: Line) -> list[str]:
    """The studies of --sweep, each once; `all` stands for those whose file does not exclude it."""
    every = definition.in_all() if definition.ALL in line.studies else []
    return list(dict.fromkeys([*every, *(name for name in line.studies if name != definition.ALL)]))


def _chooses(line: Line, name: str) -> bool:
    """Whether the command line sets only what the study varies, or seeds: its points are then more of the same study.

    They are added to those in study.json. With other settings, or none, study.json is written anew.
    """
    words = {key for key in keys(line.given) if not key.startswith(NO_SETTINGS)}
    return bool(words) and words <= definition.load(name, quick=line.quick).varied | {"seed"}


def _points(
    line: Line,
    composed: Any,
    given: Sequence[Sequence[str]],
    studies: Sequence[definition.Study],
    typed: Sequence[str],
) -> int:
    """A sweep whose jobs are known: those that are finished are not launched.

    `given`: the jobs of the command line, unless there are studies.
    """
    from diffusion_lab.cli.sweep_jobs import placed, settle, union
    from diffusion_lab.studies.record import united, write_study

    wanted = _wanted(composed)
    hydras = [word for word in line.overrides if _is_hydras(word)]
    points = union(studies, keys(line.given))
    words, names = ([*points], [*points.values()]) if studies else (given, None)
    found = settle(words, wanted, hydras, names)
    if found[-1].config.job.dry_run:
        return _dry_run(found, hydras)
    folder = claim(wanted, "hydra.sweep.dir", line.overrides, 0)
    for name, study in zip(_names(line), studies, strict=True):
        whole = placed(study, found)
        write_study(folder, united(folder, whole) if _chooses(line, name) else whole)
    to_run = [job for job in found if job.status not in FINISHED]
    print(f"{shown(folder)}: {_state(found)}", file=sys.stderr)
    titles, before = [study.name for study in studies], len(sweep_end.ended_jobs(folder))
    try:
        if to_run:
            _launch(line, composed, folder, found, to_run)
    finally:
        ended = sweep_end.ended_jobs(folder)[before:]
        good = sweep_end.told(folder, found, ended, sweep_end.again(typed, line, folder))
        compared = sweep_end.compare(folder, titles)
    if to_run:
        sweep_end.track(folder, found[0].config.tracker, titles)
    return 0 if good and compared else 1


def _wanted(composed: Any) -> Path:
    """The sweep's folder."""
    wanted = composed.hydra.sweep.dir
    text("hydra.sweep.dir", wanted)
    refuse_reference(Path(wanted), "hydra.sweep.dir")
    return Path(paths.absolute(wanted, Path.cwd()))


def _dry_run(found: Sequence[Job], hydras: Sequence[str]) -> int:
    """Prints the plan of each job, and what a sweep would do."""
    for job in found:
        print(f"\n{pasted(*job.words)}")
        single.dry_run(compose_raw([*hydras, *job.words]))
    print(f"\n{_state(found)}")
    return 0


def _state(found: Sequence[Job]) -> str:
    """What is there before the sweep starts: "40 runs: 12 finished, 2 to resume, 26 to start"."""
    names = {"finished": "finished", "diverged": "diverged", "empty": "to start", None: "to start"}
    counts = Counter(names.get(job.status, "to resume") for job in found)
    order = [name for name in ("finished", "diverged", "to resume", "to start") if counts[name]]
    return f"{len(found)} runs: " + ", ".join(f"{counts[name]} {name}" for name in order)


def _launch(line: Line, composed: Any, folder: Path, found: Sequence[Job], to_run: Sequence[Job]) -> None:
    from diffusion_lab.cli.sweep_live import told
    from diffusion_lab.system.progress import resolved

    in_process = str(composed.hydra.launcher.get("_target_", "")).endswith(".BasicLauncher")
    mode = resolved(to_run[0].config.tracker.progress, sys.stderr)
    words = [*line.flags, *line.overrides, f"hydra.sweep.dir={always_quoted(str(folder))}"]
    logged = composed.hydra.job_logging
    if (
        mode == "bars" and not in_process and prints(logged) and "file" in logged.root.handlers
    ):  # the jobs' lines would be written into the live line
        words.append("hydra.job_logging.root.handlers=[file]")
    with told(_watch(folder, found, to_run), mode, in_process=in_process):
        hand_over(words, sweep_job, [job.launched for job in to_run])


def _watch(folder: Path, found: Sequence[Job], to_run: Sequence[Job]) -> Watch:
    guess: dict[str, list[float]] = {}
    for job in found:
        if job.status == "finished" and (seconds := seconds_of(folder / job.folder)):
            guess.setdefault(_kind(job), []).append(seconds)
    return Watch(
        [Watched(folder / job.folder, _kind(job), _evaluations(job)) for job in to_run],
        folder,
        done=sum(job.status == "finished" for job in found),
        failed=sum(job.status == "diverged" for job in found),
        guess={kind: sum(every) / len(every) for kind, every in guess.items()},
    )


def _kind(job: Job) -> str:
    """Runs of a kind take about equally long."""
    config = job.config
    size = (config.steps.total, config.steps.batch_size, config.prompts.n, config.prompts.images_per_prompt)
    return repr((config.method.name, config.model.path, *size, _evaluations(job)))


def _evaluations(job: Job) -> int:
    from diffusion_lab.config.schedule import number_of_evaluations

    steps = job.config.steps
    return number_of_evaluations(steps.total or 1, steps.every or 1)


def _sampled(line: Line, composed: Any) -> int:
    """A sweep whose jobs Hydra's sweeper chooses as it runs."""
    config = to_config(composed)
    if optuna_trials.chosen(composed.hydra):
        optuna_trials.check(config)
    if config.job.dry_run:
        raise UserError("--dry-run: this sweeper chooses the jobs' values as it runs; try one job without -m")
    folder = claim(_wanted(composed), "hydra.sweep.dir", line.overrides, 0)
    before = len(sweep_end.ended_jobs(folder))
    try:
        hand_over([*line.flags, *line.overrides, f"hydra.sweep.dir={always_quoted(str(folder))}"], sweep_job)
    finally:
        ended = sweep_end.ended_jobs(folder)[before:]
        good = sweep_end.tell(folder, {end["name"]: (end["status"], end["error"]) for end in ended}, 0)
        compared = sweep_end.compare(folder, ())
    sweep_end.track(folder, config.tracker, ())
    return 0 if good and compared else 1
