"""One sentence that answers each study's question from its table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from diffusion_lab.studies.bootstrap import PROMPTS, Interval, mean_over
from diffusion_lab.studies.claim import HOLDS, NOT, Claim
from diffusion_lab.studies.claims_counts import DECENT
from diffusion_lab.studies.claims_dynamics import dynamics_claims
from diffusion_lab.studies.claims_methods import NAMES, axes_of
from diffusion_lab.studies.claims_models import models_of
from diffusion_lab.studies.measures import prompts_of
from diffusion_lab.studies.pool import Pool, by_count, over_subjects, paired
from diffusion_lab.studies.run import StudyRun
from diffusion_lab.studies.slope import stop_slope
from diffusion_lab.studies.table import Table

NOT_YET = "No answer yet: {}."


def answer(study: str, table: Table) -> str:
    """The answer to the question of a study by its name; for another name, what the dynamics are."""
    pool = Pool(table)
    if not table.runs:
        return NOT_YET.format("no run has been evaluated")
    sentence = ANSWERS.get(study, dynamics)(pool)
    unfinished = len(table.unfinished) + len(table.pending)
    if not unfinished:
        return sentence
    return f"{sentence} {unfinished} run{' is' if unfinished == 1 else 's are'} unfinished."


def dynamics(pool: Pool) -> str:
    runs = pool.runs()
    found = {claim.id: claim for claim in dynamics_claims(pool)}
    parts = [
        _moved(
            "similarity of the faces", found["similarity_of_faces_rises"], "still rises", "no longer rises"
        ),
        _moved("aesthetics", found["aesthetics_falls"], "falls", "does not fall"),
        _moved("diversity", found["diversity_falls"], "falls", "does not fall"),
    ]
    return f"{_where(runs)}, {'; '.join(parts)}.{_caveat(runs)}"


def _moved(name: str, claim: Claim, yes: str, no: str) -> str:
    if claim.effect is None or claim.low is None or claim.high is None:
        return f"{name} has too few evaluations"
    up = "rises" in claim.id
    sure = claim.verdict == HOLDS or (claim.low > 0 if up else claim.high < 0)
    against = claim.verdict == NOT or (claim.high < 0 if up else claim.low > 0)
    said = yes if sure else no if against else "may or may not change"
    when = " in the second half of the run" if up else " over the run"
    return f"{name} {said}{when} ({_span(claim.effect, claim.low, claim.high, signed=True)})"


def counts(pool: Pool) -> str:
    """The fewest photos whose score is within `DECENT` of the best number's, for certain."""
    runs = pool.runs()
    _, numbers, values = by_count(runs, pool.score_at_stop)
    means = {n: mean_over(values[:, :, i], 0).value for i, n in enumerate(numbers)}
    tried = [n for n in numbers if math.isfinite(means[n])]
    if len(tried) < 2:
        return NOT_YET.format("runs with several numbers of photos are needed")
    best = max(tried, key=lambda n: means[n])
    losses = {
        n: mean_over(values[:, :, numbers.index(best)] - values[:, :, numbers.index(n)], prompts_of(runs))
        for n in tried
        if n != best
    }
    return f"{_where(runs)}, {_enough(tried, best, losses)}.{_caveat(runs)}"


def _enough(tried: Sequence[int], best: int, losses: Mapping[int, Interval]) -> str:
    """`losses`: the score of the best number less that of each other one."""
    enough = [n for n in losses if n < best and losses[n].known and losses[n].high < DECENT]
    if enough:
        return (
            f"{min(enough)} photos are enough: at the recommended stop the loss against the best number, {best}, is "
            f"{_interval(losses[min(enough)])} of the scaled score"
        )
    fewer = [n for n in tried if n < best]
    if not fewer:
        return _fewest(best, losses)
    if all(losses[n].known and losses[n].low > 0 for n in fewer):
        return f"{best} photos are best of {_listed(tried)}: any fewer are worse"
    nearest = min(fewer, key=lambda n: losses[n].value)
    return (
        f"{best} photos score best of {_listed(tried)}, but one cannot tell whether {nearest} are enough: with these "
        f"the loss is {_interval(losses[nearest])} of the scaled score"
    )


