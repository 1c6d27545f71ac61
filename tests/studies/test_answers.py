"""One sentence for each study, on tables whose answer is known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from diffusion_lab.studies.answers import ANSWERS, answer
from diffusion_lab.studies.table import Table
from tests.studies import planted
from tests.studies.planted import course

STEPS = tuple(range(0, 401, 20))
QUIET = {"subject": 0.02, "prompt": 0.03, "image": 0.05}


def table(truth: planted.Truth | None = None, **more: object) -> Table:
    return planted.planted(truth or course(), **{"steps": STEPS, **QUIET, **more})  # type: ignore[arg-type]


def test_how_many_photos_are_enough() -> None:
    grows = course(quality_of_n=lambda n: 0.03 * min(n, 14))
    assert answer("counts", table(grows)).startswith("On miniature (10 subjects), 14 photos are enough: ")
    said = answer("counts", table(course(quality_of_n=lambda n: 0.02 * n)))
    assert said == "On miniature (10 subjects), 20 photos are best of 4, 8, 14, 20: any fewer are worse."
    said = answer("counts", table(course(quality_of_n=lambda n: -0.02 * n)))
    assert (
        said
        == "On miniature (10 subjects), 4 photos, the fewest tried, are enough: they score best at the recommended stop."
    )
    flat = answer("counts", table(course(quality_of_n=lambda n: -0.006 * n), image=2.0))
    assert "4 photos, the fewest tried, score best, but one cannot tell whether" in flat
    noisy = answer("counts", table(course(quality_of_n=lambda n: 0.005 * n), image=2.0))
    assert "one cannot tell" in noisy


def test_the_course_of_the_metrics() -> None:
    said = answer("dynamics", table())
    for part in ("similarity of the faces still rises", "aesthetics falls", "diversity falls"):
        assert part in said
    said = answer("dynamics", table(course(late=-0.3, fall=-0.2)))
    for part in (
        "similarity of the faces no longer rises",
        "aesthetics does not fall",
        "diversity does not fall",
    ):
        assert part in said
    alone = answer("dynamics", table(subjects=("anna",)))
    assert "(1 subject)" in alone
    assert alone.endswith("One subject only: the intervals are over prompts.")


def test_steps_per_image() -> None:
    truth = course(stop=lambda run: (15 if run["gender"] == "woman" else 10) * run["n"], fall=0.8)
    said = answer("rules", table(truth))
    assert said.startswith("On miniature (10 subjects), the recommended stop is 12.")
    assert "women 14." in said
    assert "men 9." in said or "men 10." in said
    assert "it may be more" in answer("rules", table(course(stop=lambda run: 40 * run["n"])))


def test_models_and_methods() -> None:
    models = {"models": ("miniature", "miniature_v"), "counts": (8,)}
    worse = answer("models", table(course(of_model={"miniature_v": -0.5}), **models))
    assert worse.startswith("At the recommended stop miniature_v scores lower than miniature: -")
    assert "cannot tell" in answer("models", table(seed=1, **models))
    methods = {"methods": ("lora", "dreambooth"), "counts": (8,)}
    said = answer("methods", table(course(of_method={"dreambooth": (0.2, -0.2)}), **methods))
    assert "DreamBooth is highest on image similarity" in said
    assert "LoRA is highest on prompt similarity" in said
    assert "not certainly highest" in answer("methods", table(**methods))


def test_learning_rates_and_prior() -> None:
    rates = tuple({"method__learning_rate": rate} for rate in (1e-4, 1e-3))

    def truth(run, steps):  # type: ignore[no-untyped-def]
        right = run["settings"]["method.learning_rate"] == 1e-3
        return course(gain=0.5 if right else 0.2)(run, steps)

    said = answer("learning_rates", table(truth, more=rates, counts=(8,)))
    assert said == "LoRA: learning rate 0.001 is best of 0.0001, 0.001."
    weights = tuple({"method__prior_weight": weight} for weight in (0.0, 1.0))

    def kept(run, steps):  # type: ignore[no-untyped-def]
        return course(gain=0.4 - 0.2 * run["settings"]["method.prior_weight"])(run, steps)

    said = answer("prior", table(kept, more=weights, counts=(8,)))
    assert said.startswith("Prior preservation with weight 1 lowers similarity (-0.2")


@pytest.mark.parametrize("study", [*ANSWERS, "another"])
def test_without_runs_there_is_no_answer(study: str) -> None:
    assert answer(study, Table((), {}, {}, {})) == "No answer yet: no run has been evaluated."
    one = table(subjects=("anna",), counts=(4,))
    assert answer(study, one)


def test_unfinished_runs_are_said() -> None:
    found = table(counts=(4, 8))
    some = replace(found, runs=(replace(found.runs[0], status="running"), *found.runs[1:]))
    assert answer("counts", some).endswith(" 1 run is unfinished.")
    assert answer("counts", replace(some, pending=(("x", "not begun"),))).endswith(" 2 runs are unfinished.")
