"""The files of a study's page: sections, tables, static charts, small images; job=study."""

from __future__ import annotations

import base64
import csv
import dataclasses
import importlib.util
import io
import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from diffusion_lab.report.study import resampling, rows, thumbnails
from diffusion_lab.report.study.files import csv_text, material_of, stop, write_files
from diffusion_lab.report.study.keys import keys_of, split_of
from diffusion_lab.report.study.page import sections, write_page
from diffusion_lab.studies.definition import Study

Make = Callable[..., Any]


def study_of(*charts: str) -> Study:
    return Study("asked", "What does it do?", "an hour", "a lot", charts, ())


def test_sections_are_those_named_or_those_with_data(tmp_path: Path, run_of: Make, table_of: Make) -> None:
    one = table_of([run_of(tmp_path, "a", "anna", 4)])
    assert sections(one, None) == ["dynamics", "stop"]
    counted = table_of([run_of(tmp_path, f"{n}", "anna", n) for n in (4, 8)])
    assert sections(counted, None) == ["dynamics", "stop", "counts", "optimum"]
    rates = [
        run_of(tmp_path, f"{r}", "anna", 4, settings={"method.learning_rate": r, "method.rank": k})
        for r, k in ((1e-4, 4), (1e-3, 8))
    ]
    assert sections(table_of(rates), study_of("stop", "words")) == ["stop", "values"]
    assert sections(table_of([]), None) == []


def test_keys_are_what_tells_runs_apart(tmp_path: Path, run_of: Make) -> None:
    runs = [
        run_of(tmp_path, f"{m}{s}{seed}", s, 4, method=m, seed=seed, settings={"method.rate": 1 if m == "lora" else 2, "memory.cache": seed})
        for m in ("lora", "dreambooth") for s in ("anna", "ben") for seed in (0, 1)
    ]  # fmt: skip
    keys = keys_of(runs)
    assert [k.name for k in keys if k.extra] == []  # the rate follows from the method; memory has no effect
    assert split_of(keys) == "method"
    more = [*runs, run_of(tmp_path, "x", "anna", 4, settings={"method.rate": 3})]
    keys = keys_of(more)
    assert [k.label for k in keys if k.extra] == ["rate"]
    assert split_of(keys) == "settings"
    assert next(k for k in keys if k.name == "settings").values[-1] == "lora, rate 3"


def test_tables_and_charts_lie_beside_the_page(tmp_path: Path, counts: Make) -> None:
    table = counts(tmp_path)
    page = write_page(tmp_path / "_all", table, None)
    found = {p.relative_to(page.parent).as_posix(): p.read_bytes() for p in page.parent.glob("*/*.*")}
    assert set(found) == {
        "tables/dynamics.csv", "tables/stop.csv", "tables/slopes.csv", "tables/counts.csv", "tables/optimum.csv",
        "charts/dynamics.svg", "charts/stop.svg", "charts/counts.svg", "charts/optimum.svg",
    }  # fmt: skip
    for name, content in found.items():
        if name.endswith(".svg"):
            text = "".join(ET.fromstring(content).itertext())
            assert "training photos" in text or "optimizer steps" in text
            assert b"<dc:date>" not in content
    table_of_stops = list(csv.DictReader(io.StringIO(found["tables/stop.csv"].decode())))
    assert {row["by"] for row in table_of_stops} == {"women", "men"}
    assert {row["n"] for row in table_of_stops} == {"4", "8", "14", "20"}
    assert all(float(r["low"]) < float(r["value"]) < float(r["high"]) for r in table_of_stops if r["low"])
    assert all(f'href="{name}"' in page.read_text() for name in found)
    (page.parent / "charts" / "old.svg").write_text("")
    write_page(tmp_path / "_all", table, study_of("stop"))
    left = {p.relative_to(page.parent).as_posix(): p.read_bytes() for p in page.parent.glob("*/*.*")}
    assert left == {name: content for name, content in found.items() if "stop" in name or "slopes" in name}


