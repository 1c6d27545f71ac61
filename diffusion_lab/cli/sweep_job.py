"""One job of a sweep, in the process in which a launcher runs it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from diffusion_lab import jobs
from diffusion_lab.cli import engines, optuna_trials
from diffusion_lab.cli.compose import to_config
from diffusion_lab.cli.folders import shown
from diffusion_lab.config import paths
from diffusion_lab.plan.defaults import fill_defaults
from diffusion_lab.records import Pruned
from diffusion_lab.runs import extended_sweep
from diffusion_lab.runs.resume import wait_until_free
from diffusion_lab.studies.watch import ENDED

log = logging.getLogger("diffusion_lab")


def sweep_job(composed: Any) -> dict[str, Any]:
    """One job of a sweep, in this process or another. Returns its outcome instead of raising an error."""
    from hydra.core.hydra_config import HydraConfig

    from diffusion_lab.jobs.state import isolated
    from diffusion_lab.plan.fetch import fetch
    from diffusion_lab.system.atomic import append_line
    from diffusion_lab.values.jsonable import dumps

    hydra = HydraConfig.get()
    engines.prepare(hydra)
    requeued = False
    run_folder, begun = map(Path, (hydra.runtime.output_dir, hydra.runtime.cwd))
    ended: dict[str, Any] = {
        "job": run_folder.name, "name": run_folder.name, "status": "interrupted", "error": "stopped by Ctrl-C",
    }  # fmt: skip
    try:
        with isolated():
            config = paths.resolve(fill_defaults(to_config(composed), run_folder), begun)
            config.tracker.group = config.tracker.group or run_folder.parent.name
            if not prints(hydra.job_logging):
                config.tracker.progress = "off"
            run_folder = extended_sweep.already_begun(config, run_folder)
            ended["name"] = run_folder.name
            if config.job.name in jobs.WITH_RUN_FOLDER:
                wait_until_free(run_folder)

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


def prints(job_logging: Any) -> bool:
    """Whether the log of a job with `hydra.job_logging` is shown on the terminal, too."""
    return "console" in (job_logging.get("root") or {}).get("handlers", ["console"])
