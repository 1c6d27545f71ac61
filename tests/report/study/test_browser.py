"""The page of a study in a real browser: sliders, filters, clicks, downloads; intervals as in Python; nothing is fetched."""

from __future__ import annotations

import base64
import csv
import dataclasses
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffusion_lab.report.study import rows
from diffusion_lab.report.study.files import SECTIONS, Material, material_of
from diffusion_lab.report.study.page import sections, write_page
from diffusion_lab.studies.definition import Study
from diffusion_lab.studies.run import StudyRun
from diffusion_lab.studies.stops import best_of, rule_of, score
from diffusion_lab.studies.table import Table

Visit = Callable[..., Any]
Make = Callable[..., Any]
EVIL = "</script><script>window.hit=1</script><img src=x onerror=window.hit=1>,\"'&"
SLIDE = "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')) }"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, counts: Make) -> tuple[Path, Table]:
    """The page of ten subjects and four numbers of photos, with images."""
    folder = tmp_path_factory.mktemp("runs")
    table = counts(folder, sheets=True)
    return write_page(folder / "_all", table, None), table


def stops_of(page: Any) -> list[int]:
    found: list[int] = page.evaluate("study.runs.map((run) => run.steps[lab.stop(run, -1)] ?? -1)")
    return found


def traces(page: Any, chart: str) -> list[dict[str, Any]]:
    """What a chart shows now; it is drawn even if it is out of view."""
    page.evaluate("lab.drawEverything()")
    found: list[dict[str, Any]] = page.evaluate(
        "(id) => document.getElementById(id).data.map((t) => ({ x: t.x, y: t.y, name: t.text?.[0] ?? '' }))",
        f"chart-{chart}",
    )
    return found


def test_sliders_and_ranges_move_the_stops(written: tuple[Path, Table], visit: Visit) -> None:
    path, table = written
    page = visit(path)
    before, live = stops_of(page), page.locator("#live")
    expected = [int(one.stop_steps()[0]) for one in rows.measured(table)]
    assert before == expected
    text, points = live.inner_text(), traces(page, "stop")
    slider = page.locator("#weight-similarity")
    slider.focus()
    slider.press("End")  # by keyboard
    for name in ("aesthetics", "diversity"):
        page.locator(f"#weight-{name}").press("Home")
    after = stops_of(page)
    assert sum(after) > 1.5 * sum(before)  # similarity rises to the end
    assert live.inner_text() != text
    assert traces(page, "stop") != points
    for name in ("similarity", "aesthetics", "diversity"):
        page.locator(f"#weight-{name}").evaluate(SLIDE, 0)
    assert "nothing chooses" in live.inner_text()
    page.locator("#reset").click()
    assert stops_of(page) == before
    assert live.inner_text() == text
    assert page.locator("#reset").is_disabled()

    page.locator("#range-diversity-high").fill(
        "0.25"
    )  # diversity is scaled to a narrow range: it alone decides
    assert stops_of(page) != before
    page.locator("#range-diversity-high").fill("-1")
    assert page.locator("#range-diversity-high").get_attribute("aria-invalid") == "true"
    page.locator("#reset").click()
    assert page.locator("#range-diversity-high").input_value() == "1"
    assert stops_of(page) == before


def test_filters_hide_lines(written: tuple[Path, Table], visit: Visit) -> None:
    page = visit(written[0])
    whole = traces(page, "dynamics-similarity")
    page.locator("[data-filter=n] summary").click()
    page.locator("[data-filter=n] label", has_text="20").locator("input").uncheck()
    assert len(traces(page, "dynamics-similarity")) == len(whole) - 1
    assert "30 of 40 runs" in page.locator("#shown").inner_text()
    page.keyboard.press("Escape")
    assert page.locator("#filters details[open]").count() == 0
    page.locator("[data-filter=gender] summary").click()
    page.locator("[data-filter=gender] label", has_text="women").locator("input").uncheck()
    assert "15 of 40 runs" in page.locator("#shown").inner_text()
    drawn = {x for trace in traces(page, "counts-diversity") for x in trace["x"]}
    assert drawn
    page.locator("[data-filter=gender] button").click()  # all
    page.locator("[data-filter=gender] button").click()  # none
    assert page.evaluate("lab.shown().length") == 0
    assert traces(page, "counts-diversity") == []  # nothing to draw, and no error


