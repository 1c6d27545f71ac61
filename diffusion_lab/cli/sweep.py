"""A sweep: checks its values, names its jobs' folders, runs all jobs, and compares the results."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusion_lab import jobs
from diffusion_lab.cli import engines, optuna_trials, single, sweep_names
from diffusion_lab.cli.compose import compose_raw, single_valued, to_config
from diffusion_lab.cli.folders import claim, refuse_reference, shown
from diffusion_lab.cli.hand_over import hand_over
from diffusion_lab.config import paths
from diffusion_lab.config.schema import Config
from diffusion_lab.plan.defaults import fill_defaults
from diffusion_lab.records import Pruned, UserError
from diffusion_lab.runs import extended_sweep
from diffusion_lab.values.checks import text
from diffusion_lab.values.quoting import always_quoted, pasted

log = logging.getLogger("diffusion_lab")

MOST_CHECKED = 100  # maximum number of jobs whose values are checked before the first one starts
GOOD = ("completed", "pruned")  # ends of a job that are no failure
ENDED = "jobs.jsonl"  # in a sweep's folder: one line per job


def run(flags: Sequence[str], overrides: Sequence[str], expanded: Sequence[Sequence[str]]) -> int:
    """Runs all jobs, sequentially or as the launcher decides; a failed job does not stop the others.

    `expanded`: the overrides of each job, empty if the sweeper chooses jobs as it runs. Returns the exit
    status.
    """
    configs = _checked(expanded)
    if configs and configs[-1].job.dry_run:
        return 0
    composed = compose_raw(expanded[0] if expanded else single_valued(overrides))
    if optuna_trials.chosen(composed.hydra):
        optuna_trials.check(to_config(composed))
        if composed.job.get("dry_run"):  # of the values that are the same in all runs
            single.dry_run(composed)
            return 0
    wanted = composed.hydra.sweep.dir
    text("hydra.sweep.dir", wanted)
    refuse_reference(Path(wanted), "hydra.sweep.dir")
    folder = claim(Path(paths.absolute(wanted, Path.cwd())), "hydra.sweep.dir", overrides, 0)
    (folder / ENDED).unlink(missing_ok=True)

    def config_of(i: int) -> Config:
        return configs[i] if i < len(configs) else _filled(compose_raw(expanded[i]))

    sweep_names.write(folder, sweep_names.settle(expanded, folder, config_of))
    try:
        hand_over([*flags, *overrides, f"hydra.sweep.dir={always_quoted(str(folder))}"], sweep_job)
    finally:
        good = _told(folder, len(expanded))
        compared = _compare(folder)
    return 0 if good and compared else 1


def _checked(expanded: Sequence[Sequence[str]]) -> list[Config]:
    """The first jobs' configurations: invalid values are reported before the first job starts.

    In a dry run, the plans are printed.
    """
    from diffusion_lab.cli.yaml_texts import misread

    configs = []
    for job in expanded[:MOST_CHECKED]:
        composed = compose_raw(job)
        for key, (file, word) in misread(composed).items():
            raise UserError(
                f"{key}: YAML makes another text of what {file} has; write it there in quotes ({word})"
            )
        configs.append(_filled(composed))
        if configs[-1].job.dry_run:
            print(f"\n{pasted(*job)}")
            single.dry_run(composed)
    return configs


def _filled(composed: Any) -> Config:
    return paths.resolve(fill_defaults(to_config(composed)), Path.cwd())


def sweep_job(composed: Any) -> dict[str, Any]:
    """One job of a sweep, in this process or another. Returns its outcome instead of raising an error."""
    from hydra.core.hydra_config import HydraConfig

    from diffusion_lab.jobs.state import isolated
    from diffusion_lab.plan.fetch import fetch
    from diffusion_lab.system.atomic import append_line
    from diffusion_lab.values.jsonable import dumps

    hydra = HydraConfig.get()
    engines.prepare(hydra)
    run_folder, begun = map(Path, (hydra.runtime.output_dir, hydra.runtime.cwd))
    requeued = False
    ended: dict[str, Any] = {"name": run_folder.name, "status": "interrupted", "error": "stopped by Ctrl-C"}
    try:
        with isolated():
            config = paths.resolve(fill_defaults(to_config(composed), run_folder), begun)
            config.tracker.group = config.tracker.group or run_folder.parent.name
            run_folder = extended_sweep.already_begun(config, run_folder)
            ended["name"] = run_folder.name

            def before() -> None:
                plan = jobs.check(config, run_folder)
                fetch(config, plan.downloads)
                log.info("%s; %s", plan.summary(), shown(run_folder, begun))

            with optuna_trials.reporting(hydra):
                outcome = jobs.perform(config, run_folder, before=before)
        ended |= {"status": outcome.status, "error": outcome.error}
        if outcome.status != "completed":
            log.error("%s: %s", outcome.status, outcome.error)
    except Pruned as stopped:
        ended |= {"status": "pruned", "error": str(stopped)}
    except SystemExit:  # by submitit, which starts the job again
        requeued = True
        raise
    finally:
        if not requeued:
            append_line(run_folder.parent / ENDED, dumps(ended))
    return ended


def _told(folder: Path, jobs_of_it: int) -> bool:
    """Reports how the jobs ended; returns whether all completed. `jobs_of_it`: their number, 0 if unknown."""
    ended = _ended(folder)
    failed = [end for end in ended if end["status"] not in GOOD]
    of = f" of {jobs_of_it}" if jobs_of_it else ""
    log.info("%s: %d%s jobs completed, %d failed", shown(folder), len(ended) - len(failed), of, len(failed))
    for end in failed:
        print(f"{end['status']}: {end['name']}: {end['error']}", file=sys.stderr)
    return not failed and len(ended) >= jobs_of_it


def _ended(sweep: Path) -> list[dict[str, Any]]:
    """The recorded outcomes of the sweep's ended jobs; unreadable lines are skipped."""
    try:
        lines = (sweep / ENDED).read_bytes().splitlines()
    except FileNotFoundError:
        return []
    ended = []
    for line in lines:
        with contextlib.suppress(ValueError):
            ended.append(json.loads(line))
    return [end for end in ended if isinstance(end, dict) and {"name", "status", "error"} <= set(end)]


def _compare(folder: Path) -> bool:
    """Writes the comparison page. Returns False on failure, which must not hide how the sweep ended."""
    from diffusion_lab.report.comparison import write_comparison
    from diffusion_lab.runs.reading import find_runs

    try:
        if find_runs(folder):
            log.info("comparison: %s", shown(write_comparison(folder)))
        return True
    except UserError as error:
        log.error("no comparison could be written: %s", error)
    except Exception:
        again = pasted("job=report", f"job.runs={folder}")
        log.exception("no comparison could be written; %s makes it again", again)
    return False
