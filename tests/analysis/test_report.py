"""The pages hold what the record holds, for whole runs and broken ones; text stays text."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from diffusion_lab.config.jobs import Report
from diffusion_lab.config.schema import Config
from diffusion_lab.jobs import report as job
from diffusion_lab.records import Summary, UserError
from diffusion_lab.report import charts, texts
from diffusion_lab.report.comparison import differing_keys, write_comparison
from diffusion_lab.report.loading import loading_code
from diffusion_lab.report.page import data_uri, write_report
from diffusion_lab.runs.reading import find_runs, read_run, read_scalars

Write = Callable[..., Path]


class Page(HTMLParser):
    """Elements and visible text of a page, as a browser's parser would split them."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.data: dict[str, Any] = {}
        self._inside = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = "data" if dict(attrs).get("id") == "data" else tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "data":
            self.data = json.loads(data)
        elif self._inside not in ("script", "style"):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def test_a_whole_run(tmp_path: Path, write_run: Write) -> None:
    path = write_report(write_run(tmp_path / "run"))
    assert path == tmp_path / "run" / "report.html"
    page, run = Page(path), read_run(tmp_path / "run")
    assert run.recommendation is not None
    assert f"Stop at step {run.recommendation.step}" in page.text
    assert "completed" in page.text
    assert page.data["steps"] == [0, 50, 100, 150, 200, 250, 300]
    assert page.data["recommended"] == run.recommendation.step
    assert {f"metric-{name}" for name in run.metrics} <= page.data["figures"].keys()
    assert {"score", "training-0", "training-1"} <= page.data["figures"].keys()
    assert len(page.all("img")) == 8  # seven evaluations and the training pictures
    for text in (
        "1 min 1 s",
        "2 min 41 s",
        "1.00 GiB",
        "load_lora_weights('artefact')",
        "learning_rate: 0.002",
    ):
        assert text in page.text
    assert "scores.parquet" in page.text
    compile(loading_code(run), "loading", "exec")


def test_nothing_is_fetched(tmp_path: Path, write_run: Write) -> None:
    page = Page(write_report(write_run(tmp_path / "run", steps=(0, 50))))
    addresses = [v for _, attrs in page.tags for k, v in attrs.items() if k in ("src", "href") and v]
    assert addresses
    assert all(address.startswith("data:") for address in addresses)
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "unsafe-eval" not in policy


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"steps": (), "status": "failed", "error": "Boom"},
            ["Nothing was measured", "The run failed. Boom"],
        ),
        ({"steps": (0,), "status": "interrupted"}, ["Only one evaluation", "was interrupted"]),
        ({"steps": (0, 50), "status": "diverged", "error": "loss is NaN"}, ["diverged", "loss is NaN"]),
        ({"steps": (0, 50), "finish": False}, ["still in progress"]),
        ({"faces": 0.0}, ["no face found in 20 of 20 images at every step", "clip_image"]),
    ],
)
def test_broken_and_partial_runs(
    tmp_path: Path, write_run: Write, options: dict[str, Any], expected: list[str]
) -> None:
    text = Page(write_report(write_run(tmp_path / "run", **options))).text
    for words_ in expected:
        assert words_ in text


def test_a_job_that_failed_before_its_record(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps({"status": "failed", "error": "UserError: no disk"}))
    assert "UserError: no disk" in Page(write_report(tmp_path)).text


EVIL = "</script><script>window.hit=1</script><img src=x onerror=window.hit=1>\"'&"


def test_text_stays_text(tmp_path: Path, write_run: Write) -> None:
    folder = write_run(
        tmp_path / "a", steps=(0, 50), status="failed", error=EVIL, prompt_text=EVIL,
        config={"data.subject": EVIL, "method.name": EVIL},
    )  # fmt: skip
    write_run(tmp_path / "b", steps=(0, 50))
    result = json.loads((folder / "result.json").read_text())
    result["metrics"]["similarity"] |= {"label": EVIL, "unit": EVIL}
    result["recommendation"]["reason"] = EVIL
    (folder / "result.json").write_text(json.dumps(result))
    for path, scripts in ((write_report(folder), 4), (write_comparison(tmp_path), 4)):
        page = Page(path)
        assert EVIL in page.text
        assert len(page.all("script")) == scripts  # the data, plotly, and our two
        assert all((image.get("src") or "").startswith("data:") for image in page.all("img"))
        assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)


def test_charts_show_floor_ceiling_impostors_and_stop(tmp_path: Path, write_run: Write) -> None:
    run = read_run(write_run(tmp_path / "run"))
    at = {step: summaries["similarity"] for step, summaries in run.summaries.items()}
    figure = charts.metric_figure(run.metrics["similarity"], at, run.references["similarity"], 100)
    assert (figure.layout.shapes[0].x0, figure.layout.shapes[0].x1) == (100, 100)
    ends = {shape.y0 for shape in figure.layout.shapes[2:]}
    kinds = run.references["similarity"]
    assert kinds["ceiling"] is not None
    assert kinds["impostor"] is not None
    assert ends == {at[0].mean, kinds["ceiling"].mean, kinds["impostor"].mean}
    assert [a.text.split()[0] for a in figure.layout.annotations] == ["floor", "impostor", "ceiling"]
    assert list(figure.data[-1].y) == [s.mean for s in at.values()]
    band = figure.data[0]
    assert list(band.y) == [s.high for s in at.values()] + [s.low for s in at.values()][::-1]


def test_labels_never_overlap() -> None:
    placed = charts._apart({"floor": 0.30, "impostor": 0.301, "ceiling": 0.302}, 0.05)
    assert list(placed) == ["floor", "impostor", "ceiling"]
    values = list(placed.values())
    assert min(b - a for a, b in itertools.pairwise(values)) == pytest.approx(0.05, rel=1e-3)


