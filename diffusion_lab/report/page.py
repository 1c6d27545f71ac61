"""One self-contained HTML page of a run, made from its files alone.

The page loads nothing: plotly.js, style, script, figures and images are embedded, and a content security
policy forbids everything else. The template escapes all text; a script runs only if its hash is listed in the
page.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import plotly.offline
from markupsafe import Markup

from diffusion_lab.analysis.limits import limits_of, value_of
from diffusion_lab.analysis.reason import display_name, rules_of_thumb
from diffusion_lab.analysis.scoring import StepScore
from diffusion_lab.records import Summary
from diffusion_lab.report import charts, texts
from diffusion_lab.report.loading import loading_code
from diffusion_lab.runs.reading import MetricInfo, Run, damaged_files, read_run, read_scalars
from diffusion_lab.system import atomic
from diffusion_lab.system.images import encoded

log = logging.getLogger(__name__)

TEMPLATES = Path(__file__).with_name("templates")
KEEP_BYTES = 1_500_000  # an image up to this size is embedded unchanged
MAX_WIDTH = 1400  # pixels; wider images are reduced
TRAINING_CURVES = (
    ("train/loss", "loss", "#0072b2", True),
    ("train/learning_rate", "learning rate", "#5f6875", False),
)


def write_report(run_folder: Path, result: Mapping[str, Any] | None = None) -> Path:
    """Writes `report.html` into the folder of a run, finished or not, and returns its path.

    ``result``: the future content of result.json, for a run that is being finished.

    Raises:
        UserError: (job.runs) if the folder contains no run or cannot be written.
    """
    run = read_run(Path(run_folder), result)
    run = dataclasses.replace(run, damaged_files=damaged_files(run.folder, result))
    return save(run.folder / "report.html", "report", view(run))


def save(
    path: Path,
    template: str,
    values: Mapping[str, Any],
    *,
    charts: bool = True,
    scripts_of: Sequence[str] = (),
    images_beside: bool = False,
) -> Path:
    """Renders `template`.html with its scripts and style, and writes it atomically.

    ``charts``: include plotly.js, a few megabytes. ``scripts_of``: the page's scripts, in order, instead of
    `template`.js. ``images_beside``: let the page load images from files beside it.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    scripts = [(TEMPLATES / f"{name}.js").read_text("utf-8") for name in scripts_of or (template,)]
    if charts:
        scripts = [plotly.offline.get_plotlyjs(), (TEMPLATES / "common.js").read_text("utf-8"), *scripts]
    page = environment.get_template(f"{template}.html").render(
        **values,
        scripts=[Markup(script) for script in scripts],
        hashes=[base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts],
        style=Markup(
            "".join(
                (TEMPLATES / f"{name}.css").read_text("utf-8")
                for name in ("style", template)
                if (TEMPLATES / f"{name}.css").is_file()
            )
        ),
        # 'self' does not include the files beside a page that was opened as a file
        image_sources=Markup(" 'self' file:") if images_beside else "",
    )
    atomic.write_text(path, page)
    return path


def view(run: Run) -> dict[str, Any]:
    """The values for the template."""
    recommended = run.recommendation
    stop = None if recommended is None else recommended.step
    scalars = list(read_scalars(run.folder, run.id))
    training = [
        (title, charts.training_figure(scalars, key, title=title, colour=colour, smooth=smooth))
        for key, title, colour, smooth in TRAINING_CURVES
    ]
    cards = [_card(run, info, stop) for info in run.metrics.values() if run.summaries]
    pictures = [
        {"step": step, "src": source}
        for step in run.steps
        if (source := _source(run, f"samples/step-{step:06d}.png")) is not None
    ]
    figures = {f"metric-{c['name']}": c.pop("figure") for c in cards}
    figures |= {f"training-{i}": charts.as_json(f) for i, (_, f) in enumerate(training) if f is not None}
    if recommended is not None:
        figures["score"] = charts.as_json(charts.score_figure(recommended.scores, stop))
    reason = run.reason or ("" if recommended is None else recommended.reason)
    sentences = re.split(r"(?<=\.) (?=[A-Z])", reason.replace(" %", "\N{NO-BREAK SPACE}%"))
    sentences[0] = re.sub(r"^Stop at step \d+(, the last)?: f", "F", sentences[0])  # already in the heading
    return {
        "run": run,
        "run_id": run.id,
        "title": texts.title(run),
        "facts": texts.facts(run),
        "status": run.status,
        "status_words": texts.status(run),
        "ended_early": texts.ended_early(run),
        "stop": stop,
        "reason": " ".join(sentences[:2]),
        "notes": " ".join(sentences[2:]),
        "cautions": [*texts.cautions(run, stop), *_lost(run)],
        "cards": cards,
        "training": [f"training-{i}" for i, (_, f) in enumerate(training) if f is not None],
        "pictures": pictures,
        "taught": _source(run, "samples/training.png"),
        "table": _table(run),
        "costs": texts.cost_rows(run),
        "provenance": texts.provenance(run),
        "files": texts.files(run.folder),
        "loading": loading_code(run),
        "rules": {} if "Rules of thumb" in reason else rules_of_thumb(*texts.training_facts(run)),
        "data": {
            "steps": run.steps,
            "recommended": stop,
            "metrics": [] if recommended is None else _rule(run, recommended.weights, recommended.scores),
            "pictures": [p["step"] for p in pictures],
            "figures": figures,
            "dark": dict(charts.DARK),
        },
    }


