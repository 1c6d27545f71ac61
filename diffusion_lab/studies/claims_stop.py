"""Claims of 000 on the length of training ("So when should I stop training my model?")."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from diffusion_lab.analysis.reason import RULES_OF_THUMB
from diffusion_lab.studies.bootstrap import Floats, difference_of, mean_over
from diffusion_lab.studies.claim import HOLDS, MANY_CENSORED, NOT, Asked, Claim, doubtful
from diffusion_lab.studies.measures import prompts_of
from diffusion_lab.studies.pool import Pool, by_count, jackknifed, over_subjects, slope_on_count
from diffusion_lab.studies.quantities import peak_step
from diffusion_lab.studies.run import StudyRun
from diffusion_lab.studies.slope import rounding, slope_interval, slopes
from diffusion_lab.studies.stops import rule_of, scores_of

SOURCE = "000, So when should I stop training my model?"
COUNTS = "000, What's the impact of changing the number of input images?"
NEAR = 0.25  # a rule of thumb is near the truth if the slope is within 25 % of it
LINEAR = (2 / 3, 1.5)  # near-linear: the exponent of n; twice the images then need 1.6 to 2.8 times the steps
RULES = {None: "in general", "man": "for men", "woman": "for women"}  # gender -> name in RULES_OF_THUMB


def near_rule(pool: Pool, gender: str | None) -> Claim:
    rule = RULES_OF_THUMB[RULES[gender]]
    whom = "" if gender is None else f" {RULES[gender]}"
    claim = Asked(
        f"rule_{rule}",
        f"The best number of steps{whom} is near {rule} times the number of photos.",
        SOURCE,
        "rules",
        "steps per photo",
        f"slope of the recommended stop on n through the origin{whom}; near: within 25 %",
    )
    runs = [run for run in pool.runs() if gender is None or run.gender == gender]
    if not runs:
        return claim.missing(f"no runs{whom}")
    slope = slope_interval(pool.table, runs)
    low, high = rule * (1 - NEAR), rule * (1 + NEAR)
    found = claim.within(slope, runs, low, high, note=_conditions(pool, runs))
    too_long = found.verdict == NOT and found.low is not None and found.low > high
    return found if too_long else _unless_censored(pool, runs, found)


def women_longer(pool: Pool) -> Claim:
    claim = Asked(
        "women_longer",
        "Women need more steps per photo than men (150 against 120).",
        SOURCE,
        "rules",
        "steps per photo",
        "slope of the recommended stop on n through the origin, women less men",
    )
    runs = pool.runs()
    groups = [slopes(pool.table, [run for run in runs if run.gender == g]) for g in ("woman", "man")]
    if not all(group.shape[1] for group in groups):
        return claim.missing("subjects of both genders are needed")
    found = claim.above(
        difference_of(groups[0], groups[1], prompts_of(runs)), runs, note=_conditions(pool, runs)
    )
    return _unless_censored(pool, runs, found)


def rules_by_gender_better(pool: Pool) -> Claim:
    claim = Asked(
        "rules_by_gender",
        "120 n for men and 150 n for women work better than 100 n.",
        SOURCE,
        "rules",
        "of the scaled score",
        "weighted score at 120 n or 150 n less that at 100 n, between evaluations by interpolation",
    )
    runs = [run for run in pool.runs() if run.gender and run.steps[-1] >= _gender_rule(run)]
    if not runs:
        return claim.missing("no run is as long as 120 (men) or 150 (women) steps per photo")
    return claim.above(over_subjects(runs, partial(_rule_gain, pool)), runs)


def _gender_rule(run: StudyRun) -> int:
    return RULES_OF_THUMB[RULES[run.gender]] * run.n_images


def _rule_gain(pool: Pool, run: StudyRun) -> Floats | None:
    rule = rule_of(run, pool.infos)
    if rule is None:
        return None
    scores = scores_of(run, pool.infos, rule)
    own = _gender_rule(run)
    general = RULES_OF_THUMB["in general"] * run.n_images
    gain: Floats = _between(run.steps, scores, own) - _between(run.steps, scores, general)
    return gain


def _between(steps: Sequence[int], curves: Floats, at: float) -> Floats:
    """Curves [rows, steps] at a step between two evaluations."""
    right = min(max(1, int(np.searchsorted(steps, at))), len(steps) - 1)
    part = (at - steps[right - 1]) / (steps[right] - steps[right - 1])
    value: Floats = (1 - part) * curves[:, right - 1] + part * curves[:, right]
    return value


def near_linear(pool: Pool) -> Claim:
    claim = Asked(
        "near_linear",
        "The number of photos prolongs training in a near-linear fashion.",
        "000, How do the metrics change during fine-tuning?",
        "counts",
        "exponent of n",
        "slope of the logarithm of the mean recommended stop on that of n; 1: proportional to n",
    )
    runs = pool.runs()
    _, counts, values = by_count(runs, pool.stop_step)
    if len(counts) < 2 or counts[0] < 1:
        return claim.missing("runs with several numbers of photos are needed")
    kept = values[:, np.isfinite(values[0]).all(axis=1)]
    if not kept.shape[1] or not kept[0].any():
        return claim.missing("every recommended stop is step 0, so that there is no length to compare")
    least = min(step for run in runs for step in run.steps if step > 0) / 2  # a mean of 0 has no logarithm
    logs = np.log(counts) - np.log(counts).mean()

    def exponent(means: Floats) -> Floats:
        found: Floats = np.log(np.maximum(means, least)) @ (logs / (logs**2).sum())
        return found

    means = np.maximum(kept[0].mean(axis=0), least)
    grid = float(((logs / (logs**2).sum() / means) ** 2).sum()) * rounding(runs)
    interval = mean_over(jackknifed(exponent, kept), prompts_of(runs)).at_least(grid)
    found = claim.within(interval, runs, *LINEAR, note=_conditions(pool, runs))
    return _unless_censored(pool, runs, found)


def stop_grows(pool: Pool) -> Claim:
    claim = Asked(
        "stop_grows",
        "The best length of training grows with the number of photos.",
        COUNTS,
        "counts",
        "steps per photo",
        "slope of the recommended stop on n, with a constant",
    )
    runs = pool.runs()
    slope = slope_on_count(runs, pool.stop_step).at_least(_grid(runs))
    found = claim.above(slope, runs, note=_conditions(pool, runs))
    return found if found.verdict == HOLDS else _unless_censored(pool, runs, found)


def extreme_later(pool: Pool, metric: str, sign: int) -> Claim:
    name = "maximum" if sign > 0 else "minimum"
    claim = Asked(
        f"{metric}_{name}_later",
        f"With more photos it takes longer to reach the {name} of {metric.replace('_of_faces', '')}.",
        COUNTS,
        "counts",
        "steps per photo",
        f"slope on n of the step with the {name} of {metric}",
    )
    runs = pool.runs(metric)

    def step(run: StudyRun) -> Floats | None:
        return peak_step(run, metric, sign)

    found = claim.above(slope_on_count(runs, step).at_least(_grid(runs)), runs)
    ends = [float(at[0]) == run.steps[-1] for run in runs if (at := step(run)) is not None]
    late = sum(ends) / len(ends) if ends else 0.0
    if found.verdict != HOLDS and late > MANY_CENSORED and found.effect is not None:
        return doubtful(
            found, f"{late:.0%} of the runs have it at their last evaluation; longer runs: steps.total"
        )
    return found


def _grid(runs: Sequence[StudyRun]) -> float:
    """The part of a slope on n that evaluating only every so many steps adds to its variance."""
    counts = np.array(sorted({run.n_images for run in runs}), dtype=np.float64)
    squares = float(((counts - counts.mean()) ** 2).sum()) if len(counts) else 0.0
    return rounding(runs) / squares if squares else 0.0


def _conditions(pool: Pool, runs: Sequence[StudyRun]) -> str:
    """What the number of steps depends on beside the number of photos."""
    sizes = sorted({f"{run.settings.get('steps.batch_size')}" for run in runs} - {"None"})
    rates = sorted({f"{run.settings.get('method.learning_rate')}" for run in runs} - {"None"})
    stops = [stop for run in runs if (stop := pool.stop(run)) is not None]
    parts = [
        f"batches of {', '.join(sizes)}" if sizes else "",
        f"learning rate {', '.join(rates)}" if rates else "",
    ]
    untouched = sum(stop.at_start for stop in stops)
    parts.append(f"the untouched model is best in {untouched} of {len(stops)} runs" if untouched else "")
    return ", ".join(part for part in parts if part)


def _unless_censored(pool: Pool, runs: Sequence[StudyRun], found: Claim) -> Claim:
    share = pool.censored(runs)
    if share <= MANY_CENSORED or found.effect is None:
        return found
    return doubtful(
        found, f"in {share:.0%} of the runs the last evaluation is best, so that the best step may be later"
    )


def stop_claims(pool: Pool) -> list[Claim]:
    """In the order of the text."""
    return [
        near_linear(pool),
        near_rule(pool, None),
        near_rule(pool, "man"),
        near_rule(pool, "woman"),
        women_longer(pool),
        rules_by_gender_better(pool),
        stop_grows(pool),
        extreme_later(pool, "similarity_of_faces", 1),
        extreme_later(pool, "aesthetics", -1),
        extreme_later(pool, "diversity", -1),
    ]
