"""job=score: any folder of images against a subject's pictures, on the miniature's own encoders."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from diffusion_lab.config.jobs import Report, Score
from diffusion_lab.config.schema import Config, Data, Metrics, Model, Tracking
from diffusion_lab.jobs.score import check_images, run, scored_data, usual_side
from diffusion_lab.records import UserError
from diffusion_lab.report.score_page import print_table, read_images
from diffusion_lab.runs import scores
from diffusion_lab.runs.score_files import best_and_worst

NAMES = ["similarity", "aesthetics", "diversity", "clip_text", "memorisation", "kid_clip"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A subject's four pictures; and five images: two new ones of it, a copy, another person, no face at all."""
    from diffusion_lab.miniature.subjects import subject_portrait

    subject, images = tmp_path_factory.mktemp("anna"), tmp_path_factory.mktemp("images")
    for index in range(4):
        Image.fromarray(subject_portrait("anna", index).image).save(subject / f"{index}.png")
    (subject / "class_noun.txt").write_text("woman\n")
    told = PngImagePlugin.PngInfo()
    told.add_text("parameters", "a photo of customcls woman\nSteps: 4, Seed: 77")
    drawn = [("anna", 10), ("anna", 11), ("anna", 0), ("adam", 3)]
    for number, (name, index) in enumerate(drawn):
        picture = Image.fromarray(subject_portrait(name, index).image)
        picture.save(images / f"{number}.png", pnginfo=told if number < 2 else None)
    Image.new("RGB", (96, 64), "teal").save(images / "10.png")
    (images / "3.txt").write_text("a photo of a man")
    return subject, images


def config(folders: tuple[Path, Path], **metrics: Any) -> Config:
    subject, images = folders
    return Config(
        job=Score(images=str(images)),
        data=Data(source="folder", folder=str(subject), subject="anna", class_noun="woman"),
        metrics=Metrics(**{"names": NAMES, "batch_size": 3, **metrics}),
        model=Model(device="cpu"),
        tracker=Tracking(progress="off"),
    )


