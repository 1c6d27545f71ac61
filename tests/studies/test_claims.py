"""Claims on tables whose truth is known: as claimed, and the other way round."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from diffusion_lab.studies.bootstrap import BOTH, Interval
from diffusion_lab.studies.claim import HOLDS, NOT, UNCLEAR, Asked, Claim
from diffusion_lab.studies.claims import check_claims, tally
from diffusion_lab.studies.claims_dynamics import falls, men_more_similar, women_more_aesthetic
from diffusion_lab.studies.measures import complete, main_runs
from diffusion_lab.studies.pool import Pool, paired, slope_on_count
from diffusion_lab.studies.quantities import after_start
from diffusion_lab.studies.slope import slope_interval
from diffusion_lab.studies.table import Table
from tests.studies import planted
from tests.studies.planted import course

STEPS = tuple(range(0, 401, 20))
QUIET = {"subject": 0.02, "prompt": 0.03, "image": 0.05}


def checked(truth: planted.Truth, **more: Any) -> dict[str, Claim]:
    table = planted.planted(truth, **{"steps": STEPS, **QUIET, **more})
    return {claim.id: claim for claim in check_claims(table)}


AS_CLAIMED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # claim -> (course as claimed, course against it)
    "improvement": ({}, {"gain": -0.2, "late": -0.1}),
    "collapse": ({}, {"fall": 0.0, "late": 0.3}),
    "similarity_rises": ({}, {"late": -0.2}),
    "similarity_of_faces_rises": ({}, {"late": 0.0}),
    "similarity_rises_into_collapse": ({}, {"late": -0.1}),
    "similarity_of_faces_rises_into_collapse": ({}, {"late": -0.1}),
    "aesthetics_falls": ({}, {"fall": -0.1, "late": -0.5}),
    "diversity_falls": ({}, {"fall": 0.0, "late": -0.3}),
    "diversity_overfitting": ({"memorised": 0.5}, {"memorised": -0.5}),
    "women_aesthetics": ({}, {"women_aesthetics": -0.1}),
    "men_similarity": ({}, {"men_similarity": -0.1}),
    "men_similarity_of_faces": ({}, {"men_similarity": -0.1}),
    "near_linear": ({}, {"stop": lambda run: 80 + run["n"]}),
    "stop_grows": ({}, {"stop": lambda run: 300 - 10 * run["n"]}),
    "women_longer": (
        {"stop": lambda run: (15 if run["gender"] == "woman" else 10) * run["n"]},
        {"stop": lambda run: (10 if run["gender"] == "woman" else 15) * run["n"]},
    ),
    "similarity_best_at_12_to_14": (
        {"similarity_of_n": lambda n: 0.1 * (n == 14)},
        {"similarity_of_n": lambda n: 0.1 * (n == 20)},
    ),
    "similarity_of_faces_best_at_12_to_14": (
        {"similarity_of_n": lambda n: 0.1 * (n == 14)},
        {"similarity_of_n": lambda n: 0.1 * (n == 4)},
    ),
    "similarity_heldout_of_faces_best_at_12_to_14": (
        {"gap_of_n": lambda n: 0.2 - 0.1 * (n == 14)},
        {"gap_of_n": lambda n: 0.2 - 0.1 * (n == 20)},
    ),
    "few_images_flatter_similarity": (
        {"gap_of_n": lambda n: 0.2 - 0.005 * n},
        {"gap_of_n": lambda n: 0.005 * n},
    ),
    "aesthetics_grows_with_n": (
        {"quality_of_n": lambda n: 0.005 * n},
        {"quality_of_n": lambda n: -0.005 * n},
    ),
    "diversity_grows_with_n": (
        {"quality_of_n": lambda n: 0.005 * n},
        {"quality_of_n": lambda n: -0.005 * n},
    ),
    "aesthetics_best_from_20": ({"quality_of_n": lambda n: 0.01 * n}, {}),
    "diversity_best_from_20": (
        {"quality_of_n": lambda n: 0.01 * n},
        {"quality_of_n": lambda n: -0.01 * n},
    ),
    "twelve_decent": ({}, {"quality_of_n": lambda n: 0.1 * (n >= 20)}),
    "similarity_of_faces_maximum_later": (
        {"late": -0.2},
        {"late": -0.2, "stop": lambda run: 300 - 10 * run["n"]},
    ),
}


@pytest.mark.parametrize("name", AS_CLAIMED)
def test_truth_both_ways(name: str) -> None:
    as_claimed, against = AS_CLAIMED[name]
    found = checked(course(**as_claimed))[name]
    assert found.verdict == HOLDS, found
    assert found.smallest is not None
    assert found.smallest > 0
    found = checked(course(**against), seed=1)[name]
    assert found.verdict == NOT, found
    assert found.data == "miniature (drawn portraits); lora; 10 subjects; n = 4, 8, 14, 20"


@pytest.mark.parametrize("rule", [100, 120, 150])
def test_rules_of_thumb(rule: int) -> None:
    gendered = course(stop=lambda run: (150 if run["gender"] == "woman" else 120) * run["n"])
    truth = course(stop=lambda run: 100 * run["n"]) if rule == 100 else gendered
    long = {"steps": tuple(range(0, 4001, 200)), "counts": (4, 8, 14, 20)}
    assert checked(truth, **long)[f"rule_{rule}"].verdict == HOLDS
    wrong = checked(course(stop=lambda run: 50 * run["n"]), **long)[f"rule_{rule}"]
    assert wrong.verdict == NOT
    assert wrong.effect == pytest.approx(50, rel=0.15)


def test_rules_by_gender_against_the_general_one() -> None:
    long = {"steps": tuple(range(0, 4001, 200)), "counts": (4, 8, 14, 20)}
    by_gender = course(stop=lambda run: (150 if run["gender"] == "woman" else 120) * run["n"])
    assert checked(by_gender, **long)["rules_by_gender"].verdict == HOLDS
    assert checked(course(stop=lambda run: 100 * run["n"]), **long)["rules_by_gender"].verdict == NOT
    assert checked(by_gender)["rules_by_gender"].verdict == UNCLEAR


def test_a_stop_at_the_end_is_not_taken_for_the_best() -> None:
    found = checked(course(stop=lambda run: 40 * run["n"]))
    for name in ("near_linear", "rule_120", "women_longer"):
        assert found[name].verdict == UNCLEAR
        assert "may be later" in found[name].note
    # A slope that is too great already remains too great.
    long = {"steps": tuple(range(0, 4001, 200)), "counts": (4, 8, 14, 20)}
    high = checked(course(stop=lambda run: 260 * run["n"]), **long)["rule_100"]
    assert high.verdict == NOT


def test_models() -> None:
    models = ("stable-diffusion-v1-5", "stable-diffusion-2-base", "stable-diffusion-2-1-base")

    def table(newer: float) -> Table:
        truth = course(of_model={models[1]: newer, models[2]: newer}, men_similarity=0.0)
        found = planted.planted(truth, steps=STEPS, models=models, counts=(8, 14), **QUIET)
        names = {"stable-diffusion-v1-5": "sd15", models[1]: "sd20", models[2]: "sd21"}
        from dataclasses import replace

        return replace(found, runs=tuple(replace(run, model=names[run.model]) for run in found.runs))

    worse = {claim.id: claim for claim in check_claims(table(-0.8))}
    better = {claim.id: claim for claim in check_claims(table(0.5))}
    for name in ("sd20_worse", "sd20_slow", "sd21_worse", "sd21_slow"):
        assert worse[name].verdict == HOLDS
        assert better[name].verdict == NOT
    assert worse["v_prediction_worse"].verdict == UNCLEAR
    assert "--sweep models" in worse["v_prediction_worse"].note


def test_v_prediction_on_the_miniature() -> None:
    models = ("miniature", "miniature_v")
    for effect, verdict in ((-0.5, HOLDS), (0.5, NOT)):
        found = checked(course(of_model={"miniature_v": effect}), models=models, counts=(8,))
        assert found["v_prediction_worse"].verdict == verdict
        assert "miniature_v (drawn portraits)" in found["v_prediction_worse"].data


METHODS = ("lora", "dreambooth", "textual_inversion", "hypernetwork")
PAPERS = {
    "dreambooth": (0.2, -0.1),
    "lora": (0.1, 0.1),
    "textual_inversion": (0.0, -0.2),
    "hypernetwork": (-0.3, 0.0),
}
OTHERS = {
    "dreambooth": (0.0, 0.1),
    "lora": (-0.1, 0.0),
    "textual_inversion": (0.2, 0.2),
    "hypernetwork": (0.3, 0.0),
}


def test_methods() -> None:
    more = {"methods": METHODS, "counts": (8,)}
    papers, others = checked(course(of_method=PAPERS), **more), checked(course(of_method=OTHERS), **more)
    for name in (
        "dreambooth_best_on_image_similarity",
        "lora_best_on_prompt_similarity",
        "textual_inversion_last_on_image_similarity",
        "textual_inversion_last_on_prompt_similarity",
        "hypernetwork_worse",
    ):
        assert papers[name].verdict == HOLDS, papers[name]
        assert others[name].verdict == NOT, others[name]
    assert papers["lora_last_on_image_similarity"].verdict == NOT
    assert others["lora_last_on_image_similarity"].verdict == HOLDS
    assert papers["distortion_editability"].verdict == HOLDS


def test_costs_that_are_alike_for_every_subject() -> None:
    from dataclasses import replace

    table = planted.planted(course(), steps=STEPS, methods=METHODS, counts=(8,), **QUIET)
    sizes = {"lora": 4.0, "dreambooth": 60.0, "textual_inversion": 4.0, "hypernetwork": 1.0}
    runs = tuple(replace(run, costs={**run.costs, "artefact_size": sizes[run.method]}) for run in table.runs)
    found = {claim.id: claim for claim in check_claims(replace(table, runs=runs))}
    size = found["dreambooth_artefact_size_above_lora"]
    assert (size.verdict, size.low, size.effect, size.high) == (HOLDS, 56.0, 56.0, 56.0)
    assert found["lora_artefact_size_above_textual_inversion"].verdict == NOT


def test_negative_prompts() -> None:
    more = {"more": ({"prompts__negative": ""}, {"prompts__negative": "blurry"}), "counts": (8,)}
    claimed = checked(course(of_negative=(0.1, -0.15, -0.1)), **more)
    against = checked(course(of_negative=(-0.1, 0.15, 0.05)), **more)
    for metric in ("aesthetics", "similarity_of_faces", "face_rate"):
        assert claimed[f"negative_{metric}"].verdict == HOLDS
        assert against[f"negative_{metric}"].verdict == NOT


def test_too_noisy_to_tell() -> None:
    found = checked(course(women_aesthetics=0.02), subject=0.1)["women_aesthetics"]
    assert found.verdict == UNCLEAR
    assert found.smallest is not None
    assert found.smallest > 0.1


def test_one_subject_tells_nothing_about_others() -> None:
    found = checked(course(), subjects=("anna",))["aesthetics_falls"]
    assert found.verdict == UNCLEAR
    assert "one subject" in found.note
    assert found.high is not None
    assert found.high < 0


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.03, 0.05, HOLDS),
        (0.01, 0.05, HOLDS),
        (0.0, 0.05, UNCLEAR),  # touches
        (0.005, 0.015, NOT),  # certain, but smaller than what counts
        (-0.01, 0.02, UNCLEAR),
        (-0.05, -0.01, NOT),
    ],
)
def test_ends_of_the_interval_decide(low: float, high: float, verdict: str) -> None:
    asked = Asked("one", "", "", "dynamics", "", "")
    interval = Interval((low + high) / 2, low, high, (high - low) / 4, 20.0, 10, 48, BOTH)
    assert asked.above(interval, [], least=0.02).verdict == verdict
    assert asked.below(interval.scaled(-1), [], least=0.02).verdict == verdict


def test_without_data_every_claim_names_its_study() -> None:
    claims = check_claims(Table((), {}, {}, {}))
    assert tally(claims) == {HOLDS: 0, NOT: 0, UNCLEAR: len(claims)}
    assert len({claim.id for claim in claims}) == len(claims) > 40
    for claim in claims:
        assert claim.effect is None
        assert not claim.study or f"--sweep {claim.study}" in claim.note


def tent(run: dict[str, Any], steps: np.ndarray, own: dict[str, float]) -> dict[str, np.ndarray]:
    """A score with a symmetric peak: noise moves the best evaluation as often forwards as backwards."""
    away = np.abs(steps - own[run["subject"]] * run["n"]) / 400
    return {"similarity": 0.7 - 0.8 * away, "aesthetics": 0.5 + 0 * steps, "diversity": 0.6 + 0 * steps}


@pytest.mark.slow
def test_coverage_of_the_slope_of_the_stop() -> None:
    rng, inside = np.random.default_rng(7), []
    for seed in range(400):
        own = {name: float(rng.normal(10, 1.5)) for name in planted.WOMEN + planted.MEN}
        noise = {"subject": 0.05, "prompt": 0.05, "image": 0.06}
        steps = tuple(range(0, 401, 25))
        table = planted.planted(
            lambda r, s, o=own: tent(r, s, o), seed=seed, counts=(8, 20), steps=steps, **noise
        )
        interval = slope_interval(table, complete(main_runs(table)))
        inside.append(interval.low <= 10 <= interval.high)
    assert 0.93 <= np.mean(inside) <= 0.97


@pytest.mark.slow
def test_coverage_of_claims() -> None:
    """Intervals of claims contain the planted effect."""
    truth = course(quality_of_n=lambda n: 0.005 * n, fall=0.6, late=0.0)
    steps = np.asarray(planted.STEPS, float)
    centred = (steps - steps.mean()) / ((steps - steps.mean()) ** 2).sum() * 400
    curves = [
        truth({"n": n, "gender": "man", "model": "", "method": "", "settings": {}}, steps) for n in (4, 14)
    ]
    wanted = {
        "aesthetics_falls": float(np.mean([curve["aesthetics"] @ centred for curve in curves])),
        "women_aesthetics": 0.1,
        "men_similarity": 0.1,
    }
    inside: dict[str, list[bool]] = {name: [] for name in wanted}
    noise = {"subject": 0.05, "prompt": 0.05, "image": 0.15, "counts": (4, 14)}
    for seed in range(400):
        pool = Pool(planted.planted(truth, seed=seed, **noise))
        for claim in (
            falls(pool, "aesthetics", "", ""),
            women_more_aesthetic(pool),
            men_more_similar(pool, "similarity"),
        ):
            assert claim.low is not None
            assert claim.high is not None
            inside[claim.id].append(claim.low <= wanted[claim.id] <= claim.high)
    for name, found in inside.items():
        assert 0.93 <= np.mean(found) <= 0.97, name


@pytest.mark.slow
def test_coverage_of_pairs_and_of_slopes_on_n() -> None:
    """From whole runs: one method less another, and the slope of a metric on the number of images."""
    counts = (4, 8, 20)
    truth = course(quality_of_n=lambda n: 0.004 * n, of_method={"dreambooth": (0.1, 0.0)})
    steps = np.asarray(planted.STEPS, float)
    run = {"gender": "man", "model": "", "method": "lora", "settings": {}}
    true = [truth({**run, "n": n}, steps)["diversity"][1:].mean() for n in counts]
    wanted = {"pair": 0.1, "slope": float(np.polyfit(counts, true, 1)[0])}
    inside: dict[str, list[bool]] = {name: [] for name in wanted}
    for seed in range(400):
        noise = {"subject": 0.05, "prompt": 0.05, "image": 0.15, "prompts": 24}
        runs = planted.planted(truth, seed=seed, counts=counts, methods=("lora", "dreambooth"), **noise).runs
        by_method = {m: [run for run in runs if run.method == m] for m in ("lora", "dreambooth")}
        found = {
            "pair": paired(
                by_method["dreambooth"], by_method["lora"], lambda run: after_start(run, "image_similarity")
            ),
            "slope": slope_on_count(by_method["lora"], lambda run: after_start(run, "diversity")),
        }
        for name, interval in found.items():
            assert interval.subjects == 10
            inside[name].append(interval.low <= wanted[name] <= interval.high)
    for name, share in inside.items():
        assert 0.93 <= np.mean(share) <= 0.97, name