def test_every_light_colour_has_a_dark_one(tmp_path: Path, write_run: Write) -> None:
    data = Page(write_report(write_run(tmp_path / "run"))).data
    used = set(re.findall(r"#[0-9a-f]{6}", json.dumps(data["figures"])))
    assert used
    assert used <= data["dark"].keys()


def test_diverged_losses_do_not_break_the_curve() -> None:
    events = [{"step": 1, "train/loss": 0.5}, {"step": 2, "train/loss": float("nan")}]
    figure = charts.training_figure(events, "train/loss", title="loss", colour="#0072b2", smooth=True)
    assert figure is not None
    assert list(figure.data[1].y) == [0.5]
    assert charts.training_figure([], "train/loss", title="loss", colour="#0072b2", smooth=True) is None


def test_a_line_that_was_cut_off_is_passed_over(tmp_path: Path, write_run: Write) -> None:
    folder = write_run(tmp_path / "run", steps=(0, 50))
    whole = list(read_scalars(folder))
    assert len(whole) == 5
    with (folder / "events.jsonl").open("a") as events:
        events.write('{"event": "scalars", "st')
    assert list(read_scalars(folder)) == whole


def test_large_sheets_are_reduced(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (3000, 2000)).save(tmp_path / "large.png")
    Image.new("RGB", (300, 200)).save(tmp_path / "small.png")
    assert data_uri(tmp_path / "large.png").startswith("data:image/webp")
    assert data_uri(tmp_path / "small.png").startswith("data:image/png")


def test_copying_is_warned_of(tmp_path: Path, write_run: Write) -> None:
    folder = write_run(tmp_path / "run")
    result = json.loads((folder / "result.json").read_text())
    result["references"]["similarity"]["ceiling"]["mean"] = 0.1
    (folder / "result.json").write_text(json.dumps(result))
    assert "copied pictures" in Page(write_report(folder)).text


def test_words() -> None:
    assert [texts.format_seconds(s) for s in (1.5, 42, 185, 7800, None)] == [
        "1.5 s", "42 s", "3 min 5 s", "2 h 10 min", "unknown",
    ]  # fmt: skip
    assert [texts.format_bytes(b) for b in (12, 2048, 3 * 2**20, 3 * 2**29)] == [
        "12 bytes",
        "2 KiB",
        "3 MiB",
        "1.50 GiB",
    ]
    seen = Summary(0.5, 97, 3, 0.01, 0.4, 0.6, 0.48)
    assert (
        texts.missing_note("similarity", {0: seen, 50: seen}) == "no face found in 3 of 100 images at step 0"
    )
    nowhere = Summary(None, 0, 100, None, None, None, 0.0)
    assert texts.missing_note("similarity", {0: nowhere, 50: nowhere}).endswith(
        "100 of 100 images at every step"
    )
    assert "no face found in the reference photos" in texts.missing_note(
        "similarity", {0: nowhere}, faces=True
    )
    assert texts.missing_note("aesthetics", {0: Summary(0.5, 9, 0, None, None, None)}) == ""


def test_a_folder_of_runs(tmp_path: Path, write_run: Write) -> None:
    for n in (4, 14):
        write_run(tmp_path / f"n={n},x", config={"data.n_images": n}, steps=(0, 50, 100))
    write_report(tmp_path / "n=4,x")
    write_run(tmp_path / "deep" / "er", status="diverged", error="loss is NaN", steps=(0,))
    hydra = tmp_path / "early" / ".hydra"
    hydra.mkdir(parents=True)
    (hydra / "config.yaml").write_text("job: {name: finetune}\ndata: {n_images: 900}\n")
    (tmp_path / "unreadable").mkdir()
    (tmp_path / "unreadable" / "result.json").write_text("{")
    assert len(find_runs(tmp_path)) == 5
    path = write_comparison(tmp_path)
    page = Page(path)
    assert path.name == "comparison.html"
    assert page.data["keys"] == ["data.n_images", "steps.total"]
    assert [a["href"] for a in page.all("a")] == ["n%3D4%2Cx/report.html"]
    assert not page.all("img")
    for text in (
        "2 completed",
        "1 diverged",
        "loss is NaN",
        "1 no record",
        "900",
        "cannot be read",
        "1 min 1 s",
    ):
        assert text in page.text
    assert [r["name"] for r in page.data["runs"]] == ["deep/er", "n=4,x", "n=14,x"]


def test_differences_are_among_the_runs_that_have_the_key() -> None:
    configs = [
        {"a": 1, "m": {"name": "x", "rank": 8}, "tracker": {"group": "p"}},
        {"a": 1, "m": {"name": "y"}, "tracker": {"group": "q"}},
        {},
    ]
    assert differing_keys(configs) == ["m.name"]


def test_job(tmp_path: Path, write_run: Write, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "runs" / "one", steps=(0,))
    job.run(Config(job=Report(runs=str(tmp_path / "runs" / "one"))), tmp_path)
    assert capsys.readouterr().out.strip() == str(tmp_path / "runs" / "one" / "report.html")
    job.run(Config(job=Report(runs=str(tmp_path / "runs"))), tmp_path)
    assert capsys.readouterr().out.strip() == str(tmp_path / "runs" / "comparison.html")
    (tmp_path / "empty").mkdir()
    for where in (tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(UserError, match=r"job\.runs"):
            job.run(Config(job=Report(runs=str(where))), tmp_path)
    with pytest.raises(UserError, match=r"job\.runs"):
        write_report(tmp_path / "empty")