def test_a_click_shows_the_images_of_the_run_and_step(written: tuple[Path, Table], visit: Visit) -> None:
    path, table = written
    page = visit(path)
    chart = page.locator("#chart-dynamics-similarity")
    chart.scroll_into_view_if_needed()
    page.wait_for_function(
        "() => document.getElementById('chart-dynamics-similarity').querySelector('.drag')"
    )
    x, y = page.evaluate("""() => {
      const chart = document.getElementById("chart-dynamics-similarity"), { xaxis, yaxis } = chart._fullLayout, run = study.runs[13];
      const place = chart.querySelector(".nsewdrag").getBoundingClientRect();
      return [place.left + xaxis.l2p(run.steps[5]), place.top + yaxis.l2p(run.values.similarity[5])];
    }""")
    page.mouse.move(x, y)
    page.mouse.click(x, y)
    page.wait_for_function("() => chosen.step === 5")
    run: StudyRun = table.runs[page.evaluate("chosen.run.index")]
    assert (
        abs(run.values["similarity"][5] - table.runs[13].values["similarity"][5]) < 0.03
    )  # or one of those beside it
    assert page.locator("#run").evaluate("select => select.selectedOptions[0].text") == run.name
    assert page.locator("#step-name").inner_text() == "250"
    values = page.locator("#step-values td").first.inner_text()
    assert values.startswith(f"{run.values['similarity'][5]:.3f}")
    thumbs = page.locator("#images .thumb")
    assert thumbs.count() == page.evaluate("study.thumbnails.images") > 1
    assert "step 250" in thumbs.first.get_attribute("aria-label")
    position = thumbs.nth(1).evaluate("one => one.style.backgroundPosition")
    assert position == "-96px -480px"  # the second image, the sixth row
    before = len(visit.opened)
    page.locator("#sheet-link").click()
    page.wait_for_function("() => document.getElementById('sheet').naturalWidth > 200")
    assert visit.opened[before:] == [
        (run.folder / "samples/step-000250.png").as_uri().replace("=", "%3D").replace(",", "%2C")
    ] or visit.opened[before:][0].endswith("samples/step-000250.png")
    page.locator("#next").click()
    assert page.locator("#step-name").inner_text() == "300"
    assert page.locator("#sheet").is_hidden()
    page.locator("#step").press("End")
    assert page.locator("#next").is_disabled()
    page.locator("#to-stop").click()
    assert page.evaluate("chosen.step === lab.stop(chosen.run, -1)")


def test_only_the_page_is_loaded(written: tuple[Path, Table], visit: Visit) -> None:
    page = visit(written[0])
    page.evaluate("lab.drawEverything()")
    assert len([url for url in visit.opened if url.startswith("file:")]) == 1


def test_tables_and_charts_can_be_saved(written: tuple[Path, Table], visit: Visit) -> None:
    path, table = written
    page = visit(path)
    page.evaluate("lab.drawEverything()")
    with page.expect_download() as caught:
        page.locator("#card-counts-diversity .take button", has_text="CSV").click()
    found = list(csv.DictReader(io.StringIO(Path(caught.value.path()).read_text())))
    expected = rows.curves(rows.measured(table), "diversity", "n")
    assert [(int(r["n"]), int(r["step"])) for r in found] == [(r["n"], r["step"]) for r in expected]
    assert list(found[0]) == list(expected[0])
    with page.expect_download() as caught:
        page.locator("#card-stop .take button", has_text="SVG").click()
    text = Path(caught.value.path()).read_text()
    assert text.startswith("<svg")
    assert "recommended stop, steps" in text
    assert caught.value.suggested_filename == "all-stop.svg"


def of_the_page(page: Any, table: Table) -> Material:
    """What Python's tables are made from, with the values and replicates that are in the page."""
    material = material_of(table)
    told = page.evaluate("study.runs.map(({ values, scales, deltas }) => ({ values, scales, deltas }))")
    runs = []
    for one, data in zip(material.everything, told, strict=True):
        values = {name: np.array(v, float) for name, v in data["values"].items()}
        deltas = np.frombuffer(base64.b64decode(data["deltas"]), np.int8)
        deltas = deltas.reshape(len(data["scales"]), -1, len(one.run.steps))
        again = {
            n: np.vstack([np.zeros_like(values[n]), s * d]) + values[n]
            for (n, s), d in zip(data["scales"], deltas, strict=True)
        }
        rule = rule_of(one.run, table.metrics, table.weights, table.ranges)
        assert rule is not None
        stops = best_of(score(again, rule, table.metrics)).astype(float)
        runs.append(dataclasses.replace(one, values=again, stops=stops))
    return dataclasses.replace(
        material, everything=runs, averaged=[one for one in runs if one.keys["balanced"] == "yes"]
    )


