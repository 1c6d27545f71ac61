"""Weights & Biases as a view of the record: if it is missing, offline or broken, the run continues.

One step axis for everything (`step`, the optimizer's steps): rows carry it as a value and `wandb.log`'s own
`step=` is never used, because rows logged behind it would be dropped.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_lab.config import paths
from diffusion_lab.config.wandb_names import LONGEST, LONGEST_TAG
from diffusion_lab.records import Evaluation, PromptSet, Status, Summary
from diffusion_lab.runs import scores
from diffusion_lab.system import atomic, environment
from diffusion_lab.trackers import wandb_history as history
from diffusion_lab.trackers.wandb_mode import (
    resolve_mode,
)
from diffusion_lab.values import jsonable
from diffusion_lab.values.mappings import flatten

if TYPE_CHECKING:
    import wandb

EXIT_CODES: dict[str, int] = {"completed": 0, "failed": 1, "diverged": 3, "interrupted": 130}
INIT_SECONDS = 20.0  # for the server to accept the run
FINISH_SECONDS = 120.0  # for the last uploads; the rest remains on disk for `wandb sync`

log = logging.getLogger(__name__)


class WandbTracker:
    """One W&B run, in `run_folder`/wandb, closed with the run's status.

    Its id is stored there, so that a resumed run has the same one. Offline, every session writes its own log;
    that of a resumed run contains the whole history and replaces the earlier logs: see `wandb_history`.

    Its methods may raise wandb's errors; `Fanout` ensures that they never stop a run.
    """

    essential = False
    label = "Weights & Biases"

    def __init__(
        self,
        run_folder: Path | str,
        *,
        mode: str = "auto",
        project: str = "diffusion_lab",
        entity: str | None = None,
        group: str | None = None,
        name: str | None = None,
        job_type: str = "finetune",
        tags: Sequence[str] = (),
        images: int = 16,
        resumed: bool = False,
    ) -> None:
        """`resumed`: the record in the folder, up to the resumed step, has a history to log first."""
        self.resumed = resumed
        self.folder = Path(run_folder).absolute()
        self.mode = resolve_mode(mode)
        self.images = images
        self._identity: dict[str, Any] = {
            "project": project, "entity": entity, "group": group and group[:LONGEST], "name": name,
            "job_type": job_type,
            "tags": [tag[:LONGEST_TAG] for tag in tags if tag],
        }  # fmt: skip
        self.run: wandb.Run | None = None

    # --- Tracker ------------------------------------------------------------------------------------

    def start(self, config: Mapping[str, Any]) -> None:
        if self.mode == "disabled":
            return
        plain = jsonable.plain(paths.as_typed(config))  # the server does not need this machine's folders
        known = (self.folder / "wandb" / "run-id.txt").exists()  # not in a copy of a shorter run
        run_id = self.run_id()
        # Online, the server has the history, unless an earlier session was offline.
        offline = self.mode == "offline" or not known or bool(history.unsynced(self.folder, run_id))
        again = self.resumed and offline
        with history.put_aside(self.folder, run_id) if again else contextlib.nullcontext():
            try:
                self.run = self._init(plain)
            except Exception as error:
                if self.mode == "offline":
                    raise
                log.warning("Weights & Biases refused the run, which is kept offline: %s", error)
                self.mode = "offline"
                import wandb

                wandb.teardown()  # its service regards the refused run's id as in use
                self.run = self._init(plain)
            self.run.define_metric("step")
            self.run.define_metric("*", step_metric="step")
            if again:
                self._tell_again()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if self.run is not None:
            self.run.log({"step": step, **values})

    def evaluation(self, evaluation: Evaluation, prompts: PromptSet) -> None:
        """Logs curves first, then images, so that a failure to store images does not affect curves."""
        if self.run is None:
            return
        self.run.log({"step": evaluation.step, **curves(evaluation.summaries, evaluation.seconds)})
        if self.images > 0 and evaluation.images:
            table = self._table(evaluation, prompts)
            with self.staging():
                self.run.log({"step": evaluation.step, "eval/samples": table})

    def _tell_again(self) -> None:
        """Logs the run's recorded history again, row by row."""
        assert self.run is not None
        for step, values, entry in history.earlier_rows(self.folder):
            if entry is None:
                self.run.log({"step": step, **(values or {})})
                continue
            self.run.log({"step": step, **curves(history.summaries(entry), entry["seconds"])})
            table = history.kept_table(self.folder, step) if self.images > 0 else None
            if table is not None:
                with self.staging():
                    self.run.log({"step": step, "eval/samples": table})

    def finish(self, status: Status, summary: Mapping[str, Any]) -> None:
        """Closes the run with exit code 0 for completed, 130 interrupted, 3 diverged, 1 failed."""
        run, self.run = self.run, None
        if run is None:
            return
        try:
            flat = flatten({"status": status, **summary}, "/") | score_at_stop(summary)
            run.summary.update(
                {
                    key: value
                    for key, value in flat.items()
                    if value is not None and not isinstance(value, Mapping)
                }
            )
        finally:
            run.finish(exit_code=EXIT_CODES.get(status, 1))

    def staging(self) -> contextlib.AbstractContextManager[None]:
        """Inside, the files of tables are stored in the run's folder."""
        return _staging(self.folder / "wandb" / "data")

    # --- inside -------------------------------------------------------------------------------------

    def run_id(self) -> str:
        """The run's id at W&B, which its folder keeps; under `wandb agent` that of the agent."""
        path = self.folder / "wandb" / "run-id.txt"
        if not path.exists():
            given = environment.agent().get("WANDB_RUN_ID")
            atomic.write_text(path, (given or secrets.token_hex(4)) + "\n")
        return path.read_text(encoding="utf-8").strip()

    def _init(self, config: dict[str, Any]) -> wandb.Run:
        import wandb

        # wandb's messages are in its debug.log; they would fill the console and run.log too.
        logging.getLogger("wandb").propagate = False
        self.folder.mkdir(parents=True, exist_ok=True)
        run_id, agent = self.run_id(), environment.agent()
        if agent.get("WANDB_RUN_ID") != run_id:  # resumed from a folder that another agent's run has made
            agent = {}
        if agent:
            wandb.teardown()  # the agent's variables are read when wandb's process starts
        with environment.with_variables(agent):
            return self._begin(run_id, config, agent)

    def _begin(self, run_id: str, config: dict[str, Any], agent: Mapping[str, str]) -> wandb.Run:
        """`agent`: the variables of `wandb agent`, which sets project, entity and id of its runs."""
        import wandb

        identity = {k: v for k, v in self._identity.items() if not agent or k not in ("project", "entity")}
        return wandb.init(
            **identity,
            id=None if agent else run_id,
            resume="allow",
            dir=self.folder,
            config=config,
            mode="online" if self.mode == "online" else "offline",
            # Every job of a multirun has its own run; no global run is left for the next one.
            reinit="create_new",
            settings=wandb.Settings(
                silent=True,
                quiet=True,
                console="off",  # the progress bars and run.log are ours
                symlink=False,
                save_code=False,
                disable_git=True,  # config and provenance name the commit; a remote's URL may hold a token
                x_disable_meta=True,  # host, person, paths
                x_disable_machine_info=True,
                host="",
                x_save_requirements=False,  # result.json has the versions that matter
                init_timeout=INIT_SECONDS,
                finish_timeout=FINISH_SECONDS,
            ),
        )

    def _table(self, evaluation: Evaluation, prompts: PromptSet) -> wandb.Table:
        """Columns: step, image number, prompt, image, then one per metric."""
        import wandb

        texts = {prompt.id: prompt.text for prompt in prompts}
        measured = scores.by_image(evaluation.rows)
        names = sorted({row.metric for row in evaluation.rows})
        columns = ["step", "number", "prompt", "image", *names]
        rows = []
        keys = scores.images_of(evaluation, prompts)
        for number, key in list(enumerate(keys))[: self.images]:
            values = measured.get(key, {})
            rows.append(
                [
                    evaluation.step,
                    number,
                    texts[key[0]],
                    evaluation.images[number],
                    *(values.get(name) for name in names),
                ]
            )
        history.keep_table(self.folder, evaluation.step, columns, rows)
        table = wandb.Table(columns=[*columns])
        for row in rows:
            table.add_data(*row[:3], wandb.Image(row[3]), *row[4:])
        return table


