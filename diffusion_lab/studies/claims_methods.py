"""Claims of 002, 003 and 004 on methods of fine-tuning."""

from __future__ import annotations

import math
from dataclasses import replace

from diffusion_lab.studies.bootstrap import NEITHER, Floats, Interval
from diffusion_lab.studies.claim import HOLDS, NOT, Asked, Claim
from diffusion_lab.studies.claims_counts import least_of
from diffusion_lab.studies.costs import COSTS
from diffusion_lab.studies.measures import PLANES, comparable, complete, cost_of
from diffusion_lab.studies.pool import Pool, over_subjects, paired
from diffusion_lab.studies.quantities import correlation
from diffusion_lab.studies.run import StudyRun
from diffusion_lab.studies.stops import curve

PAPER = "003, Results and Conclusion"
FILES = "003's own result files (protocol, section 5)"
NAMES = {
    "dreambooth": "DreamBooth",
    "lora": "LoRA",
    "textual_inversion": "Textual Inversion",
    "hypernetwork": "hypernetworks",
}
THREE = ("dreambooth", "lora", "textual_inversion")  # compared in 003


def methods_of(pool: Pool, *metrics: str) -> dict[str, list[StudyRun]]:
    """The comparable runs of each method, of the model with the most of them."""
    some = comparable(pool.table.runs, metrics=metrics)
    models = [run.model for run in some]
    model = max(dict.fromkeys(models), key=models.count, default=None)
    by_method: dict[str, list[StudyRun]] = {}
    for run in some:
        if run.model == model:
            by_method.setdefault(run.method, []).append(run)
    return {method: complete(runs) for method, runs in by_method.items()}


def axes_of(pool: Pool) -> tuple[dict[str, list[StudyRun]], str, str]:
    """Methods and the pair of image and prompt similarity with the most of the three methods."""
    found = [(methods_of(pool, image, prompt), image, prompt) for image, prompt in PLANES]
    return max(found, key=lambda one: sum(method in one[0] for method in THREE))


def first_or_last(
    pool: Pool, asked: Asked, methods: dict[str, list[StudyRun]], metric: str, method: str, *, best: bool
) -> Claim:
    """The claim that one of the three methods is best, or last, of them on a metric at the recommended stop."""
    rivals = [other for other in THREE if other != method]
    missing = [NAMES[name] for name in (method, *rivals) if name not in methods]
    if missing:
        return asked.missing(f"runs by {' and '.join(missing)} are needed")
    differences = {}
    for rival in rivals:
        difference = paired(methods[method], methods[rival], pool.at_stop(metric))
        differences[NAMES[rival]] = difference if best else difference.scaled(-1)
    if not all(difference.subjects for difference in differences.values()):
        return asked.missing("the methods have no subject and number of photos in common")
    runs = [run for name in THREE for run in methods[name]]
    return least_of(asked, differences, runs, note=stand_in(metric))


def stand_in(metric: str) -> str:
    """What the metric is, if it is not that of 003."""
    if metric in PLANES[0]:
        return ""
    return f"{metric} in place of 003's measure, which needs prompts=paper and metrics.names"


def paper_claims(pool: Pool) -> list[Claim]:
    """Who is best and who is last on the two similarities."""
    methods, image, prompt = axes_of(pool)
    wanted = (
        ("dreambooth", image, True, "DreamBooth is best on image similarity.", PAPER),
        ("lora", prompt, True, "LoRA is best on prompt similarity.", PAPER),
        ("textual_inversion", image, False, "Textual Inversion is last on image similarity.", PAPER),
        ("textual_inversion", prompt, False, "Textual Inversion is last on prompt similarity.", PAPER),
        ("lora", image, False, "LoRA is last on image similarity.", FILES),
    )
    found = []
    for method, metric, best, text, source in wanted:
        side = "its value less that of the best other" if best else "the lowest of the others less its value"
        asked = Asked(
            f"{method}_{'best' if best else 'last'}_on_{metric}", text, source, "methods", "cosine",
            f"{metric} at the recommended stop, paired by subject and n: {side}",
        )  # fmt: skip
        found.append(first_or_last(pool, asked, methods, metric, method, best=best))
    return [*found, trade_off(methods, image, prompt)]


def trade_off(methods: dict[str, list[StudyRun]], image: str, prompt: str) -> Claim:
    asked = Asked(
        "distortion_editability",
        "The higher the image similarity, the lower the prompt similarity (the distortion-editability curve).",
        PAPER,
        "methods",
        "correlation",
        f"{image} and {prompt} over the evaluations of a run, mean over methods and subjects",
    )
    runs = [run for some in methods.values() for run in some if len(run.steps) >= 4]
    if not runs:
        return asked.missing("runs with both similarities are needed")

    def together(run: StudyRun) -> Floats:
        return correlation(curve(run, image), curve(run, prompt))

    return asked.below(over_subjects(runs, together), runs, note=stand_in(image))


def hypernetworks_bad(pool: Pool) -> Claim:
    methods, image, _ = axes_of(pool)
    asked = Asked(
        "hypernetwork_worse",
        "Hypernetworks give very bad results; LoRA has replaced them.",
        "004, Hypernetwork",
        "methods",
        "cosine",
        f"{image} at the recommended stop, hypernetworks less LoRA, paired by subject and n",
    )
    if "hypernetwork" not in methods or "lora" not in methods:
        return asked.missing("runs by hypernetworks and LoRA are needed")
    runs = [*methods["hypernetwork"], *methods["lora"]]
    difference = paired(methods["hypernetwork"], methods["lora"], pool.at_stop(image))
    return asked.below(difference, runs, note=stand_in(image))


def cost_claims(pool: Pool) -> list[Claim]:
    """002: DreamBooth is expensive in computation and space, Textual Inversion light, LoRA between."""
    methods = methods_of(pool)
    source = "002, A lot of room for exploration"
    wanted = (
        ("dreambooth", "lora", "training_memory", "DreamBooth needs more memory than LoRA."),
        ("dreambooth", "lora", "training_seconds", "DreamBooth needs more computing time than LoRA."),
        ("dreambooth", "lora", "artefact_size", "DreamBooth's artefact is larger than LoRA's."),
        ("lora", "textual_inversion", "artefact_size", "LoRA's artefact is larger than Textual Inversion's."),
    )
    found = []
    for more, less, cost, text in wanted:
        label, unit = COSTS[cost]
        measured = f"{label.lower()}: {NAMES[more]} less {NAMES[less]}, paired by subject and n"
        asked = Asked(f"{more}_{cost}_above_{less}", text, source, "methods", unit, measured)
        if more not in methods or less not in methods:
            found.append(asked.missing(f"runs by {NAMES[more]} and {NAMES[less]} are needed"))
            continue
        difference = paired(methods[more], methods[less], cost_of(cost))
        found.append(exact(asked.above(difference, [*methods[more], *methods[less]]), difference))
    return found


def exact(claim: Claim, interval: Interval) -> Claim:
    """A difference that is the same for every subject, such as of file sizes, is known without an interval."""
    if interval.over != NEITHER or interval.subjects < 2 or not math.isfinite(interval.value):
        return claim
    value = interval.value
    note = "the same for every subject"
    verdict = HOLDS if value > 0 else NOT
    return replace(claim, verdict=verdict, low=value, high=value, smallest=0.0, note=note)


def methods_claims(pool: Pool) -> list[Claim]:
    """In the order of the sources."""
    return [*paper_claims(pool), hypernetworks_bad(pool), *cost_claims(pool)]