def _fewest(best: int, losses: Mapping[int, Interval]) -> str:
    """The fewest photos tried score best: whether any more could gain `DECENT`."""
    open_ones = [n for n in losses if not losses[n].known or -losses[n].low >= DECENT]
    if not open_ones:
        return f"{best} photos, the fewest tried, are enough: they score best at the recommended stop"
    nearest = min(open_ones, key=lambda n: losses[n].value)
    return (
        f"{best} photos, the fewest tried, score best, but one cannot tell whether {nearest} are better: with these "
        f"the loss is {_interval(losses[nearest])} of the scaled score"
    )


def rules(pool: Pool) -> str:
    """Steps per photo by gender."""
    runs = pool.runs()
    slope = stop_slope(pool.table, runs)
    if slope is None:
        return NOT_YET.format("no run has a recommended stop")
    text = f"{_where(runs)}, the recommended stop is {_interval(slope.interval, 3)} steps per photo"
    own = [(g, stop_slope(pool.table, runs, gender)) for g, gender in (("women", "woman"), ("men", "man"))]
    parts = [f"{name} {_interval(found.interval, 3)}" for name, found in own if found is not None]
    text += f" ({', '.join(parts)})" if len(parts) == 2 else ""
    text += "; the rules say 100, 120 for men, 150 for women"
    if slope.censored:
        text += f"; in {slope.censored:.0%} of the runs the last evaluation is best, so that it may be more"
    if slope.at_start:
        text += f"; in {slope.at_start:.0%} the untouched model is best"
    return f"{text}.{_caveat(runs)}"


def models(pool: Pool) -> str:
    for newer, older in (("sd21", "sd15"), ("sd20", "sd15"), ("miniature_v", "miniature")):
        first, second = models_of(pool, newer, older)
        if not first or not second:
            continue
        difference = paired(first, second, pool.score_at_stop)
        said = _compared(
            difference, f"{newer} scores higher than {older}", f"{newer} scores lower than {older}"
        )
        return f"At the recommended stop {said}: {_interval(difference, signed=True)}.{_caveat(first)}"
    return NOT_YET.format("runs of two base models by the same method are needed")


def methods(pool: Pool) -> str:
    """Which method has the highest image similarity, and which the highest prompt similarity."""
    by_method, image, prompt = axes_of(pool)
    by_method = by_method if len(by_method) > 1 else {}
    if not by_method:
        return NOT_YET.format("runs by several methods are needed")
    parts = []
    for metric, label in ((image, "image similarity"), (prompt, "prompt similarity")):
        means = {m: over_subjects(runs, pool.at_stop(metric)) for m, runs in by_method.items()}
        known = {m: mean for m, mean in means.items() if math.isfinite(mean.value)}
        if len(known) < 2:
            return NOT_YET.format(f"runs by several methods with {metric} are needed")
        first, second = sorted(known, key=lambda m: known[m].value, reverse=True)[:2]
        lead = paired(by_method[first], by_method[second], pool.at_stop(metric))
        sure = "" if lead.known and lead.low > 0 else "not certainly "
        parts.append(
            f"{NAMES.get(first, first)} is {sure}highest on {label} ({metric} {_interval(known[first])}, "
            f"next {NAMES.get(second, second)})"
        )
    runs = [run for some in by_method.values() for run in some]
    return f"{_where(runs)}, {'; '.join(parts)}.{_caveat(runs)}"