def test_a_mean_over_subjects_by_hand(tmp_path: Path, run_of: Make, table_of: Make) -> None:
    """Without scores by prompt, the usual t interval of the subjects' means over seeds."""
    runs = [
        dataclasses.replace(run_of(tmp_path, f"{s}{k}", s, 8, seed=k), by_prompt={})
        for s in ("anna", "bea", "carla", "dan")
        for k in (0, 1)
    ]
    found = rows.curve(rows.measured(table_of(runs)), "diversity")
    means = [
        np.mean([r.values["diversity"][3] for r in runs if r.subject == s])
        for s in ("anna", "bea", "carla", "dan")
    ]
    low, high = stats.t.interval(0.95, 3, np.mean(means), stats.sem(means))
    assert found[3]["value"] == pytest.approx(np.mean(means))
    assert [found[3]["low"], found[3]["high"]] == pytest.approx([low, high])
    assert (found[3]["subjects"], found[3]["runs"]) == (4, 8)


def test_the_slope_is_that_of_least_squares(tmp_path: Path, counts: Make) -> None:
    made = stop(material_of(counts(tmp_path)))
    measured = rows.measured(counts(tmp_path))
    for row in made.tables["slopes"]:
        some = [one for one in measured if one.keys["gender"] == row["by"]]
        own = []
        for subject in {one.run.subject for one in some}:
            n = np.array([one.run.n_images for one in some if one.run.subject == subject], float)
            steps = np.array([one.stop_steps()[0] for one in some if one.run.subject == subject])
            own.append(np.linalg.lstsq(n[:, None], steps, rcond=None)[0][0])
        assert row["slope"] == pytest.approx(np.mean(own))


def test_the_optimum_is_the_mean_at_the_stops(tmp_path: Path, counts: Make) -> None:
    measured = rows.measured(counts(tmp_path))
    for row in rows.optimum(measured, "similarity", ""):
        some = [one for one in measured if one.run.n_images == row["n"]]
        at = [one.run.values["similarity"][one.run.steps.index(int(one.stop_steps()[0]))] for one in some]
        assert row["value"] == pytest.approx(np.mean(at))
        assert float(row["low"] or 0) < float(row["value"] or 0) < float(row["high"] or 0)
        assert row["subjects"] == 10


def test_costs_and_the_plane(tmp_path: Path, run_of: Make, table_of: Make) -> None:
    runs = [
        dataclasses.replace(
            run_of(tmp_path, f"{s}{m}", s, 8, method=m), costs={"training_seconds": 50.0 + 3 * i + j}
        )
        for i, s in enumerate(("anna", "bea", "carla", "dan"))
        for j, m in enumerate(("lora", "dreambooth"))
    ]
    measured = rows.measured(table_of(runs))
    [lora] = [row for row in rows.costs(measured, "method")["training_seconds"] if row["by"] == "lora"]
    seconds = [50.0, 53.0, 56.0, 59.0]
    low, high = stats.t.interval(0.95, 3, np.mean(seconds), stats.sem(seconds))
    assert [lora["value"], lora["low"], lora["high"]] == pytest.approx([np.mean(seconds), low, high])
    points = rows.plane(measured, "diversity", "similarity", "method")
    assert [row["by"] for row in points if row["at"] == "stop"] == ["dreambooth", "lora"]
    assert len(points) == 2 * (1 + len(runs[0].steps))
    at_start = next(row for row in points if row["at"] == 0)
    own = [run.values["similarity"][0] for run in runs if run.method == at_start["by"]]
    assert at_start["y"] == pytest.approx(np.mean(own))


def test_charts_without_a_value_are_left_out(tmp_path: Path, run_of: Make, table_of: Make) -> None:
    runs = [
        dataclasses.replace(run_of(tmp_path, m, "anna", 8, method=m), costs={})
        for m in ("lora", "dreambooth")
    ]
    write_files(tmp_path / "page", table_of(runs), ["methods"])
    assert not (tmp_path / "page" / "charts" / "methods_costs.svg").exists()


