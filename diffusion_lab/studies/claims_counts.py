"""Claims of 000 on the number of photos ("What number of input images is sufficient?")."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from diffusion_lab.analysis.intervals import LEVEL
from diffusion_lab.analysis.scoring import STEADY
from diffusion_lab.studies.bootstrap import PROMPTS, Floats, Interval, mean_over
from diffusion_lab.studies.claim import HOLDS, NOT, UNCLEAR, Asked, Claim
from diffusion_lab.studies.measures import prompts_of
from diffusion_lab.studies.pool import Pool, Quantity, by_count, slope_on_count
from diffusion_lab.studies.run import StudyRun

SOURCE = "000, What number of input images is sufficient?"
MIDDLE = (12, 14)  # "a dataset consisting of 12/14 images"
MANY = 20  # "20+ images"
DECENT = 0.05  # of the scaled score: a loss up to this still gives "decent results"
SIMILARITIES = {
    "similarity_of_faces": "to the training photos, over images with a face",
    "similarity": "to the training photos, images without a face counted 0",
    "similarity_heldout_of_faces": "to photos that were not trained on, over images with a face",
}


def asked(id_: str, text: str, unit: str, measured: str) -> Asked:
    return Asked(id_, text, SOURCE, "counts", unit, measured)


def middle_best(pool: Pool, metric: str) -> Claim:
    """Best at 12 to 14: the mean over these is above every other number of photos."""
    claim = asked(
        f"{metric}_best_at_12_to_14",
        "Similarity is best with 12 to 14 photos.",
        "cosine",
        f"similarity ({SIMILARITIES[metric]}) at the recommended stop with 12 to 14 photos, less the best other n",
    )
    runs = pool.runs(metric)
    _, counts, values = by_count(runs, pool.at_stop(metric))
    inside = [i for i, n in enumerate(counts) if MIDDLE[0] <= n <= MIDDLE[1]]
    outside = [i for i in range(len(counts)) if i not in inside]
    if not inside or len(outside) < 2:
        return claim.missing("runs with 12 to 14 photos, with fewer and with more are needed")
    kept = values[:, np.isfinite(values[0]).all(axis=1)]
    middle = kept[:, :, inside].mean(axis=2)
    differences = {counts[i]: mean_over(middle - kept[:, :, i], prompts_of(runs)) for i in outside}
    return least_of(claim, {f"n = {n}": d for n, d in differences.items()}, runs)


def least_of(
    claim: Asked, differences: dict[str, Interval], runs: Sequence[StudyRun], note: str = ""
) -> Claim:
    """The claim that every difference is above 0.

    It holds if every interval is (the intersection-union test needs no correction); it does not hold if one is below 0 at
    the level 1 - .05 / k for k differences (Bonferroni). The effect shown is the smallest.
    """
    name, least = min(differences.items(), key=lambda item: item[1].value)
    notes = "; ".join(part for part in (f"smallest against {name}", note) if part)
    found = claim.above(least, runs, note=notes)
    known = [d for d in differences.values() if d.known]
    level = 1 - (1 - LEVEL) / len(differences)
    if any(d.at_level(level)[1] < 0 and d.over != PROMPTS for d in known):
        return replace(found, verdict=NOT)
    holds = found.verdict == HOLDS and len(known) == len(differences) and all(d.low > 0 for d in known)
    return replace(found, verdict=HOLDS if holds else UNCLEAR)


def easier_to_overfit(pool: Pool) -> Claim:
    claim = asked(
        "few_images_flatter_similarity",
        "The number of photos influences the similarity itself: it is easier to overfit to few photos.",
        "cosine per photo",
        "slope on n of similarity to the training photos less that to held-out photos, at the recommended stop",
    )
    runs = pool.runs("similarity_of_faces", "similarity_heldout_of_faces")
    trained, heldout = pool.at_stop("similarity_of_faces"), pool.at_stop("similarity_heldout_of_faces")
    return claim.below(slope_on_count(runs, _less(trained, heldout)), runs)


def _less(first: Quantity, second: Quantity) -> Quantity:
    def difference(run: StudyRun) -> Floats | None:
        a, b = first(run), second(run)
        return None if a is None or b is None else a - b

    return difference


def grows(pool: Pool, metric: str, unit: str) -> Claim:
    claim = asked(
        f"{metric}_grows_with_n",
        f"The final {metric} grows with the number of photos.",
        f"{unit} per photo",
        f"slope of {metric} at the recommended stop on n",
    )
    runs = pool.runs(metric)
    return claim.above(slope_on_count(runs, pool.at_stop(metric)), runs)


def many_best(pool: Pool, metric: str, unit: str) -> Claim:
    claim = asked(
        f"{metric}_best_from_20",
        f"For the best {metric} one may want 20 photos or more.",
        unit,
        f"{metric} at the recommended stop with 20 photos or more, less that with 12 to 14",
    )
    runs = pool.runs(metric)
    difference = many_less_middle(runs, pool.at_stop(metric))
    if difference is None:
        return claim.missing("runs with 12 to 14 photos and with 20 or more are needed")
    return claim.above(difference, runs, least=STEADY)


def twelve_decent(pool: Pool) -> Claim:
    claim = asked(
        "twelve_decent",
        "Even 12 photos can produce decent results.",
        "of the scaled score",
        "weighted score at the recommended stop with 12 to 14 photos, less that with 20 or more; decent: a loss "
        f"below {DECENT:g}",
    )
    runs = pool.runs()
    difference = many_less_middle(runs, pool.score_at_stop)
    if difference is None:
        return claim.missing("runs with 12 to 14 photos and with 20 or more are needed")
    return claim.above(difference.scaled(-1), runs, bound=-DECENT)


def many_less_middle(runs: Sequence[StudyRun], quantity: Quantity) -> Interval | None:
    """With 20 photos or more, less with 12 to 14; paired by subject. None without runs of both."""
    _, counts, values = by_count(runs, quantity)
    middle = [i for i, n in enumerate(counts) if MIDDLE[0] <= n <= MIDDLE[1]]
    many = [i for i, n in enumerate(counts) if n >= MANY]
    if not middle or not many:
        return None
    return mean_over(values[:, :, many].mean(axis=2) - values[:, :, middle].mean(axis=2), prompts_of(runs))


def counts_claims(pool: Pool) -> list[Claim]:
    """In the order of the text."""
    return [
        *(middle_best(pool, metric) for metric in SIMILARITIES),
        easier_to_overfit(pool),
        grows(pool, "aesthetics", "of 0 to 1"),
        grows(pool, "diversity", "cosine distance"),
        twelve_decent(pool),
        many_best(pool, "aesthetics", "of 0 to 1"),
        many_best(pool, "diversity", "cosine distance"),
    ]
