"""The record of a run: plain files in its folder, whole after every evaluation and after any kill::

config.yaml        the resolved configuration
result.json        status, configuration, provenance and what every evaluation came to
scores.parquet     one row an image and metric
events.jsonl       one line an event, with its time
run.log            what the program said
samples/           training.png and one labelled sheet an evaluation; every image too with tracker.keep_images
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml  # type: ignore[import-untyped]
from PIL import Image

from diffusion_lab.interfaces import AnyMetric, Evaluation, PromptSet, ScoreRow, Status, Summary, UserError
from diffusion_lab.tracking import atomic, provenance, samples, scores, streams
from diffusion_lab.tracking.earlier import earlier

if TYPE_CHECKING:
    from diffusion_lab.interfaces import Pixels

SCHEMA = 1  # of result.json

log = logging.getLogger(__name__)

_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def empty_result() -> dict[str, Any]:
    """What result.json says before anything has happened."""
    return {
        "schema": SCHEMA,
        "status": "running",
        "error": None,
        "config": {},
        "provenance": {},
        "evaluations": [],
        "references": {},
        "recommendation": None,
        "cost": {},
        "metrics": {},
        "encoders": {},
        "prompts": {},
        "started": None,
        "finished": None,
        "steps_done": 0,
    }


class FileTracker:
    """Writes the files above. Each call leaves whole files behind it.

    Raises UserError where the disk is full or the folder cannot be written: a run without its record is
    worth nothing, so it stops.
    """

    essential = True

    def __init__(
        self,
        run_folder: Path | str,
        *,
        device: str = "cpu",
        keep_images: bool = False,
        resume_step: int | None = None,
    ) -> None:
        """`resume_step`: the run that the folder holds goes on after that step; -1: after nothing at all."""
        self.resume_step = resume_step
        self.folder = Path(run_folder).absolute()
        self.device = device
        self.keep_images = keep_images
        self.result = empty_result()
        self._rows: list[ScoreRow] = []
        self._log: logging.Handler | None = None

    # --- Tracker ------------------------------------------------------------------------------------

    def start(self, config: Mapping[str, Any]) -> None:
        """Claims the folder, or takes up the run in it. Raises UserError for a run that was not asked for."""
        if self.resume_step is None and (self.folder / "result.json").exists():
            raise UserError(
                f"{self.folder} already holds a run: choose another folder with hydra.run.dir=FOLDER "
                "(hydra.sweep.dir=FOLDER with -m), or move the old one away"
            )
        atomic.check_writable(self.folder)
        self._open_log()
        self.result |= {
            "config": dict(config),
            "provenance": provenance.collect(self.device),
            "started": _now(),
        }
        if self.resume_step is not None:
            self._take_up(self.resume_step)
        text = yaml.safe_dump(atomic.plain(config), sort_keys=False, allow_unicode=True)
        atomic.write_text(self.folder / "config.yaml", text)
        self._save()
        if self.resume_step is None:
            self.event("start")
        else:
            self.event("resume", after=self.resume_step)

    def _take_up(self, step: int) -> None:
        """Keeps what was recorded up to `step`, in all files alike; what came after it comes again."""
        before = earlier(self.folder, step)
        self._rows = before.rows
        self.result |= {"evaluations": before.evaluations, "steps_done": max(step, 0)}
        self.result["started"] = before.started or self.result["started"]
        if before.provenance and _code(before.provenance) != _code(self.result["provenance"]):
            log.warning("the run goes on with other code or libraries than it was begun with")
            self.result["provenance"] = {**before.provenance, "resumed_with": self.result["provenance"]}
        if (self.folder / "scores.parquet").exists():
            scores.write(self.folder / "scores.parquet", self._rows)
        lines = "".join(atomic.dumps(event) + "\n" for event in before.events)
        atomic.write_text(self.folder / "events.jsonl", lines)

    def measured(self) -> dict[int, dict[str, Summary]]:
        """What every evaluation so far came to, by step and metric."""
        return {
            entry["step"]: {name: Summary(**values) for name, values in entry["metrics"].items()}
            for entry in self.result["evaluations"]
        }

    def evaluation_seconds(self, step: int) -> float:
        """What the evaluation at `step` took; 0 where there was none."""
        entries = [entry for entry in self.result["evaluations"] if entry["step"] == step]
        return float(sum(value for entry in entries for value in entry["seconds"].values()))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.result["steps_done"] = max(self.result["steps_done"], step)
        self.event("scalars", step=step, values=dict(values))

    def evaluation(self, evaluation: Evaluation, prompts: PromptSet) -> None:
        """Scores first, result.json last: whatever result.json tells of is there.

        A step that is measured again replaces what stood for it.
        """
        step = evaluation.step
        self._rows = [row for row in self._rows if row.step != step] + list(evaluation.rows)
        scores.write(self.folder / "scores.parquet", self._rows)
        if evaluation.images:
            texts = samples.labels(evaluation, prompts)
            image = samples.sheet(evaluation.images, texts, title=_title(evaluation, prompts))
            atomic.write_bytes(self.folder / "samples" / f"step-{step:06d}.png", samples.png(image))
            if self.keep_images:
                folder = self.folder / "samples" / f"step-{step:06d}"
                made = zip(evaluation.images, scores.images_of(evaluation, prompts), strict=True)
                for pixels, (prompt_id, index) in made:
                    picture = samples.png(Image.fromarray(pixels))
                    atomic.write_bytes(folder / f"{prompt_id}-{index}.png", picture)
        entry = {
            "step": step,
            "metrics": {name: dataclasses.asdict(item) for name, item in evaluation.summaries.items()},
            "seconds": dict(evaluation.seconds),
        }
        self.result["prompts"] = {
            "name": prompts.name, "n": len(prompts), "sha256": prompts.sha256, "negative": prompts.negative,
        }  # fmt: skip
        kept = [other for other in self.result["evaluations"] if other["step"] != step]
        self.result["evaluations"] = sorted([*kept, entry], key=lambda one: int(one["step"]))
        self.result["steps_done"] = max(self.result["steps_done"], step)
        self._save()
        means = {name: item.mean for name, item in evaluation.summaries.items()}
        self.event("evaluation", step=step, values=means, seconds=dict(evaluation.seconds))

    def finish(self, status: Status, summary: Mapping[str, Any]) -> None:
        """Closes the record. Of `summary` it keeps recommendation, cost, error and steps_done.

        Only the first call counts: a second one, in somebody's `finally`, changes nothing.
        """
        if self.result["finished"] is not None:
            return
        for name in ("recommendation", "cost", "error", "steps_done"):
            if summary.get(name) is not None:
                self.result[name] = summary[name]
        try:
            self.result |= {"status": status, "finished": _now()}
            self._save()
            self.event("finish", status=status, error=self.result["error"])
        finally:
            self._close_log()

    # --- what else belongs to the record ------------------------------------------------------------

    def metrics(self, metrics: Iterable[AnyMetric]) -> None:
        """What each score means: a number without its definition is none."""
        self.result["metrics"] = {
            metric.name: {
                "version": metric.version,
                "label": metric.label,
                "unit": metric.unit,
                "higher_is_better": metric.higher_is_better,
            }
            for metric in metrics
        }
        self._save()

    def encoders(self, encoders: Mapping[str, Any]) -> None:
        """Which encoders measured, by name: file, checksum, preprocessing."""
        self.result["encoders"] = dict(encoders)
        self._save()

    def references(
        self, ceilings: Mapping[str, Summary | None], impostors: Mapping[str, Summary | None]
    ) -> None:
        """What photographs of the subject and of others score, by metric."""
        self.result["references"] = {
            name: {"ceiling": _asdict(ceilings.get(name)), "impostor": _asdict(impostors.get(name))}
            for name in [*ceilings, *(name for name in impostors if name not in ceilings)]
        }
        self._save()

    def recommendation(self, recommendation: Mapping[str, Any] | None) -> None:
        """The step at which to stop, and why."""
        self.result["recommendation"] = None if recommendation is None else dict(recommendation)
        self._save()

    def cost(self, training: Mapping[str, Any], evaluation: Mapping[str, Any]) -> None:
        """`seconds` and `peak_memory_bytes` of training and of evaluation, apart."""
        self.result["cost"] = {"training": dict(training), "evaluation": dict(evaluation)}
        self._save()

    def error(self, text: str) -> None:
        """What went wrong, for the one who reads the record; set before `finish`."""
        self.result["error"] = text
        self._save()

    def training_pictures(self, pictures: Sequence[Pixels], names: Sequence[str]) -> None:
        """The sheet samples/training.png of the pictures trained on, with a name under each."""
        title = f"{len(pictures)} training pictures"
        atomic.write_bytes(
            self.folder / "samples" / "training.png", samples.png(samples.sheet(pictures, names, title=title))
        )

    def event(self, event: str, **values: Any) -> None:
        """One line of events.jsonl: time, event, and what belongs to it."""
        atomic.append_line(
            self.folder / "events.jsonl", atomic.dumps({"time": _now(), "event": event, **values})
        )

    # --- inside -------------------------------------------------------------------------------------

    def _save(self) -> None:
        atomic.write_json(self.folder / "result.json", self.result)

    def _open_log(self) -> None:
        """Every logger's messages go to run.log too, unless somebody's handler writes that file already."""
        path = self.folder / "run.log"
        root = logging.getLogger()
        open_files = {getattr(handler, "baseFilename", None) for handler in root.handlers}
        if str(path.absolute()) in open_files:
            return
        with atomic.mendable(path):
            self._log = streams.LogFile(path, encoding="utf-8")
        self._log.setFormatter(logging.Formatter(_LOG_FORMAT))
        root.addHandler(self._log)

    def _close_log(self) -> None:
        """The next job of a multirun must not write into this run's log."""
        if self._log is not None:
            logging.getLogger().removeHandler(self._log)
            self._log.close()
            self._log = None


def _asdict(summary: Summary | None) -> dict[str, Any] | None:
    return None if summary is None else dataclasses.asdict(summary)


def _code(provenance: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(provenance.get(name) for name in ("commit", "versions", "python"))


def _title(evaluation: Evaluation, prompts: PromptSet) -> str:
    means = [
        f"{name} {item.mean:.3f}" for name, item in evaluation.summaries.items() if item.mean is not None
    ]
    return "   ".join([f"step {evaluation.step}", f"{len(prompts)} prompts", *means])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
