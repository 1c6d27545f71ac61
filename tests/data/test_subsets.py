"""Nested subsets: the promise on which every comparison of image counts stands."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_lab.data.subsets import heldout_count, nested_order, split
from diffusion_lab.records import Picture, UserError


def photographs(n: int, copies: dict[int, int] | None = None) -> list[Picture]:
    """n pictures, some of them (`copies`: which of what) the same file twice."""
    made = []
    for i in range(n):
        content = (copies or {}).get(i, i)
        made.append(
            Picture(
                path=Path(f"{i:02d}.png"),
                sha256=hashlib.sha256(str(content).encode()).hexdigest(),
                pixels=np.full((4, 4, 3), content, np.uint8),
            )
        )
    return made


def names(pictures: tuple[Picture, ...]) -> list[str]:
    return [picture.path.name for picture in pictures]


def test_nested_and_heldout_independent_of_n() -> None:
    all_of_them = photographs(28)
    biggest, references = split(all_of_them, 20, None, subject="anna", seed=0)
    assert len(references) == 8
    for n in range(1, 21):
        train, heldout = split(all_of_them, n, None, subject="anna", seed=0)
        assert names(train) == names(biggest)[:n]
        assert names(heldout) == names(references)
        assert not set(names(train)) & set(names(heldout))


def test_order_depends_on_subject_and_seed_and_is_mixed() -> None:
    files = [f"{i}.png" for i in range(28)]
    orders = [nested_order(files, subject, seed) for subject in ("anna", "bea") for seed in (0, 1)]
    assert all(sorted(order) == list(range(28)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    firsts = [nested_order(files, f"person {i}", 0)[0] for i in range(280)]
    counts = np.bincount(firsts, minlength=28)
    assert counts.min() >= 2  # every picture gets to be the first: expected 10 times of 280
    assert counts.max() <= 24


@given(st.lists(st.text(min_size=1, max_size=8), unique=True, min_size=2, max_size=12), st.integers(0, 99))
def test_order_survives_shuffling_and_new_files(files: list[str], seed: int) -> None:
    ranked = [files[i] for i in nested_order(files, "x", seed)]
    if len({unicodedata.normalize("NFC", name) for name in files}) == len(files):
        backwards = files[::-1]
        assert [backwards[i] for i in nested_order(backwards, "x", seed)] == ranked
    fewer = files[:-1]
    assert [fewer[i] for i in nested_order(fewer, "x", seed)] == [
        name for name in ranked if name != files[-1]
    ]


def test_order_is_the_same_in_every_process() -> None:
    program = (
        "from diffusion_lab.data.subsets import nested_order\n"
        "print(nested_order([f'{i}.png' for i in range(28)], 'anna', 0))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for hash_seed in ("0", "1", "12345")
    }
    assert outputs == {str(nested_order([f"{i}.png" for i in range(28)], "anna", 0))}
    # Kept for good: runs made with another version of the program must train on the same pictures.
    assert nested_order([f"{i:02d}.png" for i in range(6)], "anna", 0) == KEPT


KEPT = [3, 4, 5, 0, 1, 2]


@pytest.mark.parametrize(
    ("total", "asked", "held"),
    [
        (28, None, 8),
        (22, None, 8),
        (21, None, 4),
        (10, None, 2),
        (5, None, 1),
        (2, None, 1),
        (28, 0, 0),
        (28, 3, 3),
    ],
)
def test_heldout_count(total: int, asked: int | None, held: int) -> None:
    assert heldout_count(total, asked) == held


def test_too_few_pictures_says_both_numbers_and_what_to_do() -> None:
    with pytest.raises(UserError) as caught:
        split(photographs(5), 14, None, subject="dog", seed=0)
    message = str(caught.value)
    assert "data.n_images=14" in message
    assert "5 pictures" in message
    assert "data.n_images=4 or less" in message
    assert "add 10 or more" in message
    assert "data.n_heldout=-" not in message
    with pytest.raises(UserError, match=r"data\.n_heldout=2 or less"):
        split(photographs(10), 8, 4, subject="dog", seed=0)
    with pytest.raises(UserError, match=r"set data\.n_heldout=0, or add"):
        split(photographs(1), 1, None, subject="dog", seed=0)
    assert len(split(photographs(1), 1, 0, subject="dog", seed=0)[0]) == 1
    for n in (0, -3):
        with pytest.raises(UserError, match=rf"data\.n_images={n}"):
            split(photographs(5), n, None, subject="dog", seed=0)
    with pytest.raises(UserError, match=r"data\.n_heldout=-1"):
        split(photographs(5), 2, -1, subject="dog", seed=0)


def test_copies_in_training_are_named(caplog: pytest.LogCaptureFixture) -> None:
    clean = photographs(10)
    order = nested_order([p.path.name for p in clean], "dog", 0)
    train, _ = split(photographs(10, {order[1]: order[0]}), 2, 2, subject="dog", seed=0)
    assert len(train) == 2
    assert f"{order[1]:02d}.png is a copy of {order[0]:02d}.png" in caplog.text
    caplog.clear()
    split(photographs(10, {order[2]: order[0]}), 2, 2, subject="dog", seed=0)
    assert not caplog.records  # not trained on with n = 2


def test_copies_are_never_references(caplog: pytest.LogCaptureFixture) -> None:
    clean = photographs(10)
    order = nested_order([p.path.name for p in clean], "dog", 0)
    # The last training picture of the largest n comes back among the references: dropped for every n.
    copied = photographs(10, {order[9]: order[6]})
    for n in range(1, 8):
        caplog.clear()
        _, heldout = split(copied, n, 3, subject="dog", seed=0)
        assert names(heldout) == [f"{order[i]:02d}.png" for i in (7, 8)]
        assert f"{order[9]:02d}.png is a copy of {order[6]:02d}.png" in caplog.text
    twice = photographs(10, {order[9]: order[8]})
    assert names(split(twice, 1, 3, subject="dog", seed=0)[1]) == [f"{order[i]:02d}.png" for i in (7, 8)]
    with pytest.raises(UserError, match=r"data\.n_heldout.*copy"):
        split(photographs(10, {order[9]: order[0]}), 1, 1, subject="dog", seed=0)


def test_a_copy_saved_again_is_found_by_its_pixels(caplog: pytest.LogCaptureFixture) -> None:
    made = photographs(6)
    order = nested_order([p.path.name for p in made], "dog", 0)
    first, last = made[order[0]], made[order[5]]
    made[order[5]] = Picture(path=last.path, sha256=last.sha256, pixels=first.pixels.copy())
    assert len(split(made, 2, 2, subject="dog", seed=0)[1]) == 1
    assert "copy" in caplog.text
