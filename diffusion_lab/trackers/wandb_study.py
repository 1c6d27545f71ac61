"""A study on Weights & Biases: a table of its runs as a run of its own, and a workspace that shows the runs.

The runs of a study have one group, `tracker.group`; the run with the table has the same one and the job type
"study". As everywhere, Weights & Biases is a view: a failure is logged and changes nothing else.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_lab.trackers import wandb_history as history
from diffusion_lab.trackers.wandb import WandbTracker

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

    from diffusion_lab.config import schema as config

log = logging.getLogger(__name__)

JOB_TYPE = "study"
TABLE = "study/runs"


def log_study(
    folder: Path,
    tracking: config.Tracking,
    group: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
) -> bool:
    """Logs the table as the study's own run, whose files are in `folder`/wandb; returns whether it was logged.

    A second call updates the same run: online by its id; offline by a new log, which replaces the earlier one.
    """
    if tracking.wandb == "disabled":
        return False
    try:
        tracker = WandbTracker(
            folder, mode=tracking.wandb, project=tracking.project, entity=tracking.entity, group=group,
            name=f"study {group}"[:128], job_type=JOB_TYPE, tags=tracking.tags, images=0,
        )  # fmt: skip
        run_id = tracker.run_id()
        again = tracker.mode == "offline" and bool(history.unsynced(tracker.folder, run_id))
        with history.put_aside(tracker.folder, run_id) if again else contextlib.nullcontext():
            tracker.start({"study": group, "runs": len(rows)})
            _log_table(tracker, columns, rows)
        tracker.finish("completed", {"runs": len(rows)})
        return True
    except Exception as error:
        log.warning("Weights & Biases: the table of the study could not be logged: %s", error)
        return False


def _log_table(tracker: WandbTracker, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    import wandb

    if tracker.run is None:
        return
    # None and numbers in one column: a column of mixed types is refused otherwise.
    table = wandb.Table(columns=list(columns), data=[list(row) for row in rows], allow_mixed_types=True)
    with tracker.staging():
        tracker.run.log({"step": 0, TABLE: table})


def workspace(entity: str, project: str, group: str, metrics: Sequence[str]) -> Workspace:
    """A saved view of a study's runs: every metric against the steps, and the scores at the recommended stops.

    Nothing is sent before its `save()` is called, which needs credentials and returns the view with its address.
    Requires the package wandb-workspaces: pip install 'diffusion-lab[workspaces]'.
    """
    from wandb_workspaces import expr, workspaces
    from wandb_workspaces.reports.v2.interface import BarPlot, Config, LinePlot, ScatterPlot, SummaryMetric

    curves: list[Any] = [LinePlot(title=name, x="step", y=[f"eval/{name}"]) for name in metrics]
    stops: list[Any] = [
        BarPlot(title="score at the recommended stop", metrics=[SummaryMetric("recommendation/score")]),
        ScatterPlot(
            title="recommended stop",
            x=Config("data.n_images"),
            y=SummaryMetric("recommendation/step"),
            regression=True,
        ),
    ]
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=f"study {group}",
        sections=[
            workspaces.Section(name="metrics", panels=curves, is_open=True),
            workspaces.Section(name="recommended stop", panels=stops, is_open=True),
        ],
        runset_settings=workspaces.RunsetSettings(
            filters=expr.And(expr.Metric("group") == group, expr.Metric("jobType") != JOB_TYPE)
        ),
    )
