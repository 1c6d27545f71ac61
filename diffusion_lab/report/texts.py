"""Texts of a run's report: settings, warnings, costs, and how to use the artefact."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion_lab.analysis.reason import display_name
from diffusion_lab.records import Summary
from diffusion_lab.runs.reading import NO_RECORD, Run

STATUS = {
    "completed": "The run was completed.",
    "interrupted": "The run was interrupted; this page shows the measurements up to then.",
    "diverged": "The training diverged: the loss or a gradient was no longer a finite number.",
    "failed": "The run failed.",
    "running": "The run was still in progress when this page was created, or was killed.",
    NO_RECORD: "The run ended before it wrote any result.",
}
FACE_METRICS = ("similarity", "similarity_heldout")
MOST_FILES = 200


def get(config: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key, None if there is none."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def title(run: Run) -> str:
    """ "anna, 14 pictures"."""
    subject, n = get(run.config, "data.subject"), get(run.config, "data.n_images")
    if subject is None:
        return run.folder.resolve().name
    return str(subject) if n is None else f"{subject}, {n} picture{'' if n == 1 else 's'}"


def training_facts(run: Run) -> tuple[int | None, str | None]:
    """The number of training photos and the class noun."""
    return get(run.config, "data.n_images"), get(run.config, "data.class_noun")


def facts(run: Run) -> list[str]:
    """Method, model, steps and so on, in a few words each."""
    method, model = get(run.config, "method.name"), get(run.config, "model.path")
    rank, seed = get(run.config, "method.rank"), get(run.config, "seed")
    found = [
        method and (f"{method}, rank {rank}" if rank else f"{method}"),
        model and f"model {model}",
        run.steps_done is not None and f"{run.steps_done} steps",
        f"{len(run.steps)} evaluation{'' if len(run.steps) == 1 else 's'}",
        seed is not None and f"seed {seed}",
        run.started and f"begun {run.started[:16].replace('T', ' ')}",
    ]
    return [text for text in found if text]


def status(run: Run) -> str:
    return STATUS.get(run.status, f"Status: {run.status}.")


def ended_early(run: Run) -> str:
    """Why the run ended before its last planned step; "" if it did not."""
    if not run.ended or run.status != "completed":
        return ""
    total = get(run.config, "steps.total")
    of = f" of {total}" if total else ""
    return (
        f"The run ended early, at step {run.ended.get('step')}{of}. {run.ended.get('reason') or ''}".strip()
    )


def missing_note(name: str, summaries: Mapping[int, Summary], *, faces: bool = False) -> str:
    """ "No face found in 100 of 100 images", for the step with the most missing; "" if none is missing."""
    worst = max(summaries.items(), key=lambda item: item[1].missing, default=None)
    if worst is None or not worst[1].missing:
        return ""
    step, s = worst
    what = "no face found" if name in FACE_METRICS else "no value"
    if name in FACE_METRICS and faces and not s.n:
        return "no face found in the reference photos"
    everywhere = all(other.n == 0 for other in summaries.values())
    where = "at every step" if everywhere else f"at step {step}" if len(summaries) > 1 else ""
    return f"{what} in {s.missing} of {s.n + s.missing} images {where}".strip()


def counted_as(summaries: Mapping[int, Summary]) -> str:
    """The value of an image without a face: "0", "-0.12", or "-0.12 to 0" if it differs by step."""
    values = sorted({0.0 if s.imputed is None else s.imputed for s in summaries.values() if s.missing})
    said = [f"{value:.2f}" if value else "0" for value in values]
    return " to ".join(dict.fromkeys([said[0], said[-1]])) if said else ""


def _surely_above(here: Summary, ceiling: Summary) -> bool:
    """Whether the interval of the difference excludes 0; for a ceiling without an interval only the mean is used."""
    if here.mean is None or here.low is None or here.high is None or ceiling.mean is None:
        return False
    reach = 0.0 if ceiling.low is None or ceiling.high is None else (ceiling.high - ceiling.low) / 2
    return here.mean - ceiling.mean > math.hypot(here.mean - here.low, reach)


def cautions(run: Run, stop: int | None) -> list[str]:
    """Warnings about the curves."""
    warnings = []
    for name in ("similarity", "similarity_heldout"):
        here = run.summaries.get(stop, {}).get(name) if stop is not None else None
        ceiling = run.references.get(name, {}).get("ceiling")
        if here and ceiling and _surely_above(here, ceiling):
            warnings.append(
                f"At step {stop} {display_name(name)} is above the value of real photos among themselves"
                f" ({here.mean:.2f} against {ceiling.mean:.2f}): a sign of copied pictures."
            )
    warnings += _photographs(run)
    crowded = {step: n for step, n in run.several_faces.items() if n}
    if crowded:
        warnings.append(
            f"Up to {max(crowded.values())} images of an evaluation show several faces: the most prominent one, by "
            "size and centre, is used."
        )
    if run.summaries and 0 not in run.summaries:
        warnings.append("Step 0 was not evaluated, so there is no floor to compare with.")
    return warnings


def _photographs(run: Run) -> list[str]:
    """Notes on reference photos with several faces, or with one unlike all others."""
    own = [one for group in ("train", "heldout") for one in run.photographs.get(group, ())]
    warnings = []
    several = [str(one.get("file")) for one in own if one.get("faces", 0) > 1]
    if several:
        warnings.append(
            f"Several faces in {_first(several)}: the one that also appears in the other photos is used, else the choice is by size "
            "and centre; it is framed in the sheet of training photos."
        )
    odd = [str(one.get("file")) for one in own if one.get("unlike")]
    if odd:
        warnings.append(f"The face in {_first(odd)} is unlike that of the subject's other photos.")
    return warnings


def _first(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def format_seconds(value: Any) -> str:
    """ "41 s", "3 min 5 s", "2 h 10 min"."""
    if not isinstance(value, (int, float)):
        return "unknown"
    if value < 60:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def format_bytes(value: Any) -> str:
    """Bytes in a readable unit, powers of 1024."""
    if not isinstance(value, (int, float)):
        return "unknown"
    for unit in ("bytes", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.2f} GiB"


def cost_rows(run: Run) -> list[tuple[str, str, str]]:
    """(what, how long, peak memory) for start, training and evaluation, and for the parts of the evaluation."""
    rows = [
        (part, format_seconds(cost.get("seconds")), format_bytes(cost.get("peak_memory_bytes")))
        for part in ("start", "training", "evaluation")
        if isinstance(cost := run.cost.get(part), Mapping) and cost
    ]
    parts: dict[str, float] = {}
    for spent in run.seconds.values():
        for part, value in spent.items():
            parts[part] = parts.get(part, 0.0) + value
    return rows + [(f"of which {part}", format_seconds(total), "") for part, total in parts.items()]


def provenance(run: Run) -> list[tuple[str, str]]:
    """Names and values of the provenance, in the record's order; versions last."""
    rows = []
    for key, value in run.provenance.items():
        if isinstance(value, Mapping):
            continue
        if isinstance(value, bool) or value is None:
            value = {True: "yes", False: "no", None: "unknown"}[value]
        if key.endswith("_bytes"):
            key, value = key.removesuffix("_bytes"), format_bytes(value)
        rows.append((key.replace("_", " "), str(value)))
    if run.finished:
        rows.append(("finished", run.finished[:19].replace("T", " ")))
    for key, value in run.provenance.items():
        if isinstance(value, Mapping):
            rows.append((key.replace("_", " "), ", ".join(f"{k} {v}" for k, v in value.items())))
    return rows


def files(folder: Path) -> list[tuple[str, str]]:
    """(path, size) of the run's files, the first 200; hidden files are skipped."""
    found: list[tuple[str, str]] = []
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(where, name)
            if not name.startswith(".") and not name.endswith(".part") and path.is_file():
                found.append((path.relative_to(folder).as_posix(), format_bytes(path.stat().st_size)))
    return found[:MOST_FILES]