def compared(page: Any, material: Material, names: list[str]) -> float:
    """Every row of the page's charts against Python's; the greatest difference of limits, as a share of their distance."""
    page.evaluate("lab.drawEverything()")
    shown = page.evaluate("Object.fromEntries([...lab.tables])")
    worst, seen = 0.0, 0
    for name in names:
        for kind, expected in SECTIONS[name](material).tables.items():
            for row in expected:
                chart = {"counts": f"counts-{row.get('metric')}", "optimum": f"optimum-{row.get('metric')}", "models": f"models-{row.get('metric')}",
                         "models_stop": "models-stop" if row.get("of") == "stop" else f"models-at-{row.get('of')}", "methods_costs": f"cost-{row.get('cost')}"}.get(kind, kind)  # fmt: skip
                same = {k: v for k, v in row.items() if k in ("by", "n", "step", "at", "metric", "model")}
                match = [
                    r for r in shown[chart] if all(str(r[k]) == str(v) for k, v in same.items() if k in r)
                ]
                assert len(match) == 1, (chart, same)
                for value, low, high in (
                    ("value", "low", "high"),
                    ("slope", "low", "high"),
                    ("x", "x_low", "x_high"),
                    ("y", "y_low", "y_high"),
                ):
                    if value not in row:
                        continue
                    assert match[0][value] == pytest.approx(row[value], abs=2e-5, rel=1e-5)
                    assert (row[low] is None) == (match[0][low] is None)
                    if row[low] is None:
                        continue
                    width = row[high] - row[low]
                    worst = max(
                        worst, abs(match[0][low] - row[low]) / width, abs(match[0][high] - row[high]) / width
                    )
                    seen += 1
    assert seen > 20
    return worst


def test_intervals_are_those_of_python(written: tuple[Path, Table], visit: Visit) -> None:
    """Exactly with the replicates of the page; and nearly with the original ones, which are not rounded."""
    path, table = written
    page = visit(path)
    assert page.evaluate("replicates") == 400
    names = ["counts", "optimum", "stop"]
    assert compared(page, of_the_page(page, table), names) < 1e-4
    assert compared(page, material_of(table), ["counts"]) < 0.01


def test_models_methods_and_other_settings(
    tmp_path: Path, visit: Visit, run_of: Make, table_of: Make
) -> None:
    runs = [
        run_of(tmp_path, f"{model} {method} {rate} {s} {n}", s, n, model=model, method=method, quality=q, settings={"method.learning_rate": rate})
        for model, method, rate, q in (("sd15", "lora", 1e-4, 0.0), ("sd21", "lora", 1e-4, -0.1), ("sd15", "lora", 1e-3, 0.05), ("sd15", "dreambooth", 1e-6, 0.1))
        for s in ("anna", "ben", "carl")
        for n in (8, 14)
    ]  # fmt: skip
    table = table_of(runs)
    assert sections(table, None) == ["dynamics", "stop", "counts", "optimum", "models", "methods", "values"]
    page = visit(write_page(tmp_path / "_all", table, None))
    assert compared(page, of_the_page(page, table), ["models", "methods", "stop", "optimum", "counts"]) < 1e-4
    assert (
        "lora" in page.locator("#mixed-models").inner_text()
        or "method" in page.locator("#mixed-models").inner_text()
    )
    assert page.locator("#mixed-methods").is_hidden()
    assert [one["name"] for one in traces(page, "values-similarity")] != []
    lines = [trace for trace in traces(page, "methods") if len(trace["x"]) > 1]
    assert len(lines) == 4


def test_a_single_run(tmp_path: Path, visit: Visit, run_of: Make, table_of: Make) -> None:
    page = visit(
        write_page(tmp_path / "_all", table_of([run_of(tmp_path, "only", "anna", 4, steps=(0,))]), None)
    )
    page.evaluate("lab.drawEverything()")
    assert "step 0" in page.locator("#live").inner_text()
    assert page.locator("#previous").is_disabled()
    assert page.locator("#next").is_disabled()


def test_without_faces_and_without_runs(tmp_path: Path, visit: Visit, run_of: Make, table_of: Make) -> None:
    runs = [run_of(tmp_path, f"{s}{n}", s, n, faces=False) for s in ("anna", "ben") for n in (4, 8)]
    page = visit(write_page(tmp_path / "_all", table_of(runs), None))
    page.evaluate("lab.drawEverything()")
    assert page.locator("#weight-similarity").count() == 0  # it has no value at all
    assert min(stops_of(page)) >= 0
    mixed = [*runs, run_of(tmp_path, "carl", "carl", 4)]
    page = visit(write_page(tmp_path / "_mixed", table_of(mixed), None))
    page.evaluate("lab.drawEverything()")
    expected = [int(one.stop_steps()[0]) for one in rows.measured(table_of(mixed))]
    assert stops_of(page) == expected  # whole images take the place of faces, run by run
    page = visit(write_page(tmp_path / "_none", table_of([], pending=(("a", "not begun"),)), None))
    assert "1 without evaluations" in page.locator("#runs").inner_text()