def learning_rates(pool: Pool) -> str:
    """The learning rate with the highest score of each method."""
    rates: dict[str, dict[Any, list[StudyRun]]] = {}
    for run in pool.table.runs:
        rate = run.settings.get("method.learning_rate")
        if rate is not None:
            rates.setdefault(run.method, {}).setdefault(rate, []).append(run)
    parts = [_best(pool, method, "learning rate", some) for method, some in rates.items() if len(some) > 1]
    return f"{'; '.join(parts)}." if parts else NOT_YET.format("runs with several learning rates are needed")


def prior(pool: Pool) -> str:
    """What prior preservation does to drift of the class and to similarity."""
    weights: dict[object, list[StudyRun]] = {}
    for run in pool.table.runs:
        weight = run.settings.get("method.prior_weight")
        if weight is not None:
            weights.setdefault(float(weight), []).append(run)
    if 0.0 not in weights or len(weights) < 2:
        return NOT_YET.format("runs with and without prior preservation are needed")
    most = max(float(str(weight)) for weight in weights)
    parts = []
    for metric in ("class_drift", "similarity"):
        difference = paired(weights[most], weights[0.0], pool.at_stop(metric))
        if difference.subjects:
            said = _compared(difference, f"raises {metric}", f"lowers {metric}", f"may not change {metric}")
            parts.append(f"{said} ({_interval(difference, signed=True)})")
    if not parts:
        return NOT_YET.format("the runs have no subject in common")
    return f"Prior preservation with weight {most:g} {' and '.join(parts)}, at the recommended stop.{_caveat(weights[most])}"


def _best(pool: Pool, method: str, name: str, some: Mapping[Any, list[StudyRun]]) -> str:
    means = {value: over_subjects(runs, pool.score_at_stop).value for value, runs in some.items()}
    ranked = sorted((v for v in means if math.isfinite(means[v])), key=lambda v: means[v], reverse=True)
    if len(ranked) < 2:
        return f"{NAMES.get(method, method)}: fewer than two values of the {name} have a score"
    lead = paired(some[ranked[0]], some[ranked[1]], pool.score_at_stop)
    sure = "is" if lead.known and lead.over != PROMPTS and lead.low > 0 else "is, not certainly,"
    return f"{NAMES.get(method, method)}: {name} {ranked[0]} {sure} best of {_listed(sorted(ranked, key=lambda v: (isinstance(v, str), v)))}"


ANSWERS: Mapping[str, Callable[[Pool], str]] = {
    "dynamics": dynamics,
    "counts": counts,
    "optimum": counts,
    "rules": rules,
    "stop": rules,
    "models": models,
    "methods": methods,
    "learning_rates": learning_rates,
    "prior": prior,
}


def _compared(interval: Interval, more: str, less: str, unclear: str = "") -> str:
    if interval.known and interval.over != PROMPTS and interval.low > 0:
        return more
    if interval.known and interval.over != PROMPTS and interval.high < 0:
        return less
    return unclear or "one cannot tell the two apart"


def _where(runs: Sequence[StudyRun]) -> str:
    models = ", ".join(dict.fromkeys(run.model for run in runs)) or "no model"
    subjects = len({run.subject for run in runs})
    return f"On {models} ({subjects} subject{'s' * (subjects != 1)})"


def _caveat(runs: Sequence[StudyRun]) -> str:
    """Said of a single subject."""
    return " One subject only: the intervals are over prompts." if len({r.subject for r in runs}) == 1 else ""


def _listed(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))


def _interval(interval: Interval, digits: int = 2, *, signed: bool = False) -> str:
    if not interval.known:
        return f"{interval.value:.{digits}g} (no interval)"
    return _span(interval.value, interval.low, interval.high, signed=signed)


def _span(value: float, low: float, high: float, *, signed: bool = False) -> str:
    """ "0.12 (0.05 to 0.20)", with three decimals below 10, else one."""
    digits = 3 if max(abs(value), abs(low), abs(high)) < 10 else 1
    sign = "+" if signed else ""
    return f"{value:{sign}.{digits}f} ({low:{sign}.{digits}f} to {high:{sign}.{digits}f})"
