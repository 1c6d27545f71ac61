"""The report and the table of job=score, created from its files only."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_lab.records import Summary, UserError
from diffusion_lab.report import texts
from diffusion_lab.report.page import data_uri, save
from diffusion_lab.runs.reading import MetricInfo, Run, read_run
from diffusion_lab.runs.score_files import EXTREMES, PICTURES, SHOWN, TABLE, best_and_worst

if TYPE_CHECKING:
    from rich.console import Console


def write_score_report(folder: Path, result: Mapping[str, Any] | None = None) -> Path:
    """Writes `report.html` into the folder of job=score and returns its path. UserError if it is not such a folder.

    ``result``: the future content of result.json, for a job that is being finished.
    """
    run = read_run(folder, result)
    images = read_images(folder)
    return save(folder / "report.html", "score", view(run, images), charts=False)


def read_images(folder: Path) -> list[dict[str, str]]:
    """Rows of scores.csv: file, prompt, and a metric's value as text, "" if undefined."""
    try:
        with (folder / TABLE).open(encoding="utf-8", newline="") as lines:
            return list(csv.DictReader(lines))
    except OSError as error:
        raise UserError(f"job.runs: {folder} has no {TABLE} ({error.strerror or error})") from error


def view(run: Run, images: list[dict[str, str]]) -> dict[str, Any]:
    """The values for the template."""
    summaries = run.summaries.get(0, {})
    named = [info for info in run.metrics.values() if any(row.get(info.name) for row in images)]
    source = {n: uri for n in range(len(images)) if (uri := _picture(run.folder, n))}
    taught = run.folder / "samples" / "training.png"
    job = texts.get(run.config, "job.images")
    lines = [
        _line(run, info, summaries[info.name]) for info in run.metrics.values() if info.name in summaries
    ]
    return {
        "title": Path(str(job)).name or str(job),
        "run": run,
        "facts": [
            f"{len(images)} image{'' if len(images) == 1 else 's'}",
            *([f"{several} with several faces"] if (several := run.several_faces.get(0)) else []),
            f"against {texts.title(run)}",
            *([f"begun {run.started[:16].replace('T', ' ')}"] if run.started else []),
        ],
        "lines": lines,
        "impostors": any(line["impostor"] != "-" for line in lines),
        "ends": [end for info in named if (end := _ends(info, images, source))],
        "images": [
            {
                "number": number,
                "name": row["file"],
                "prompt": row["prompt"],
                "src": source[number],
                "values": [(info.name, _short(row[info.name])) for info in named],
            }
            for number, row in enumerate(images[:SHOWN])
            if number in source
        ],
        "total": len(images),
        "taught": data_uri(taught) if taught.is_file() else None,
        "encoders": [(role, str(identity)) for role, identity in run.encoders.items()],
        "provenance": texts.provenance(run),
        "data": {
            "metrics": [
                {
                    "name": info.name,
                    "higher": info.higher_is_better,
                    "values": [_number(row[info.name]) for row in images[:SHOWN]],
                }
                for info in named
            ]
        },
    }


def _picture(folder: Path, number: int) -> str | None:
    path = folder / PICTURES / f"{number:05d}.webp"
    return data_uri(path, "webp") if path.is_file() else None


def _line(run: Run, info: MetricInfo, summary: Summary) -> dict[str, Any]:
    """One metric's row, and the position of its value between impostor line and ceiling, in per cent."""
    lines = run.references.get(info.name, {})
    ceiling, impostor = (_mean(lines.get(kind)) for kind in ("ceiling", "impostor"))
    place = None
    if ceiling is not None and impostor is not None and summary.mean is not None and ceiling > impostor:
        place = round(100 * min(1.0, max(0.0, (summary.mean - impostor) / (ceiling - impostor))))
    return {
        "label": info.label,
        "name": info.name,
        "unit": info.unit,
        "better": "higher is better" if info.higher_is_better else "lower is better",
        "mean": _written(summary.mean),
        "error": "" if summary.standard_error is None else f"± {summary.standard_error:.3f}",
        "interval": ""
        if summary.low is None or summary.high is None
        else f"{summary.low:.3f} to {summary.high:.3f}",
        "n": summary.n,
        "missing": summary.missing,
        **_counting_missing(summary),
        "ceiling": "-" if ceiling is None else f"{ceiling:.3f}",
        "impostor": "-" if impostor is None else f"{impostor:.3f}",
        "place": place,
        "note": summary.note or "",
    }


