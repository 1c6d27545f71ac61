"""The whole way: pictures out of the drawn world in AVA's format, a head, its page, and the metric that takes it."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from diffusion_lab.__main__ import main
from diffusion_lab.config.schema import Metrics
from diffusion_lab.evaluation.encoders.bank import EncoderBank
from diffusion_lab.miniature import ava, world
from diffusion_lab.records import UserError

SHORT = ["job=train_aesthetics", "job.epochs=3", "job.hidden=[8]", "tracker.progress=off"]


@pytest.fixture(scope="module")
def small_ava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ava.write_ava(tmp_path_factory.mktemp("ava"), pictures=40)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFUSION_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def command(folder: Path, *more: str) -> list[str]:
    return [
        *SHORT,
        f"job.images={folder / 'images'}",
        f"job.ratings={folder / 'AVA.txt'}",
        "job.output=out",
        *more,
    ]


def test_from_votes_to_a_head_that_the_metric_takes(
    small_ava: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = small_ava / "images" / "7.jpg"
    broken.write_text("no picture")
    text = (small_ava / "AVA.txt").read_text("utf-8")
    table = tmp_path / "AVA.txt"
    table.write_text(f"{text}41 7 {'1 ' * 10}0 0 0\n42 8 {'1 ' * 10}0 0 0\n", "utf-8")
    with caplog.at_level(logging.INFO):
        assert main(command(small_ava, f"job.ratings={table}")) == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text("utf-8"))
    assert (result["pictures"], result["absent"], result["unreadable"]) == (40, 1, 1)
    assert set(result["test"]) == {"none", "density"}
    assert "7.jpg" in caplog.text
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "balanced by density" in page
    assert "not balanced" in page
    broken.unlink()

    bank = EncoderBank(Metrics(aesthetics_weights=str(tmp_path / "out" / "aesthetics_head.safetensors")))
    picture = world.draw_portrait(5).image
    found = bank.features([picture], texts=None, needs={"aesthetics"}).aesthetics
    assert found is not None
    assert 0 <= float(found[0]) <= 10


def test_a_second_training_encodes_nothing(small_ava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(command(small_ava)) == 0

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("encoded again")

    monkeypatch.setattr(EncoderBank, "features", refuse)
    assert main(command(small_ava, "job.balance=bins")) == 0


def test_what_is_missing_is_named_before_anything_is_loaded(
    small_ava: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["job=train_aesthetics"]) == 2
    assert "job.images is missing" in capsys.readouterr().err
    assert main(command(tmp_path)) == 2
    assert "there is no such folder" in capsys.readouterr().err
    assert main(command(small_ava, "job.ratings=nothing.txt")) == 2
    assert "nothing.txt: there is no such file" in capsys.readouterr().err
    assert main(command(small_ava, "job.balance=uniform")) == 2
    assert "job.balance=uniform: must be one of none, bins, density" in capsys.readouterr().err


def test_pictures_that_cannot_be_read_are_an_error(tmp_path: Path) -> None:
    from diffusion_lab.evaluation.encoders.cache import FeatureCache
    from diffusion_lab.recipes.aesthetics.embed import embed

    (tmp_path / "a.jpg").write_text("no picture")
    with pytest.raises(UserError, match="none of the 1 rated pictures"):
        embed([tmp_path / "a.jpg"], EncoderBank(Metrics()), FeatureCache(tmp_path / "cache.sqlite"))


def test_the_small_ava_is_bell_shaped_and_true(tmp_path: Path) -> None:
    merits = np.array([ava.merit(ava.FIRST + k) for k in range(3000)])
    portrait = world.draw_portrait(ava.FIRST + 4)
    assert merits[4] == portrait.rating
    picked = merits[ava.bell_shaped(merits, 500, np.random.default_rng(0))]
    assert abs(picked.mean() - ava.MEAN) < 0.25
    assert 0.6 < picked.std() < 1.1 < merits.std()
