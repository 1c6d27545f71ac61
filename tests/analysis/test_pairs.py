"""Errors of means over pairs and of whole sets: against their definitions, and against drawing anew."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from scipy import stats

from diffusion_lab.analysis.pairs import LEAST, jackknife_error, pair_error, prompts_of


def cosines(n: int, d: int, seed: int, about: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    x[:, 0] += about
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(x @ x.T)


def mean_of_pairs(kernel: np.ndarray) -> float:
    n = len(kernel)
    return float((kernel.sum() - np.trace(kernel)) / (n * (n - 1)))


def by_definition(kernel: np.ndarray) -> tuple[float, float]:
    """The unbiased variance over all quadruples, and the jackknife's by leaving each image out."""
    n = len(kernel)
    quadruples = [kernel[i, j] * kernel[k, m] for i, j, k, m in permutations(range(n), 4)]
    unbiased = mean_of_pairs(kernel) ** 2 - float(np.mean(quadruples))
    left = [mean_of_pairs(np.delete(np.delete(kernel, i, 0), i, 1)) for i in range(n)]
    return unbiased, (n - 1) / n * float(((np.array(left) - np.mean(left)) ** 2).sum())


@pytest.mark.parametrize("about", [0.0, 2.0])
@pytest.mark.parametrize("seed", range(4))
def test_variance_is_the_definitions(seed: int, about: float) -> None:
    kernel = cosines(7, 5, seed, about)
    unbiased, jackknife = by_definition(kernel)
    error, groups = pair_error(kernel, np.arange(7))
    assert groups == 7
    assert error == pytest.approx(np.clip(unbiased, LEAST * jackknife, jackknife) ** 0.5)


def test_copies_of_images_within_prompts_add_nothing() -> None:
    """Three copies of every image: the number changes, since copies meet each other, but not how sure it is."""
    kernel = cosines(12, 6, 1, 1.0)
    codes = np.repeat(np.arange(12), 3)
    many = np.repeat(np.repeat(kernel, 3, 0), 3, 1)
    error, groups = pair_error(many, codes)
    single, _ = pair_error(kernel, np.arange(12))
    assert groups == 12
    assert error is not None
    assert single is not None
    assert error == pytest.approx(
        single * (36 - 3) / (36 - 1), rel=1e-6
    )  # pairs of copies are 2 of 35 and constant


def test_the_diagonal_and_a_constant_do_not_matter() -> None:
    kernel = cosines(8, 4, 2)
    expected = pair_error(kernel, np.arange(8))[0]
    other = kernel + 5.0
    np.fill_diagonal(other, 1e6)
    assert pair_error(other, np.arange(8))[0] == pytest.approx(expected)


@pytest.mark.parametrize(("n", "about"), [(12, 0.0), (12, 1.5), (40, 0.0), (40, 1.5)])
def test_errors_are_the_spread_of_new_draws(n: int, about: float) -> None:
    draws = [mean_of_pairs(cosines(n, 6, 100 + s, about)) for s in range(600)]
    said = np.mean([pair_error(cosines(n, 6, 5000 + s, about), np.arange(n))[0] for s in range(60)])  # type: ignore[misc]
    assert 0.9 < said / np.std(draws) < 1.3


def test_two_prompts_have_a_single_pair() -> None:
    assert pair_error(cosines(8, 3, 0), np.repeat([0, 1], 4)) == (None, 2)
    assert pair_error(cosines(2, 3, 0), np.arange(2)) == (None, 2)


def test_jackknife_of_a_mean_is_the_usual_error() -> None:
    x = np.random.default_rng(2).normal(size=15)
    error, groups = jackknife_error(lambda rows: float(x[rows].mean()), np.arange(15))
    assert error == pytest.approx(stats.sem(x))
    assert groups == 15
    again, _ = jackknife_error(lambda rows: float(x[rows].mean()), np.arange(15), second_order_from=8)
    assert again == pytest.approx(error)  # a mean has no part of second order


def test_jackknife_by_groups_leaves_whole_prompts_out() -> None:
    x, ids = np.random.default_rng(3).normal(size=300), np.repeat(np.arange(100), 3)
    seen: list[set[int]] = []

    def mean(rows: np.ndarray) -> float:
        seen.append({int(ids[row]) for row in rows})
        return float(x[rows].mean())

    error, groups = jackknife_error(mean, ids)
    assert groups == len(seen) == 20
    assert all(len(prompts) == 95 for prompts in seen)
    assert error == pytest.approx(stats.sem(x.reshape(100, 3).mean(1)), rel=0.5)
    assert jackknife_error(mean, np.array([0, 0, 1])) == (None, 2)


def test_what_the_jackknife_counts_twice_is_taken_off() -> None:
    """The square of a mean about 0 has nothing but a part of second order."""
    said, corrected, values = [], [], []
    for seed in range(300):
        x = np.random.default_rng(seed).normal(size=20)
        square = lambda rows, x=x: float(x[rows].mean() ** 2)  # noqa: E731
        values.append(square(np.arange(20)))
        said.append(jackknife_error(square, np.arange(20))[0])
        corrected.append(jackknife_error(square, np.arange(20), second_order_from=8)[0])
    true = np.var(values)
    assert np.mean(np.square(said)) / true > 1.6  # type: ignore[arg-type]
    assert true < np.mean(np.square(corrected)) < 0.8 * np.mean(np.square(said))  # type: ignore[arg-type]


def test_prompts_are_numbered_as_they_come() -> None:
    assert prompts_of(["b", "a", "b", ("c", 1)]).tolist() == [0, 1, 0, 2]