def _counting_missing(found: Summary) -> dict[str, str]:
    """The mean over all images and the fraction with a face; "" if none is missing or can be missing.

    A mean over the few images with a face does not describe the others.
    """
    if found.penalised is None or not found.missing:
        return {"penalised": "", "penalised_interval": "", "imputed": "", "rate": ""}
    low, high = found.penalised_low, found.penalised_high
    return {
        "penalised": f"{found.penalised:.3f}",
        "penalised_interval": "" if low is None or high is None else f"{low:.3f} to {high:.3f}",
        "imputed": f"{found.imputed:.2f}" if found.imputed else "0",
        "rate": f"{100 * found.n / (found.n + found.missing):.0f} %",
    }


def _ends(info: MetricInfo, images: list[dict[str, str]], source: Mapping[int, str]) -> dict[str, Any] | None:
    """Best and worst images of a metric; None if fewer than two have a value, if all values are equal, and for a
    yes-or-no metric, which has no order.
    """
    values = [_number(row[info.name]) for row in images]
    if {value for value in values if value is not None} <= {0.0, 1.0}:
        return None
    ranked = [number for number in best_and_worst(values, info.higher_is_better) if number in source]
    if len(ranked) < 2 or values[ranked[0]] == values[ranked[-1]]:
        return None
    half = min(EXTREMES, len(ranked) // 2)
    shown = [
        {"name": images[n]["file"], "src": source[n], "value": _short(images[n][info.name]), "prompt": images[n]["prompt"]}
        for n in [*ranked[:half], *ranked[-half:]]
    ]  # fmt: skip
    return {"label": info.label, "best": shown[:half], "worst": shown[half:]}


def _number(text: str) -> float | None:
    return float(text) if text else None


def _short(text: str) -> str:
    return f"{float(text):.3f}" if text else "-"


def _mean(summary: Summary | None) -> float | None:
    return None if summary is None else summary.mean


def _written(value: float | None) -> str:
    return "no value" if value is None else f"{value:.3f}"


def print_table(folder: Path, console: Console | None = None) -> None:
    """The scores on the terminal, one line per metric, and the notes below."""
    from rich.console import Console, JustifyMethod
    from rich.table import Table

    run = read_run(folder)
    lines = view(run, read_images(folder))["lines"]
    table = Table(box=None, padding=(0, 1), pad_edge=False)  # 80 columns for any metric name
    for name in ("metric", "mean", "95 % interval", "images", "ceiling", "impostor"):
        justify: JustifyMethod = "left" if name in ("metric", "mean") else "right"
        table.add_column(name, justify=justify, no_wrap=name == "metric", overflow="fold")
    for line in lines:
        total = line["n"] + line["missing"]
        images = f"{line['n']} of {total}" if line["missing"] else str(line["n"])
        mean = f"{line['mean']} {line['error']}"
        table.add_row(line["name"], mean, line["interval"], images, line["ceiling"], line["impostor"])
        if line["penalised"]:  # a mean over some of the images does not describe the others
            table.add_row("  over all", line["penalised"], line["penalised_interval"], str(total))
    console = console or Console()
    console.print(table)
    for line in lines:
        notes = [line["note"]] if line["note"] else []
        if line["penalised"]:
            counts = f"each one without counts as {line['imputed']} in the mean over all"
            notes.insert(0, f"a face in {line['rate']} of the images; {counts}")
        for text in notes:
            line_text = f"{line['name']}: {text}"
            console.print(line_text, style="yellow", markup=False, highlight=False, soft_wrap=True)
