"""Claims of 000 on base models and on negative prompts."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from diffusion_lab.studies.bootstrap import Floats, Interval
from diffusion_lab.studies.claim import Asked, Claim
from diffusion_lab.studies.measures import FREE, comparable, complete
from diffusion_lab.studies.pool import Pool, over_subjects, paired
from diffusion_lab.studies.quantities import after_start
from diffusion_lab.studies.run import StudyRun
from diffusion_lab.studies.stops import curve

MODELS = "000, Model comparison"
NEGATIVE = "000, Inspecting the influence of prompt components and 'magic words'"
BROKEN = 0.5  # "nearly broken or extremely slow": less than half of the other model's gain in similarity


def models_of(pool: Pool, first: str, second: str) -> tuple[list[StudyRun], list[StudyRun]]:
    """Runs of two models by the same method, which are otherwise comparable; the method with the most of them."""
    some = comparable([run for run in pool.table.runs if run.model in (first, second)])
    found: tuple[list[StudyRun], list[StudyRun]] = ([], [])
    for method in dict.fromkeys(run.method for run in some):
        own = [[r for r in some if r.method == method and r.model == model] for model in (first, second)]
        if all(own) and len(own[0]) + len(own[1]) > len(found[0]) + len(found[1]):
            found = complete(own[0]), complete(own[1])
    return found


def worse(pool: Pool, asked: Asked, newer: str, older: str) -> Claim:
    first, second = models_of(pool, newer, older)
    if not first or not second:
        return asked.missing(f"runs of {older} and {newer} by the same method are needed")
    difference = paired(first, second, pool.score_at_stop)
    if not difference.subjects:
        return asked.missing(f"{older} and {newer} have no subject and number of photos in common")
    return asked.below(difference, [*first, *second])


def slow(pool: Pool, asked: Asked, newer: str, older: str) -> Claim:
    """The gain in similarity over the run, as a difference: gain of the newer less half of the older one's."""
    first, second = models_of(pool, newer, older)
    if not first or not second:
        return asked.missing(f"runs of {older} and {newer} by the same method are needed")

    def gain(run: StudyRun) -> Floats | None:
        mean = after_start(run, "similarity")
        if mean is None or run.steps[0] != 0:
            return None
        found: Floats = (mean - curve(run, "similarity")[:, 0]) * (1.0 if run.model == newer else BROKEN)
        return found

    difference = paired(first, second, gain)
    plain = [over_subjects(runs, gain).value for runs in (first, second)]
    note = f"gains {plain[0]:.3f} and {plain[1] / BROKEN:.3f}, mean over the evaluations after step 0"
    return asked.below(difference, [*first, *second], note=note)


def model_claims(pool: Pool) -> list[Claim]:
    """2.0 and 2.1 against 1.5, and the stand-in on the miniature."""
    found = []
    for newer, name in (("sd20", "2.0"), ("sd21", "2.1")):
        text = f"Fine-tuned, Stable Diffusion {name} is significantly worse than 1.5."
        measured = f"weighted score at the recommended stop, {name} less 1.5, paired by subject and n"
        asked = Asked(f"{newer}_worse", text, MODELS, "models", "of the scaled score", measured)
        found.append(worse(pool, asked, newer, "sd15"))
        text = f"Fine-tuning of {name} is nearly broken or extremely slow, relative to 1.5."
        measured = f"gain in similarity after step 0: {name} less half of that of 1.5"
        asked = Asked(f"{newer}_slow", text, MODELS, "models", "cosine", measured)
        found.append(slow(pool, asked, newer, "sd15"))
    asked = Asked(
        "v_prediction_worse",
        "Stand-in on the miniature: v-prediction (as the 768-pixel weights of 2.x) is worse than epsilon.",
        "ours, beside 000, Model comparison",
        "models",
        "of the scaled score",
        "weighted score at the recommended stop, miniature_v less miniature, paired by subject and n",
    )
    return [*found, worse(pool, asked, "miniature_v", "miniature")]


def with_and_without(runs: Sequence[StudyRun]) -> tuple[list[StudyRun], list[StudyRun]]:
    """Runs that differ only by the negative prompt: those with one, and those without."""
    places: dict[Hashable, tuple[list[StudyRun], list[StudyRun]]] = {}
    for run in runs:
        key = (run.subject, run.n_images, run.seed, run.method, run.model, run.prompts, _others(run))
        side = 0 if run.settings.get("prompts.negative") else 1
        places.setdefault(key, ([], []))[side].append(run)
    both = [place for place in places.values() if place[0] and place[1]]
    return [run for place in both for run in place[0]], [run for place in both for run in place[1]]


def _others(run: StudyRun) -> Hashable:
    return tuple(
        (key, value)
        for key, value in run.chosen
        if not key.startswith(("prompts.negative", "prompts.name", *FREE))
    )


def negative_claims(pool: Pool) -> list[Claim]:
    """Paired by subject, prompt and noise, at the recommended stop of each run."""
    wanted = (
        ("aesthetics", "Negative prompts improve aesthetics.", "of 0 to 1", True),
        ("similarity_of_faces", "Negative prompts lower similarity.", "cosine", False),
        ("face_rate", "Negative prompts lower the rate of detected faces.", "share", False),
    )
    first, second = with_and_without(pool.table.runs)
    found = []
    for metric, text, unit, better in wanted:
        measured = f"{metric} with a negative prompt less without, mean of the evaluations after step 0"
        asked = Asked(f"negative_{metric}", text, NEGATIVE, "negative", unit, measured)
        if not first:
            found.append(asked.missing("runs with and without a negative prompt are needed"))
            continue
        difference: Interval = paired(first, second, lambda run, m=metric: after_start(run, m))  # type: ignore[misc]
        check = asked.above if better else asked.below
        found.append(check(difference, [*first, *second]))
    return found
