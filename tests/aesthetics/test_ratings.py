"""Rated pictures as they are published, and balanced."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from diffusion_lab.recipes.aesthetics.balance import MOST, weights
from diffusion_lab.recipes.aesthetics.ratings import read_ratings
from diffusion_lab.records import UserError

# The first line of the published AVA.txt.
FIRST = "1 953619 0 1 5 17 38 36 15 6 5 1 1 22 1396"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("953619.jpg", "a.png"):
        (folder / name).write_bytes(b"x")
    return folder


def table(tmp_path: Path, text: str, name: str = "AVA.txt") -> Path:
    path = tmp_path / name
    path.write_text(text, "utf-8")
    return path


def test_ava_as_published(tmp_path: Path, images: Path) -> None:
    found, absent = read_ratings(table(tmp_path, f"{FIRST}\n2 17 1 0 0 0 0 0 0 0 0 1 0 0 0\n"), images)
    votes = np.array([0, 1, 5, 17, 38, 36, 15, 6, 5, 1])
    assert [one.path.name for one in found] == ["953619.jpg"]
    assert found[0].rating == pytest.approx(np.repeat(np.arange(1, 11), votes).mean())
    assert absent == 1


def test_csv(tmp_path: Path, images: Path) -> None:
    found, absent = read_ratings(table(tmp_path, "\ufeffrating,image\n7.5,a.png\n", "r.csv"), images)
    assert [(one.path.name, one.rating) for one in found] == [("a.png", 7.5)]
    assert absent == 0


@pytest.mark.parametrize(
    ("text", "name", "told"),
    [
        ("1 2 3\n", "AVA.txt", "line 1 has 3 numbers"),
        ("a,b\n", "AVA.txt", "not of whole numbers"),
        (FIRST.replace(" 0 1 5 17 38 36 15 6 5 1 ", " 0 0 0 0 0 0 0 0 0 0 "), "AVA.txt", "no votes"),
        ("picture,rating\n", "r.csv", "no column image"),
        ("image,rating\na.png,good\n", "r.csv", "line 2: rating 'good' is no number"),
        ("image,rating\na.png,70\n", "r.csv", "not from 0 to 10"),
        ("image,rating\na.png,nan\n", "r.csv", "not from 0 to 10"),
        ("image,rating\n../AVA.txt,5\n", "r.csv", "lies outside"),
        ("image,rating\nb.png,5\n", "r.csv", "none of the 1 pictures"),
        ("", "AVA.txt", "none of the 0 pictures"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, images: Path, text: str, name: str, told: str) -> None:
    (tmp_path / "AVA.txt").write_text("")
    with pytest.raises(UserError, match=rf"job\.(ratings|images).*{told}"):
        read_ratings(table(tmp_path, text, name), images)


def test_exponent_one_makes_ratings_uniform() -> None:
    ratings = np.random.default_rng(0).normal(5.4, 0.75, 20_000).clip(2.6, 8.2)
    for balance in ("bins", "density"):
        found = weights(ratings, balance, 1.0)
        assert found.mean() == pytest.approx(1)
        share = np.histogram(ratings, np.arange(3.5, 7.6, 0.5), weights=found)[0]
        assert share.max() / share.min() < 1.15, balance
    assert (weights(ratings, "none") == 1).all()
    assert (weights(ratings, "density", 0.0) == 1).all()


def test_density_is_scipys_and_rare_ratings_are_capped() -> None:
    ratings = np.random.default_rng(1).normal(5, 1, 500)
    found = weights(ratings, "density", 0.5)
    wanted = stats.gaussian_kde(ratings)(ratings) ** -0.5
    np.testing.assert_allclose(found, wanted / wanted.mean(), rtol=2e-3)
    alone = weights(np.append(np.full(5000, 5.0), 9.9), "bins", 1.0)
    assert alone.max() / np.median(alone) == pytest.approx(MOST)


def test_half_the_exponent_is_the_root() -> None:
    ratings = np.array([1.1] + [5.2] * 9)
    assert weights(ratings, "bins", 1.0)[0] / weights(ratings, "bins", 1.0)[1] == pytest.approx(9)
    assert weights(ratings, "bins", 0.5)[0] / weights(ratings, "bins", 0.5)[1] == pytest.approx(3)
