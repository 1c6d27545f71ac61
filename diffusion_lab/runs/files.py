"""The record of a run: plain files in its folder, complete after every evaluation and valid after a kill::

config.yaml        the resolved configuration
result.json        status, configuration, provenance and the results of every evaluation
scores.parquet     one row per image and metric
events.jsonl       one line per event, with its time
prompts.json       the prompts
record.zip         a second copy of the files above
run.log            the program's log
samples/           training.png, one labelled sheet per evaluation, every image with tracker.keep_images
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_lab.records import AnyMetric, Ended, Evaluation, PromptSet, Status, Summary, UserError
from diffusion_lab.runs import backup, resumed_record, samples, scores
from diffusion_lab.runs.folder_record import read_folder_record
from diffusion_lab.runs.reading import summary
from diffusion_lab.runs.record_files import RecordFiles, as_yaml, content_of, now
from diffusion_lab.runs.resume import describe_differences, extensions, run_id
from diffusion_lab.system import atomic, folders, images, provenance
from diffusion_lab.values import jsonable

if TYPE_CHECKING:
    from diffusion_lab.records import Pixels

CHECKSUMMED = (  # in addition to each evaluation's adapter and images
    *backup.MEMBERS[1:], "samples/training.png", "artefact", "scores.csv", "pictures",
)  # fmt: skip

log = logging.getLogger(__name__)


class FileTracker(RecordFiles):
    """Writes the files above. After each call, all files are complete.

    Raises UserError if the disk is full or the folder cannot be written: a run without its record is
    worthless, so it stops.
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
        """`resume_step`: the step after which the run in the folder is resumed; -1: from the beginning."""
        super().__init__(run_folder)
        self.resume_step = resume_step
        self.device = device
        self.keep_images = keep_images
        self._closed = False

    # --- Tracker ------------------------------------------------------------------------------------

    def start(self, config: Mapping[str, Any]) -> None:
        """Claims the folder, or resumes the run in it. Raises UserError if it contains an unexpected run."""
        if self.resume_step is None and (self.folder / "result.json").exists():
            raise UserError(
                f"{self.folder} already holds a run: choose another folder with hydra.run.dir=FOLDER "
                "(hydra.sweep.dir=FOLDER with -m), or move the old one away"
            )
        run = run_id(config)
        before, extended = None, []
        if self.resume_step is not None:
            known = read_folder_record(self.folder, lambda theirs: not describe_differences(theirs, config))
            recorded = known.result if known else {}
            theirs = str(recorded.get("run") or run_id(recorded.get("config") or config))
            before = resumed_record.load(self.folder, self.resume_step, config, theirs)
            extended = extensions(recorded, config)
            if len(extended) == len(recorded.get("extended") or []):
                run = theirs
        folders.check_writable(self.folder)
        self._log.open()
        self.result |= {
            "run": run,
            "config": dict(config),
            "provenance": provenance.collect(self.device),
            "started": now(),
            **({"extended": extended} if extended else {}),
        }
        if before is not None and self.resume_step is not None:
            self._resume_from(before, self.resume_step)
        self._save()  # before config.yaml, so that an extended run is never without its results
        self._write_copied(backup.CONFIG, as_yaml(config))
        if self.resume_step is None:
            self.event("start", run=run)
        else:
            self.event("resume", after=self.resume_step, run=run)
            self.back_up()

    def close(self) -> None:
        """Releases a record that could not be completed; its content is unchanged."""
        self._closed = True
        self._log.close()

    def measured(self) -> dict[int, dict[str, Summary]]:
        """The results of every evaluation so far, by step and metric."""
        return {
            entry["step"]: {name: summary(values) for name, values in entry["metrics"].items()}
            for entry in self.result["evaluations"]
        }

    def evaluation_seconds(self, step: int) -> float:
        """The duration of the evaluation at `step`; 0 if there was none."""
        entries = [entry for entry in self.result["evaluations"] if entry["step"] == step]
        return float(sum(value for entry in entries for value in entry["seconds"].values()))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self.result["steps_done"] = max(self.result["steps_done"], step)
        self.event("scalars", step=step, values=dict(values))

    def evaluation(self, evaluation: Evaluation, prompts: PromptSet) -> None:
        """Writes the scores first and result.json last: everything that result.json refers to exists.

        If a step is measured again, its earlier results are replaced.
        """
        step = evaluation.step
        self._rows = [row for row in self._rows if row.step != step] + list(evaluation.rows)
        scores.write(self.folder / backup.SCORES, self._rows)
        samples.write(
            self.folder / "samples", evaluation, prompts, _title(evaluation, prompts), each=self.keep_images
        )
        entry = {
            "step": step,
            "metrics": {name: dataclasses.asdict(item) for name, item in evaluation.summaries.items()},
            "seconds": dict(evaluation.seconds),
        }
        if evaluation.several_faces is not None:
            entry["several_faces"] = evaluation.several_faces
        if evaluation.shared:
            entry["shared"] = list(evaluation.shared)
        self.result["prompts"] = {
            "name": prompts.name, "n": len(prompts), "sha256": prompts.sha256, "negative": prompts.negative,
        }  # fmt: skip
        kept = [other for other in self.result["evaluations"] if other["step"] != step]
        self.result["evaluations"] = sorted([*kept, entry], key=lambda one: int(one["step"]))
        self.result["steps_done"] = max(self.result["steps_done"], step)
        name = f"step-{step:06d}"
        self.record_checksums(backup.SCORES, f"adapters/{name}", f"samples/{name}.png", f"samples/{name}")
        base = content_of(self.folder / backup.BASE)
        if base is not None and (step == 0 or backup.BASE not in self._copies):
            self._copies[backup.BASE] = base
        self._save()
        means = {name: item.mean for name, item in evaluation.summaries.items()}
        self.event("evaluation", step=step, values=means, seconds=dict(evaluation.seconds))
        self.back_up()

    def finish(self, status: Status, summary: Mapping[str, Any]) -> None:
        """Closes the record. It keeps recommendation, cost, error and steps_done from `summary`.

        Only the first call has an effect; a second one, such as in a caller's `finally`, changes nothing. The
        status is written last, in result.json: once it can be read there, all files that it refers to exist.
        """
        if self._closed:
            return
        self._closed = True
        try:
            self.result = self.closing(status, summary)
            if not self._ends_with(status):  # a reopened record may have ended before
                self.event("finish", status=status, error=self.result["error"])
            self.record_checksums(*CHECKSUMMED)
            self.back_up()
            self._save()
        finally:
            self._log.close()

    def _ends_with(self, status: Status) -> bool:
        last = json.loads(self._lines[-1]) if self._lines else {}
        return bool(last.get("event") == "finish" and last.get("status") == status)

    def closing(self, status: Status, summary: Mapping[str, Any]) -> dict[str, Any]:
        """What result.json will contain once `finish` has been called with the same arguments."""
        result = dict(self.result)
        for name in ("recommendation", "cost", "error", "steps_done", "ended"):
            if summary.get(name) is not None:
                result[name] = summary[name]
        if status == "completed":
            result["error"] = None
        return result | {"status": status, "finished": result["finished"] or now()}

    # --- other parts of the record ------------------------------------------------------------------

    def metrics(self, metrics: Iterable[AnyMetric]) -> None:
        """Records the definition of each metric; a score has no meaning without it."""
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
        """Records the encoders used for measuring, by name: file, checksum, preprocessing."""
        self.result["encoders"] = dict(encoders)
        self._save()

    def references(
        self, ceilings: Mapping[str, Summary | None], impostors: Mapping[str, Summary | None]
    ) -> None:
        """Records the scores of photos of the subject and of other people, by metric."""
        self.result["references"] = {
            name: {"ceiling": _asdict(ceilings.get(name)), "impostor": _asdict(impostors.get(name))}
            for name in [*ceilings, *(name for name in impostors if name not in ceilings)]
        }
        self._save()

    def conclusion(
        self, recommendation: Mapping[str, Any] | None, cost: Mapping[str, Any], steps_done: int
    ) -> None:
        """Records the results of training and measuring, from which the artefact and the report are made."""
        self.result["recommendation"] = None if recommendation is None else dict(recommendation)
        self.result |= {"cost": dict(cost), "steps_done": steps_done}
        self._save()

    def ended(self, found: Ended) -> None:
        """Records why the run ends before its last planned step."""
        self.result["ended"] = dataclasses.asdict(found)
        self._save()

    def error(self, text: str) -> None:
        """Records what went wrong, for readers of the record; call it before `finish`."""
        self.result["error"] = text
        self._save()

    def training_pictures(
        self,
        pictures: Sequence[Pixels],
        names: Sequence[str],
        frames: Sequence[Sequence[samples.FaceBox]] = (),
    ) -> None:
        """Writes samples/training.png: the training photos, with a name under each, faces framed."""
        title = f"{len(pictures)} training pictures"
        sheet = samples.sheet(pictures, names, title=title, frames=frames)
        atomic.write_bytes(self.folder / "samples" / "training.png", images.png(sheet))

    def photographs(self, described: Mapping[str, Any]) -> None:
        """Records, by group, the photos with several faces or with a face unlike all others."""
        self.result["photographs"] = dict(described)
        self._save()

    def prompts(self, prompts: PromptSet) -> None:
        """Writes prompts.json: the prompts unchanged."""
        self._write_copied(
            backup.PROMPTS, (jsonable.dumps(dataclasses.asdict(prompts), indent=2) + "\n").encode()
        )


def _asdict(summary: Summary | None) -> dict[str, Any] | None:
    return None if summary is None else dataclasses.asdict(summary)


def _title(evaluation: Evaluation, prompts: PromptSet) -> str:
    means = [
        f"{name} {item.mean:.3f}" for name, item in evaluation.summaries.items() if item.mean is not None
    ]
    return "   ".join([f"step {evaluation.step}", f"{len(prompts)} prompts", *means])
