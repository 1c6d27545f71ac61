"""Claims of 000 on the course of the metrics ("How do the metrics change during fine-tuning?")."""

from __future__ import annotations

from diffusion_lab.analysis.scoring import STEADY
from diffusion_lab.studies import quantities as q
from diffusion_lab.studies.bootstrap import Interval
from diffusion_lab.studies.claim import Asked, Claim
from diffusion_lab.studies.pool import Pool, over_subjects, women_less_men
from diffusion_lab.studies.run import StudyRun

SOURCE = "000, How do the metrics change during fine-tuning?"
FACES = "similarity_of_faces"
ALL = "similarity"
SCORE_STEADY = 0.02  # of the scaled score: a smaller change counts as none
MEANS = {FACES: "over images with a face", ALL: "over all images, those without a face counted 0"}


def asked(id_: str, text: str, unit: str, measured: str) -> Asked:
    return Asked(id_, text, SOURCE, "dynamics", unit, measured)


def long_enough(pool: Pool, *metrics: str) -> list[StudyRun]:
    return [run for run in pool.runs(*metrics) if q.whole_course(run)]


def improvement(pool: Pool) -> Claim:
    claim = asked(
        "improvement",
        "Training first improves the model gradually.",
        "of the scaled score",
        "weighted score at the recommended stop less that at step 0",
    )
    return _score_change(pool, claim, first=True)


def collapse(pool: Pool) -> Claim:
    claim = asked(
        "collapse",
        "After that the quality collapses.",
        "of the scaled score",
        "weighted score at the recommended stop less that at the last evaluation",
    )
    return _score_change(pool, claim, first=False)


def _score_change(pool: Pool, claim: Asked, *, first: bool) -> Claim:
    runs = long_enough(pool)
    if not runs:
        return claim.missing("no runs with four evaluations from step 0")
    change = over_subjects(
        runs,
        lambda run: q.from_stop(run, pool.infos, q.SCORE, lambda run: 0 if first else len(run.steps) - 1),
    )
    note = "one half of the prompts chooses the stop, the other measures"
    return claim.above(change.scaled(-1), runs, least=SCORE_STEADY, note=note)


def rises(pool: Pool, metric: str) -> Claim:
    claim = asked(
        f"{metric}_rises",
        "Similarity increases almost until the end.",
        "cosine",
        f"similarity ({MEANS[metric]}): fitted change between half and nine tenths of the run",
    )
    runs = long_enough(pool, metric)
    if not runs:
        return claim.missing("no runs with similarity at four evaluations from step 0")
    return claim.above(over_subjects(runs, lambda run: q.late_rise(run, metric)), runs, least=STEADY)


def rises_into_collapse(pool: Pool, metric: str) -> Claim:
    claim = asked(
        f"{metric}_rises_into_collapse",
        "Similarity increases even well into the collapse.",
        "cosine",
        f"similarity ({MEANS[metric]}) at the last evaluation less that at the recommended stop",
    )
    runs = long_enough(pool, metric)
    if not runs:
        return claim.missing("no runs with similarity at four evaluations from step 0")
    change = over_subjects(
        runs, lambda run: q.from_stop(run, pool.infos, metric, lambda run: len(run.steps) - 1)
    )
    return claim.above(change, runs, least=STEADY)


def falls(pool: Pool, metric: str, text: str, unit: str) -> Claim:
    claim = asked(
        f"{metric}_falls", text, unit, f"{metric}: fitted change from the first to the last evaluation"
    )
    runs = long_enough(pool, metric)
    if not runs:
        return claim.missing(f"no runs with {metric} at four evaluations from step 0")
    down = sum(float((change := q.trend(run, metric)) is not None and change[0] < 0) for run in runs) / len(
        runs
    )
    steps = over_subjects(runs, lambda run: q.share_down(run, metric)).value
    note = (
        f"it falls in {down:.0%} of the runs, and from one evaluation to the next in {steps:.0%} of the pairs"
    )
    return claim.below(over_subjects(runs, lambda run: q.trend(run, metric)), runs, least=STEADY, note=note)


def diversity_and_copies(pool: Pool) -> Claim:
    claim = asked(
        "diversity_overfitting",
        "Significant drops of diversity indicate overfitting.",
        "correlation",
        "changes of diversity and of memorisation (our measure of overfitting) from one evaluation to the next",
    )
    runs = long_enough(pool, "diversity", "memorisation")
    if not runs:
        return claim.missing("no runs with diversity and memorisation")
    return claim.below(over_subjects(runs, lambda run: q.coupled(run, "diversity", "memorisation")), runs)


def degeneration(pool: Pool) -> Claim:
    return Asked(
        "aesthetics_degeneration",
        "Dramatic drops of the aesthetic score indicate artefacts in the images (manual checks).",
        SOURCE,
        "",
        "",
        "people's judgement of images beside the score",
    ).missing("people have to look at the images of the steps with such drops: the study's page shows them")


def women_more_aesthetic(pool: Pool) -> Claim:
    claim = asked(
        "women_aesthetics",
        "Women tend to produce more attractive images.",
        "of 0 to 1",
        "aesthetics, women less men, mean of the evaluations after step 0",
    )
    runs = long_enough(pool, "aesthetics")
    start = women_less_men(runs, lambda run: q.at_start(run, "aesthetics"))
    return _genders(claim, runs, women_less_men(runs, lambda run: q.after_start(run, "aesthetics")), start)


def men_more_similar(pool: Pool, metric: str) -> Claim:
    claim = asked(
        f"men_{metric}",
        "Higher similarity is easier to reach for men.",
        "cosine",
        f"similarity ({MEANS[metric]}), men less women, mean of the evaluations after step 0",
    )
    runs = long_enough(pool, metric)
    start = women_less_men(runs, lambda run: q.at_start(run, metric)).scaled(-1)
    return _genders(
        claim, runs, women_less_men(runs, lambda run: q.after_start(run, metric)).scaled(-1), start
    )


def _genders(claim: Asked, runs: list[StudyRun], difference: Interval, start: Interval) -> Claim:
    if {"woman", "man"} - {run.gender for run in runs}:
        return claim.missing("subjects of both genders are needed")
    note = f"of the untouched model (step 0): {start.value:+.3f}" if start.known else ""
    return claim.above(difference, runs, least=STEADY, note=note)


def dynamics_claims(pool: Pool) -> list[Claim]:
    """In the order of the text."""
    falls_mostly = "Most of the time aesthetics decreases monotonically."
    return [
        improvement(pool),
        collapse(pool),
        *(rises(pool, metric) for metric in MEANS),
        *(rises_into_collapse(pool, metric) for metric in MEANS),
        falls(pool, "aesthetics", falls_mostly, "of 0 to 1"),
        degeneration(pool),
        falls(pool, "diversity", "Diversity decreases monotonically.", "cosine distance"),
        diversity_and_copies(pool),
        women_more_aesthetic(pool),
        *(men_more_similar(pool, metric) for metric in MEANS),
    ]
