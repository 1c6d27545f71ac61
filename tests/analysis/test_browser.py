"""The pages in a real browser: sliders move the stop as the rule in Python does, nothing is fetched."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from diffusion_lab.analysis.stop import recommend
from diffusion_lab.report.comparison import write_comparison
from diffusion_lab.report.page import write_report
from diffusion_lab.runs.reading import read_run

Write = Callable[..., Path]
EVIL = "</script><script>window.hit=1</script><img src=x onerror=window.hit=1>"


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[[Path], Any]]:
    """Opens a page from its file; in the end there must be no error and no request for anything else."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    troubles: list[str] = []
    opened: list[str] = []

    def go(path: Path) -> Any:
        page = context.new_page()
        page.on("console", lambda m: troubles.append(f"console: {m.text}") if m.type != "log" else None)
        page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
        page.on("request", lambda r: opened.append(r.url))
        page.goto(path.absolute().as_uri())
        page.wait_for_selector("html[data-ready=yes]", state="attached", timeout=60_000)
        return page

    yield go
    context.close()
    assert troubles == []
    assert [url for url in opened if not url.startswith(("file:", "data:"))] == []
    assert len([url for url in opened if url.startswith("file:")]) == 1


def stop_line(page: Any, chart: str = "chart-score") -> int:
    return int(page.evaluate(f"document.getElementById('{chart}').layout.shapes[0].x0"))


def put(page: Any, name: str, value: float) -> None:
    page.locator(f"#weight-{name}").evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')) }", value
    )


def test_a_slider_moves_the_stop(tmp_path: Path, write_run: Write, visit: Callable[[Path], Any]) -> None:
    folder = write_run(tmp_path / "run")
    recommended = read_run(folder).recommendation
    assert recommended is not None
    assert 0 < recommended.step < 300
    page = visit(write_report(folder))
    live = page.locator("#live")
    assert stop_line(page) == recommended.step
    assert live.inner_text().startswith(f"Stop at step {recommended.step}, ")

    slider = page.locator("#weight-similarity")
    slider.focus()
    slider.press("End")  # by keyboard: similarity as heavy as it goes
    for name in ("aesthetics", "diversity"):
        page.locator(f"#weight-{name}").press("Home")
    assert live.inner_text().startswith("Stop at step 300, ")
    assert f"own: step {recommended.step}" in live.inner_text()
    assert stop_line(page) == stop_line(page, "chart-metric-aesthetics") == 300
    assert page.locator("#score-table tr.stop th").inner_text() == "300"
    assert "at step 300" in page.locator("[data-readout=similarity]").inner_text()

    page.locator("#weight-similarity").press("Home")
    assert "nothing chooses" in live.inner_text()
    page.locator("#reset").click()
    assert stop_line(page) == recommended.step
    assert page.locator("#reset").is_disabled()


def test_the_pictures_follow_the_step(tmp_path: Path, write_run: Write, visit: Callable[[Path], Any]) -> None:
    folder = write_run(tmp_path / "run")
    page = visit(write_report(folder))
    recommended = read_run(folder).recommendation
    assert recommended is not None
    shown = page.locator("img[data-picture]:visible")
    assert shown.get_attribute("alt").endswith(f"step {recommended.step}")
    page.locator("#step").press("End")
    assert shown.count() == 1
    assert shown.get_attribute("alt").endswith("step 300")
    assert shown.evaluate("image => image.naturalWidth") > 100
    assert page.locator("#next").is_disabled()
    page.locator("#previous").click()
    assert page.locator("#step-name").inner_text() == "250"
    page.locator("#to-stop").click()
    assert shown.get_attribute("alt").endswith(f"step {recommended.step}")


@pytest.mark.parametrize("faces", [0.9, 0.0])
def test_the_rule_in_the_page_is_the_rule(
    tmp_path: Path, write_run: Write, visit: Callable[[Path], Any], faces: float
) -> None:
    folder = write_run(tmp_path / "run", faces=faces)
    run = read_run(folder)
    assert run.recommendation is not None
    page = visit(write_report(folder))
    names, rng = list(run.recommendation.ranges), random.Random(0)
    for _ in range(60):
        weights = {name: rng.choice([0.0, 0.0, 1.0, rng.random()]) for name in names}
        found = page.evaluate("weights => lab.rule(weights)", weights)
        if not any(weights.values()):
            assert found["best"] is None
            continue
        expected = recommend(
            run.summaries, weights, run.recommendation.ranges, run.metrics.values(), references=run.references
        )
        assert expected is not None
        assert run.steps[found["best"]] == expected.step
        assert found["scores"] == pytest.approx([s.score for s in expected.scores])
        assert found["halves"] == pytest.approx([s.half_width for s in expected.scores])


def test_partial_runs_open_cleanly(tmp_path: Path, write_run: Write, browser: Any) -> None:
    for name, steps in (("none", ()), ("one", (0,))):
        troubles: list[str] = []
        page = browser.new_page()
        page.on("pageerror", lambda error, troubles=troubles: troubles.append(str(error)))
        page.goto(write_report(write_run(tmp_path / name, steps=steps, status="failed")).absolute().as_uri())
        page.wait_for_selector("html[data-ready=yes]", state="attached", timeout=60_000)
        page.close()
        assert troubles == []