def test_a_slope_is_no_surer_than_the_distance_of_the_evaluations(
    tmp_path: Path, run_of: Make, table_of: Make
) -> None:
    """Every subject's best step is the same evaluation, so nothing else varies: 100 / sqrt(12) / n."""
    runs = [
        dataclasses.replace(run_of(tmp_path, s, s, 8, steps=(0, 100, 200, 300)), by_prompt={}, values={"similarity": np.array([0.1, 0.2, 0.5, 0.3])})
        for s in ("anna", "bea", "carla", "dan")
    ]  # fmt: skip
    [row] = rows.slopes(rows.measured(table_of(runs)), "")
    half = stats.t.ppf(0.975, 3) * 100 / np.sqrt(12) / 8
    assert [row["slope"], row["low"], row["high"]] == pytest.approx([25, 25 - half, 25 + half])


def test_steps_that_few_runs_have_are_left_out(tmp_path: Path, run_of: Make, table_of: Make) -> None:
    runs = [run_of(tmp_path, f"{i}", f"s{i}", 4, steps=(0, 50, 100) if i else (0, 50)) for i in range(4)]
    runs += [run_of(tmp_path, "long", "s9", 4, steps=(0, 50, 100, 150))]
    found = rows.curve(rows.measured(table_of(runs)), "diversity")
    assert [(row["step"], row["runs"]) for row in found] == [(0, 5), (50, 5), (100, 4)]


def test_changes_in_one_byte(tmp_path: Path, run_of: Make) -> None:
    run = run_of(tmp_path, "a", "anna", 4, prompts=48)
    noise = resampling.noise_of(run, 400)
    weights = np.random.default_rng(0).multinomial(48, np.full(48, 1 / 48), size=400) / 48
    deltas = np.frombuffer(base64.b64decode(noise.text()), np.int8).reshape(
        len(noise.scales), 400, len(run.steps)
    )
    for (name, scale), some in zip(noise.scales.items(), deltas, strict=True):
        exact = weights @ run.by_prompt[name].T.astype(float) - run.values[name]
        assert np.abs(some * scale - exact).max() <= scale / 2 + 1e-6
        assert (some * scale).std() == pytest.approx(exact.std(), rel=0.01)


def test_student_between_the_entries(tmp_path: Path) -> None:
    table = resampling.student_table()
    for degrees in (1.0, 1.3, 2.7, 9.0, 14.6, 47.0, 3000.0):
        at = (len(table) - 1) / degrees
        below = min(int(at), len(table) - 2)
        between = table[below] + (at - below) * (table[below + 1] - table[below])
        assert between == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-4)


def test_fewer_replicates_and_smaller_images_for_more_runs(tmp_path: Path, run_of: Make) -> None:
    run = run_of(tmp_path, "a", "anna", 4)
    assert resampling.replicates_for([run]) == 400
    many = resampling.replicates_for([run] * 1000)
    assert resampling.FEWEST < many < 100
    assert many * 1000 * len(run.steps) * len(run.by_prompt) <= resampling.BUDGET
    layouts = [thumbnails.layout_for([run] * count) for count in (1, 40, 150, 500)]
    sizes = [
        one.images * one.side**2 * one.steps * count
        for one, count in zip(layouts, (1, 40, 150, 500), strict=True)
    ]
    assert layouts[0].images > layouts[-1].images
    assert layouts[0].steps == len(run.steps) > layouts[-1].steps >= 2
    assert max(sizes[1:]) < 4 * min(sizes[1:])