def _rule(run: Run, weights: Mapping[str, float], scores: tuple[StepScore, ...]) -> list[dict[str, Any]]:
    """The stop rule's values for the page: scaled values, and half intervals on the same scale."""
    assert run.recommendation is not None
    rule = []
    for name, (low, high) in run.recommendation.ranges.items():
        sides = [_sides(at.get(name)) for at in run.summaries.values()]
        below, above = ([None if s is None else s[k] / (high - low) for s in sides] for k in (0, 1))
        if not run.metrics[name].higher_is_better:
            below, above = above, below
        rule.append(
            {
                "name": name,
                "spoken": display_name(name),
                "hue": charts.hue(name),
                "weight": weights.get(name, 0.0),
                "scaled": [score.scaled.get(name) for score in scores],
                "below": below,
                "above": above,
                "text": [_text(at.get(name)) for at in run.summaries.values()],
            }
        )
    return rule


def _sides(summary: Summary | None) -> tuple[float, float] | None:
    """The distances of a value's interval limits below and above it."""
    value, limits = (None, None) if summary is None else (value_of(summary), limits_of(summary))
    return None if value is None or limits is None else (value - limits[0], limits[1] - value)


def _text(summary: Summary | None) -> str:
    if summary is None or (value := value_of(summary)) is None:
        return "no value"
    limits = limits_of(summary)
    return f"{value:.3f}" + ("" if limits is None else f" ({limits[0]:.3f} to {limits[1]:.3f})")


def _card(run: Run, info: MetricInfo, stop: int | None) -> dict[str, Any]:
    summaries = {step: at[info.name] for step, at in run.summaries.items() if info.name in at}
    defined = any(s.mean is not None for s in summaries.values())
    figure = charts.metric_figure(info, summaries, run.references.get(info.name, {}), stop)
    return {
        "name": info.name,
        "label": info.label,
        "better": "higher is better" if info.higher_is_better else "lower is better",
        "hue": charts.hue(info.name),
        "defined": defined,
        "imputed": texts.counted_as(summaries),
        "missing": texts.missing_note(info.name, summaries, faces=_faces(run)),
        "note": next((s.note for s in reversed(summaries.values()) if s.note), ""),
        "figure": charts.as_json(figure) if defined else None,
    }


def _faces(run: Run) -> bool:
    """True if a face was found in any image."""
    rates = [at["face_rate"].mean for at in run.summaries.values() if "face_rate" in at]
    return any(rate for rate in rates)


def _table(run: Run) -> dict[str, Any]:
    names = list(run.metrics)
    rows = [
        {"step": step, "name": f"{step}", "cells": [_cell(at.get(name)) for name in names]}
        for step, at in run.summaries.items()
    ]
    for kind, label in (("ceiling", "ceiling: real photos"), ("impostor", "impostor: other subjects")):
        found = [run.references.get(name, {}).get(kind) for name in names]
        if any(found):
            rows.append({"step": None, "name": label, "cells": [_cell(s) for s in found]})
    return {"heads": [(i.label, i.unit) for i in run.metrics.values()], "rows": rows}


def _cell(s: Summary | None) -> dict[str, str]:
    if s is None:
        return {"mean": "-", "error": "", "count": ""}
    return {
        "mean": "no value" if s.mean is None else f"{s.mean:.3f}",
        "error": "" if s.standard_error is None else f"± {s.standard_error:.3f}",
        "count": f"n {s.n}" + (f", {s.missing} missing" if s.missing else ""),
    }


def _lost(run: Run) -> list[str]:
    """A note on files that are missing or have changed, and are therefore not shown."""
    if not run.damaged_files:
        return []
    names = ", ".join(run.damaged_files[:5]) + (
        f" and {len(run.damaged_files) - 5} more" if len(run.damaged_files) > 5 else ""
    )
    return [
        f"Missing or damaged since the run wrote them: {names}. They are not shown on this page; giving the run's command "
        "again (resume=FOLDER) restores them if possible."
    ]


def _source(run: Run, name: str) -> str | None:
    """A sheet of images for the page, None if it is missing, damaged or of another run."""
    path = run.folder / name
    if name in run.damaged_files or not path.is_file():
        return None
    try:
        return data_uri(path)
    except Exception as error:  # Pillow raises various errors for a damaged file
        log.warning("%s is damaged and not shown in the report: %s", path, error)
        return None


def data_uri(path: Path, kind: str = "png") -> str:
    """An image for the page: unchanged if it is small, else reduced and as WebP. ``kind``: the file's type."""
    content = path.read_bytes()
    from PIL import Image

    with Image.open(io.BytesIO(content)) as image:
        image.load()  # raises if the file is truncated
        if len(content) > KEEP_BYTES or image.width > MAX_WIDTH:
            reduced = image.convert("RGB")
            reduced.thumbnail((MAX_WIDTH, 16000), Image.Resampling.LANCZOS)
            content, kind = encoded(reduced, "WEBP", quality=85), "webp"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