def test_injected_markup_never_runs(tmp_path: Path, write_run: Write, visit: Callable[[Path], Any]) -> None:
    folder = write_run(
        tmp_path / "run", steps=(0, 50), error=EVIL, config={"data.subject": EVIL}, status="failed"
    )
    page = visit(write_report(folder))
    assert EVIL in page.locator("h1").inner_text()
    assert page.evaluate("window.hit") is None


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_its_window(
    tmp_path: Path, write_run: Write, visit: Callable[[Path], Any], width: int
) -> None:
    page = visit(write_report(write_run(tmp_path / "run", steps=(0, 50, 100))))
    page.set_viewport_size({"width": width, "height": 800})
    page.wait_for_function("document.documentElement.scrollWidth <= innerWidth", timeout=30_000)
    assert page.evaluate("innerWidth") == width
    for chart in page.locator(".chart").all():  # redrawn for the new width, not cut off
        page.wait_for_function(
            "chart => chart.querySelector('.main-svg').clientWidth <= chart.clientWidth",
            arg=chart.element_handle(), timeout=30_000,
        )  # fmt: skip


def test_comparison(tmp_path: Path, write_run: Write, visit: Callable[[Path], Any]) -> None:
    for n in (4, 14):
        write_run(
            tmp_path / f"{EVIL.replace('/', '')} {n}", config={"data.n_images": n}, steps=(0, 50), seed=n
        )
    write_run(tmp_path / "bad", steps=(), status="failed", error=EVIL)
    page = visit(write_comparison(tmp_path))
    assert page.locator("#colour").input_value() == "data.n_images"
    traces = "document.getElementById('chart-overlay').data.length"
    assert page.evaluate(traces) == 4  # a line and its rings for each number of pictures
    page.locator("#metric").select_option("diversity")
    assert (
        page.evaluate("document.getElementById('chart-overlay').layout.yaxis.title.text") == "cosine distance"
    )
    page.locator("#runs-table thead button", has_text="data.n_images").click()
    column = page.locator("#runs-table tbody tr td:nth-child(3)").all_inner_texts()
    assert column == ["4", "4", "14"]  # as numbers, not as text
    page.locator("#filter").fill("failed")
    assert page.locator("#runs-table tbody tr:visible").count() == 1
    assert page.evaluate("window.hit") is None


def test_scored_images(tmp_path: Path, visit: Callable[[Path], Any]) -> None:
    """The images sorted by a metric, the best first, those without a value last; evil words stay words."""
    import numpy as np

    from diffusion_lab.evaluation.metrics import select
    from diffusion_lab.records import Evaluation, Prompt, PromptSet, ScoreRow, Summary
    from diffusion_lab.report.score_page import write_score_report
    from diffusion_lab.runs.files import FileTracker
    from diffusion_lab.runs.score_files import thumbnail, write_score_files
    from diffusion_lab.sampling.sample import PlannedImage

    values: dict[str, list[float | None]] = {"similarity": [0.5, None, 0.9], "memorisation": [0.7, 0.2, 0.4]}
    metrics = select(list(values))
    planned = [
        PlannedImage(Prompt(f"p{n}", EVIL, EVIL, {"file": f"{n}{EVIL.replace('/', '')}.png"}), 0, 0)
        for n in range(3)
    ]
    rows = tuple(
        ScoreRow(0, item.prompt.id, 0, 0, metric.name, metric.version, value, item.prompt.slots)
        for metric in metrics
        for item, value in zip(planned, values[metric.name], strict=True)
    )
    files = FileTracker(tmp_path / "scored")
    files.start(
        {"job": {"name": "score", "images": f"some/{EVIL}"}, "data": {"subject": EVIL, "n_images": 4}}
    )
    files.metrics(metrics)
    write_score_files(files.folder, rows, planned, metrics, [thumbnail(np.zeros((64, 48, 3), np.uint8))] * 3)
    summaries = {metric.name: Summary(0.5, 3, 0, None, None, None, note=EVIL) for metric in metrics}
    prompts = PromptSet("images", tuple(item.prompt for item in planned), "", "")
    files.evaluation(Evaluation(0, (), rows, summaries, {}), prompts)
    files.finish("completed", {})
    page = visit(write_score_report(files.folder))
    shown = "[...document.querySelectorAll('#all > figure')].map(one => one.dataset.number).join('')"
    assert page.evaluate(shown) == "012"
    page.locator("#sort").select_option("similarity")
    assert page.evaluate(shown) == "201"
    page.locator("#sort").select_option("memorisation")
    assert page.evaluate(shown) == "120"
    page.locator("#sort").select_option("")
    assert page.evaluate(shown) == "012"
    assert page.locator("#score-table tbody tr").count() == 2
    assert page.locator("#all img").evaluate_all(
        "all => all.every(one => one.src.startsWith('data:image/webp'))"
    )
    assert page.evaluate("window.hit") is None