def test_a_running_study_averages_a_balanced_part(
    tmp_path: Path, visit: Visit, run_of: Make, table_of: Make
) -> None:
    runs = [run_of(tmp_path, f"{s}{n}", s, n) for s in ("anna", "ben") for n in (4, 8)]
    runs.append(run_of(tmp_path, "carl4", "carl", 4, steps=(0, 50), status="running"))
    page = visit(write_page(tmp_path / "_all", table_of(runs), None))
    assert "5 of 5 runs, 4 of them in averages" in page.locator("#shown").inner_text()
    assert "2 subjects, 4 runs" in page.locator("#live").inner_text()
    page.locator("[data-filter=balanced] summary").click()
    page.locator("[data-filter=balanced] label", has_text="no").locator("input").check()
    assert "3 subjects, 5 runs" in page.locator("#live").inner_text()


def test_odd_names_stay_text(tmp_path: Path, visit: Visit, run_of: Make, table_of: Make) -> None:
    runs = [
        run_of(
            tmp_path,
            f"{EVIL.replace('/', '')} {n}",
            EVIL,
            n,
            method=EVIL * (n == 8),
            settings={"method.kind": EVIL * (n == 4)},
        )
        for n in (4, 8, 14)
    ]
    study = Study(EVIL, EVIL, EVIL, EVIL, (), ())
    table = table_of(runs, unreadable=((EVIL, EVIL),), pending=((EVIL, EVIL),))
    page = visit(write_page(tmp_path / "_odd", table, study))
    page.evaluate("lab.drawEverything()")
    page.locator("#colour").select_option("subject")
    page.locator("#run").select_option("1")
    assert EVIL in page.locator("h1").inner_text()
    assert page.evaluate("window.hit") is None
    assert page.evaluate("document.querySelectorAll('img[src=x]').length") == 0


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_fits_its_window(written: tuple[Path, Table], visit: Visit, width: int) -> None:
    page = visit(written[0])
    page.set_viewport_size({"width": width, "height": 800})
    page.evaluate("lab.drawEverything()")
    page.wait_for_function("() => document.documentElement.scrollWidth <= innerWidth", timeout=30_000)


def test_the_dark_scheme(written: tuple[Path, Table], visit: Visit) -> None:
    page = visit(written[0])
    page.emulate_media(color_scheme="dark")
    colours = page.evaluate(
        "lab.drawEverything() ?? [...new Set(document.getElementById('chart-counts-similarity').data.map((t) => t.line.color).filter(Boolean))]"
    )
    dark = json.loads(json.dumps(page.evaluate("Object.values(study.dark)")))
    assert set(colours) <= set(dark)


@pytest.mark.slow
def test_500_runs(tmp_path: Path, browser: Any, run_of: Make, table_of: Make) -> None:
    """Below 12 MB, and open within three seconds of the browser's own processor time."""
    rng = np.random.default_rng(0)
    first = run_of(tmp_path, "first", "anna", 4, prompts=48)
    runs = [
        run_of(tmp_path, f"subject={s}{k},n_images={n},method={method}", f"{s}{k}", n, method=method, prompts=48)
        for s in ("anna", "ben", "carla", "dan", "emma") for k in range(5) for n in (4, 8, 14, 20) for method in ("lora", "dreambooth", "lokr", "oft", "loha")
    ]  # fmt: skip
    assert len(runs) == 500
    sheet = tmp_path / "sheet.png"
    from PIL import Image

    from diffusion_lab.runs import samples

    noise = [rng.integers(0, 255, (16, 16, 3), dtype=np.uint8) for _ in first.prompts]
    samples.sheet(
        [np.asarray(Image.fromarray(one).resize((128, 128))) for one in noise], [""] * 48, title="x"
    ).save(sheet)
    for run in runs:
        (run.folder / "samples").mkdir(parents=True)
        for step in run.steps:
            (run.folder / "samples" / f"step-{step:06d}.png").hardlink_to(sheet)
    path = write_page(tmp_path / "_all", table_of(runs), None)
    assert path.stat().st_size < 12e6
    page = browser.new_page()
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.goto(path.as_uri(), wait_until="commit")
    page.wait_for_selector("html[data-ready=yes]", state="attached", timeout=60_000)
    spent = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
    page.close()
    print(f"{path.stat().st_size / 1e6:.1f} MB, {spent['TaskDuration']:.2f} s")
    assert 0 < spent["TaskDuration"] < 3
    shutil.rmtree(tmp_path / "_all")