def test_small_images_are_those_of_the_sheet(tmp_path: Path, run_of: Make) -> None:
    run = run_of(tmp_path, "a", "anna", 9, sheets=True)
    cache = tmp_path / "thumbnails"
    layout, found = thumbnails.thumbnails([run], cache)
    one = found[run.id]
    assert one.steps == run.steps
    image = Image.open(io.BytesIO(base64.b64decode(one.source.partition(",")[2]))).convert("RGB")
    assert image.size == (layout.images * layout.side, len(run.steps) * layout.side)
    for row in (0, 3, 8):
        for column in range(layout.images):
            pixel = image.getpixel(
                (column * layout.side + layout.side // 2, row * layout.side + layout.side // 2)
            )
            assert np.abs(np.array(pixel) - [40 * column % 256, 25 * row % 256, 81]).max() < 12
    files = {path.name: path.stat().st_mtime_ns for path in cache.iterdir()}
    (cache / "old.webp").write_bytes(b"")
    thumbnails.thumbnails([run], cache)
    assert {path.name: path.stat().st_mtime_ns for path in cache.iterdir()} == files  # read, not made again
    (run.folder / "samples" / "step-000100.png").write_bytes(b"damaged")
    _, found = thumbnails.thumbnails([run], cache)
    assert found[run.id].steps == run.steps  # its row is white
    for path in (run.folder / "samples").iterdir():
        path.unlink()
    assert thumbnails.thumbnails([run], cache)[1] == {}
    assert not list(cache.iterdir())


def test_numbers_in_tables() -> None:
    assert (
        csv_text([{"by": 'a "b", c', "value": 0.123456789, "low": None, "n": 4}])
        == 'by,value,low,n\r\n"a ""b"", c",0.123457,,4\r\n'
    )
    assert csv_text([]) == ""


def test_files_of_nothing(tmp_path: Path, table_of: Make) -> None:
    write_files(tmp_path, table_of([]), [])
    assert not list(tmp_path.iterdir())


# --- job=study --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def write_run() -> Make:
    """The writer of run folders of tests/analysis."""
    path = Path(__file__).parents[2] / "analysis" / "conftest.py"
    spec = importlib.util.spec_from_file_location("run_folders", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Make = module.write
    return found


def test_the_job_writes_the_pages(
    tmp_path: Path, write_run: Make, capsys: pytest.CaptureFixture[str], run_main: Make
) -> None:
    from diffusion_lab.studies.definition import Point
    from diffusion_lab.studies.record import write_study
    from diffusion_lab.studies.table import read_table

    runs = tmp_path / "runs"
    for n in (4, 8, 14):
        write_run(runs / f"n={n}", config={"data.n_images": n}, seed=n)
    assert run_main("job=study", f"job.runs={runs}") == 0
    assert capsys.readouterr().out.split() == [str(runs / f"_{n}" / "index.html") for n in ("all", "claims")]
    ids = {run.n_images: run.id for run in read_table(runs).runs}
    points = tuple(Point((f"data.n_images={n}",), ids.get(n, "absent"), f"n={n}") for n in (4, 8, 20))
    for name in ("counts", "rules"):
        write_study(runs, Study(name, "How many?", "an hour", "more", ("optimum",), points))
    assert run_main("job=study", f"job.runs={runs}") == 0
    assert capsys.readouterr().out.split() == [
        *(str(runs / f"_{n}" / "index.html") for n in ("counts", "rules", "claims")), str(runs / "index.html")
    ]  # fmt: skip
    text = (runs / "_counts" / "index.html").read_text()
    assert "How many?" in text
    assert 'id="optimum"' in text
    assert 'id="dynamics"' not in text
    data = json.loads(text.partition('id="data">')[2].partition("</script>")[0])
    assert [run["n"] for run in data["runs"]] == [4, 8]
    assert "1 not begun" in text
    before = text.replace("_counts", "")
    assert run_main("job=study", f"job.runs={runs}", "job.study=counts") == 0
    assert (runs / "_counts" / "index.html").read_text().replace("_counts", "") == before
    assert capsys.readouterr().out.split() == [str(runs / "_counts" / "index.html"), str(runs / "index.html")]
    index = (runs / "index.html").read_text()
    answer, *_ = json.loads((runs / "_counts" / "answer.json").read_text())["answer"]
    assert all(
        part in index for part in (answer, "2 done", "1 to come", "_rules/index.html", "_claims/index.html")
    )
    assert run_main("job=study", f"job.runs={runs}", "job.study=claims") == 0
    assert capsys.readouterr().out.split() == [str(runs / "_claims" / "index.html"), str(runs / "index.html")]


def test_the_job_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], run_main: Make
) -> None:
    assert run_main("job=study") == 2
    assert "job.runs is missing" in capsys.readouterr().err
    assert run_main("job=study", f"job.runs={tmp_path / 'none'}") == 2
    assert "there is no such folder" in capsys.readouterr().err
    assert run_main("job=study", f"job.runs={tmp_path}") == 2
    assert "there is no run in" in capsys.readouterr().err
    assert run_main("job=study", f"job.runs={tmp_path}", "job.study=counts") == 2
    assert "--sweep counts" in capsys.readouterr().err