def score_at_stop(summary: Mapping[str, Any]) -> dict[str, float]:
    """recommendation/score: the weighted score at the recommended step, the metric of W&B's sweeps."""
    found = summary.get("recommendation") or {}
    scores = [entry["score"] for entry in found.get("scores", ()) if entry["step"] == found["step"]]
    return {"recommendation/score": scores[0]} if scores and scores[0] is not None else {}


@contextlib.contextmanager
def _staging(folder: Path) -> Iterator[None]:
    """Inside, wandb stores the images of tables in `folder`, so that the run's folder contains the whole run.

    By default they are in the home folder until they are uploaded, permanently for an offline run. The
    location can only be set in the environment.
    """
    if "WANDB_DATA_DIR" in os.environ:
        yield
        return
    os.environ["WANDB_DATA_DIR"] = str(folder.absolute())
    try:
        yield
    finally:
        os.environ.pop("WANDB_DATA_DIR", None)


def curves(summaries: Mapping[str, Summary], seconds: Mapping[str, float]) -> dict[str, float]:
    """eval/METRIC with _low, _high, _missing and _penalised, and seconds; undefined values are omitted."""
    found: dict[str, float] = {}
    for name, item in summaries.items():
        values = {
            "": item.mean, "_low": item.low, "_high": item.high, "_penalised": item.penalised,
            "_missing": item.missing,
        }  # fmt: skip
        found |= {f"eval/{name}{ending}": value for ending, value in values.items() if value is not None}
    return found | {f"seconds/{name}": value for name, value in seconds.items()}
