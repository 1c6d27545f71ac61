"""Which runs are put side by side, and means over subjects against plain computations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from diffusion_lab.studies.measures import (
    comparable,
    complete,
    main_runs,
)
from diffusion_lab.studies.slope import stop_slope
from diffusion_lab.studies.stops import curve, stop_of
from tests.studies import planted
from tests.studies.planted import course

STEPS = tuple(range(0, 401, 20))
QUIET = {"subject": 0.02, "prompt": 0.03, "image": 0.05}


def table(truth: planted.Truth | None = None, **more: Any) -> planted.Table:
    return planted.planted(truth or course(), **{"steps": STEPS, **QUIET, **more})


def test_other_settings_are_not_mixed() -> None:
    usual, other = ({}, {"steps__batch_size": 2})
    pool = planted.table_of(
        [*table(counts=(4, 8)).runs, *table(counts=(4,), more=(other,), subjects=("anna", "ben")).runs]
    )
    assert usual == {}
    assert {run.settings["steps.batch_size"] for run in comparable(pool.runs)} == {4}
    # Rates belong to a method: each method keeps its most usual one.
    rates = [{"method__learning_rate": rate} for rate in (1e-3, 1e-2)]
    runs = [*table(counts=(4, 8), methods=("lora", "dreambooth")).runs, *table(counts=(4,), more=rates).runs]
    kept = comparable(runs)
    assert {(run.method, run.settings["method.learning_rate"]) for run in kept} == {
        ("lora", 1.5e-3),
        ("dreambooth", 1e-4),
    }
    assert {run.method for run in main_runs(planted.table_of(runs))} == {"lora"}


def test_a_key_that_an_older_record_lacks_is_its_default() -> None:
    runs = table(counts=(4,)).runs
    newer = [replace(run) for run in table(counts=(8,), more=({"steps__stop": "total"},)).runs]
    assert len(comparable([*runs, *newer])) == 20
    auto = [
        replace(run) for run in table(counts=(8,), more=({"steps__stop": "auto"},), subjects=("anna",)).runs
    ]
    assert len(comparable([*runs, *auto])) == 10


def test_a_study_that_still_runs_is_balanced() -> None:
    runs = list(table().runs)
    assert complete(runs) == runs
    partial = [run for run in runs if run.subject != "emil" or run.n_images < 14]
    assert {run.subject for run in complete(partial)} == {*planted.WOMEN, *planted.MEN} - {"emil"}
    running = [replace(run, status="running") if run.subject == "ben" else run for run in runs]
    assert "ben" not in {run.subject for run in complete(running)}


def test_the_slope_is_that_of_least_squares_through_the_origin() -> None:
    found = table()
    slope = stop_slope(found, found.runs)
    assert slope is not None
    own = []
    for subject in planted.WOMEN + planted.MEN:
        runs = [run for run in found.runs if run.subject == subject]
        n = np.array([run.n_images for run in runs], float)
        stops = np.array([stop_of(run, found.metrics).step for run in runs], float)  # type: ignore[union-attr]
        own.append(np.linalg.lstsq(n[:, None], stops, rcond=None)[0][0])
    assert slope.interval.value == pytest.approx(np.mean(own))
    assert (slope.runs, slope.censored, slope.at_start) == (40, 0.0, 0.0)
    women = stop_slope(found, found.runs, "woman")
    assert women is not None
    assert women.interval.value == pytest.approx(np.mean(own[:5]))


def test_stops_follow_weights_and_ranges() -> None:
    found = table(course(late=0.3))
    run = found.runs[0]
    last = stop_of(run, found.metrics, {"similarity": 1.0})
    assert last is not None
    assert last.censored == (last.step == 400)
    assert last.step > 300
    first = stop_of(run, found.metrics, {"diversity": 1.0})
    assert first is not None
    assert first.step < 100
    narrow = stop_of(run, found.metrics, None, {**found.ranges, "similarity": (0.0, 0.05)})
    assert narrow is not None
    assert narrow.step == last.step


def test_similarity_of_faces_is_the_mean_over_them() -> None:
    """Images without a face count 0 in similarity, so that the ratio to the share of faces is the mean over the others."""
    rng = np.random.default_rng(0)
    faces = (rng.random((3, 40)) < 0.7).astype(np.float32)
    similarity = faces * rng.random((3, 40)).astype(np.float32)
    run = table(counts=(4,), subjects=("anna",), steps=(0, 20, 40)).runs[0]
    run = replace(
        run,
        prompts=tuple(map(str, range(40))),
        by_prompt={"similarity": similarity, "face_rate": faces},
        values={"similarity": similarity.mean(1).astype(float), "face_rate": faces.mean(1).astype(float)},
    )
    expected = [similarity[i][faces[i] > 0].mean() for i in range(3)]
    np.testing.assert_allclose(curve(run, "similarity_of_faces")[0], expected, rtol=1e-5)