@pytest.fixture(scope="module")
def scored(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a job that the command line asked for; its cache of features lies beside it."""
    from diffusion_lab.__main__ import main

    folder = tmp_path_factory.mktemp("scored")
    subject, images = folders
    words = [
        "job=score",
        f"job.images={images}",
        "data=folder",
        f"data.folder={subject}",
        "data.subject=anna",
    ]
    words += [
        f"metrics.names=[{','.join(NAMES)}]",
        "metrics.batch_size=3",
        "model.device=cpu",
        "tracker.progress=off",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIFFUSION_LAB_CACHE", str(folder / "cache"))
        assert main([*words, f"hydra.run.dir={folder / 'first'}"]) == 0
    return folder / "first"


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())  # type: ignore[no-any-return]


def test_files_and_scores(scored: Path, folders: tuple[Path, Path]) -> None:
    told = result(scored)
    assert told["status"] == "completed"
    assert told["config"]["data"]["n_images"] == 4  # all there are, though the default asks for more
    found = told["evaluations"][0]["metrics"]
    assert list(found) == NAMES
    assert (found["similarity"]["n"], found["similarity"]["missing"]) == (4, 1)
    assert (found["clip_text"]["n"], found["clip_text"]["missing"]) == (3, 2)
    assert found["clip_text"]["note"] == "2 of 5 images have no prompt"
    assert found["kid_clip"]["mean"] is not None
    assert told["references"]["similarity"]["ceiling"]["n"] == 4
    assert "clip" in told["encoders"]

    rows = scores.read(scored / "scores.parquet")
    assert {row.slots["file"] for row in rows} == {"0.png", "1.png", "2.png", "3.png", "10.png"}
    assert {row.seed for row in rows if row.slots["file"] == "1.png"} == {77}
    by_file = {(row.slots["file"], row.metric): row.value for row in rows}
    with (scored / "scores.csv").open(newline="") as lines:
        table = list(csv.DictReader(lines))
    assert [row["file"] for row in table] == ["0.png", "1.png", "2.png", "3.png", "10.png"]
    assert [row["prompt"] for row in table] == ["a photo of customcls woman"] * 2 + [
        "",
        "a photo of a man",
        "",
    ]
    for row in table:
        for metric in NAMES[:-1]:
            value = by_file[row["file"], metric]
            assert row[metric] == ("" if value is None else f"{value:.6g}")
    numbers = {row["file"]: {m: float(row[m]) for m in NAMES[:-1] if row[m]} for row in table}
    assert numbers["2.png"]["memorisation"] == pytest.approx(1, abs=1e-4)  # the planted copy
    assert numbers["0.png"]["similarity"] > numbers["3.png"]["similarity"]
    assert "similarity" not in numbers["10.png"]


def test_the_same_numbers_as_an_evaluation(scored: Path, folders: tuple[Path, Path]) -> None:
    """Against the encoders and metrics themselves, all images at once and without a cache."""
    from diffusion_lab.data.pictures import read_folder
    from diffusion_lab.evaluation.encoders.bank import EncoderBank
    from diffusion_lab.evaluation.metrics import METRICS
    from diffusion_lab.records import References

    bank = EncoderBank(Metrics(names=NAMES), "cpu")
    pictures, images = (read_folder(folder) for folder in folders)
    needs = {"face", "clip_image"}
    train = bank.features([picture.pixels for picture in pictures], texts=None, needs=needs)
    seen = bank.features(
        [image.pixels for image in images], texts=["a photo of a woman"] * 5, needs=needs | {"clip_text"}
    )
    references = References(train=train, heldout=None, impostors=None)
    table = read_images(scored)
    for metric in ("similarity", "memorisation", "clip_text"):
        values = np.asarray(METRICS[metric](seen, references))  # type: ignore[operator]
        for value, row in list(zip(values, table, strict=True))[: 2 if metric == "clip_text" else 5]:
            assert (
                row[metric] == "" if np.isnan(value) else float(row[metric]) == pytest.approx(value, abs=1e-4)
            )


def test_a_second_scoring_encodes_nothing(
    scored: Path, folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusion_lab.evaluation.encoders.bank import EncoderBank
    from diffusion_lab.evaluation.encoders.miniature import MiniatureClip

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("encoded again")

    monkeypatch.setenv("DIFFUSION_LAB_CACHE", str(scored.parent / "cache"))
    monkeypatch.setattr(EncoderBank, "_faces", forbidden)
    monkeypatch.setattr(MiniatureClip, "embed_images", forbidden)
    monkeypatch.setattr(MiniatureClip, "embed_texts", forbidden)
    run(config(folders), tmp_path / "second")
    assert (tmp_path / "second" / "scores.parquet").read_bytes() == (scored / "scores.parquet").read_bytes()
    first, second = result(scored), result(tmp_path / "second")
    assert first["evaluations"][0]["metrics"] == second["evaluations"][0]["metrics"]
    assert first["references"] == second["references"]


def test_page_and_table(scored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from diffusion_lab.jobs.report import run as report
    from diffusion_lab.runs.reading import find_runs, is_run

    page = (scored / "report.html").read_text()
    assert page.count("data:image/webp") >= 5
    assert all(f"{name}.png" in page for name in (0, 1, 2, 3, 10))
    assert "Best and worst" in page
    assert "2 of 5 images have no prompt" in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert not is_run(scored)  # no training to compare with others
    assert find_runs(scored.parent) == []
    (scored / "report.html").unlink()
    report(Config(job=Report(runs=str(scored))), Path())
    assert (scored / "report.html").read_text() == page
    capsys.readouterr()
    print_table(scored)
    printed = capsys.readouterr().out
    assert all(name in printed for name in NAMES)
    assert "clip_text: 2 of 5 images have no prompt" in printed
    similarity = result(scored)["evaluations"][0]["metrics"]["similarity"]
    assert similarity["missing"] == 1
    assert re.search(rf"over all +{similarity['penalised']:.3f} ", printed)
    assert "similarity: a face in 80 % of the images; each one without counts as" in printed
    assert "a face in 80 %" in page
    assert f"{similarity['penalised']:.3f}" in page


def test_an_image_that_cannot_be_read(folders: tuple[Path, Path], tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number in (0, 1):
        (images / f"{number}.png").write_bytes((folders[1] / f"{number}.png").read_bytes())
    (images / "2.png").write_bytes(b"no picture")
    asked = config((folders[0], images), names=["clip_image"])
    with pytest.raises(UserError, match=r"2\.png.*data\.on_corrupt=skip"):
        run(asked, tmp_path / "error")
    assert result(tmp_path / "error")["status"] == "failed"
    asked.data.on_corrupt = "skip"
    run(asked, tmp_path / "skip")
    assert [row["file"] for row in read_images(tmp_path / "skip")] == ["0.png", "1.png"]


def test_checks_before_anything_is_loaded(folders: tuple[Path, Path], tmp_path: Path) -> None:
    subject, images = folders
    rows, warnings = check_images(config(folders))
    assert ("against", "anna, a woman, 4 pictures") in rows
    assert any("metrics=full" in warning for warning in warnings)
    assert any("themselves" in warning for warning in check_images(config((subject, subject)))[1])
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "0.png").write_bytes((images / "0.png").read_bytes())
    for folder, names, message in (
        (tmp_path / "nowhere", NAMES, r"job\.images: .* does not exist"),
        (tmp_path, NAMES, r"job\.images: no pictures in .*did you mean one of its folders: alone"),
        (alone, NAMES, r"job\.images: diversity compares images with each other"),
        (images, ["class_drift"], r"metrics\.names: class_drift"),
        (images, ["prompt_similarity"], r"metrics\.names: prompt_similarity .*metadata\.csv"),
    ):
        with pytest.raises(UserError, match=message):
            check_images(config((subject, folder), names=names))


@pytest.mark.parametrize("key", ["job.images", "images"])
def test_errors_come_before_torch(key: str, tmp_path: Path) -> None:
    program = (
        "import sys; from diffusion_lab.__main__ import main\n"
        f"status = main(['job=score', '{key}={tmp_path / 'nowhere'}', 'hydra.run.dir={tmp_path / 'out'}'])\n"
        "print(status, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "False"]
    assert "job.images" in done.stderr
    assert not (tmp_path / "out").exists()


def test_how_many_pictures_are_compared_with(folders: tuple[Path, Path]) -> None:
    data = config(folders).data
    assert (scored_data(data).n_images, scored_data(data).n_heldout) == (4, 0)
    data.n_images = 3
    assert scored_data(data) is data  # 3 to compare with and 1 held out, as a run would have it
    data.n_images, data.n_heldout = 14, 1
    assert (scored_data(data).n_images, scored_data(data).n_heldout) == (3, 1)
    assert scored_data(Data()) == Data()


def test_small_parts(folders: tuple[Path, Path]) -> None:
    assert usual_side(sorted(folders[1].glob("*.png"))) == 64
    values = [0.5, None, 0.9, 0.1]
    assert best_and_worst(values, True) == [2, 0, 3]
    assert best_and_worst(values, False) == [3, 0, 2]
    many = best_and_worst([float(n) for n in range(100)], True)
    assert many == [99, 98, 97, 96, 95, 94, 5, 4, 3, 2, 1, 0]


def test_a_thing_without_a_face_says_why_it_has_no_likeness(tmp_path: Path) -> None:
    """And the page leaves out what nobody has: columns, tables and the order of a yes or no."""
    subject, images = tmp_path / "cup", tmp_path / "images"
    for folder, count in ((subject, 3), (images, 4)):
        folder.mkdir()
        for number in range(count):
            noise = np.random.default_rng([count, number]).integers(0, 256, (48, 48, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / f"{number}{'-long' * 30}.png")
    names = ["similarity", "similarity_heldout", "face_rate", "clip_image"]
    asked = config((subject, images), names=names)
    asked.data.subject, asked.data.class_noun = "cup", "cup"
    run(asked, tmp_path / "scored")
    found = result(tmp_path / "scored")["evaluations"][0]["metrics"]
    assert "no face found in the 3 pictures it is compared with" in found["similarity"]["note"]
    assert "data.n_heldout" in found["similarity_heldout"]["note"]
    page = (tmp_path / "scored" / "report.html").read_text()
    assert "no face found in the 3 pictures" in page
    assert "Impostor" not in page
    assert '<th scope="row">similarity</th>' not in page
    assert "<h3>Images with a face</h3>" not in page
    assert "<h3>Similarity of the whole image</h3>" in page
    asked.data.n_images, asked.data.n_heldout = 2, 1
    run(asked, tmp_path / "again")
    held = result(tmp_path / "again")["evaluations"][0]["metrics"]["similarity_heldout"]
    assert "no face found in the 1 held-out pictures" in held["note"]


def test_people_in_the_pictures_and_none_in_the_images(folders: tuple[Path, Path], tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for number, colour in enumerate(("teal", "navy")):
        Image.new("RGB", (64, 64), colour).save(images / f"{number}.png")
    run(config((folders[0], images), names=["similarity"]), tmp_path / "scored")
    found = result(tmp_path / "scored")["evaluations"][0]["metrics"]["similarity"]
    assert (found["mean"], found["penalised"]) == (None, 0.0)
    assert found["note"] == "no face found in any of the images"
