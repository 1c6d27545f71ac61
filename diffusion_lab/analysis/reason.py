"""The reason for the recommended step: two sentences, then the assumptions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Optimizer steps per picture recommended by practitioners; the second and third from the original study.
RULES_OF_THUMB: Mapping[str, int] = {"in general": 100, "for men": 120, "for women": 150}


FLAT = 0.1  # of the scaled score: smaller differences matter little
TOO_FEW = {1: "One image per evaluation is", 2: "Two images per evaluation are"}


@dataclass(frozen=True, slots=True)
class MetricChange:
    """A metric at two evaluations, and the 95 % limits of the second value minus the first; None if unknown."""

    start: float | None
    end: float | None
    limits: tuple[float, float] | None
    steady: bool = True  # every evaluation in between is near `end` too


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasonInputs:
    """The input of `explain`."""

    steps: Sequence[int]
    best: int  # index of the recommended step
    scores: Sequence[float | None]  # along the steps
    before: Mapping[str, MetricChange]  # of the weighted metrics, from the first step to the recommended one
    after: Mapping[str, MetricChange]  # from there to the last step
    gaps: Mapping[
        int, tuple[float, float] | None
    ]  # neighbour's index -> 95 % limits of how much lower its score is
    without_interval: Mapping[
        str, str
    ]  # metrics without one at the recommended step or its neighbours, and why
    images: int  # per evaluation
    within_one_prompt: bool  # the intervals refer to its noise only
    n_images: int | None
    class_noun: str | None
    notes: Sequence[str]


def reason_text(moves: ReasonInputs) -> str:
    """The changes up to the recommended step and after it, the certainty of the choice, then notes."""
    rules = rules_of_thumb(moves.n_images, moves.class_noun)
    sentences = [_movement(moves), _certainty(moves), *moves.notes]
    if rules and moves.steps[-1] >= min(rules.values()) / 2:
        said = ", ".join(f"{step} {words}" for words, step in rules.items())
        sentences.append(f"Rules of thumb for {moves.n_images} pictures: {said}.")
    return " ".join(sentences)


def rules_of_thumb(n_images: int | None, class_noun: str | None) -> dict[str, int]:
    """Rules of thumb, by subject: 100 n steps, 120 n for men, 150 n for women if the noun matches."""
    if not n_images:
        return {}
    nouns = {"man": ["for men"], "woman": ["for women"]}.get(class_noun or "", [])
    return {words: RULES_OF_THUMB[words] * n_images for words in ["in general", *nouns]}


def _movement(m: ReasonInputs) -> str:
    here, last = m.best, len(m.steps) - 1
    step = m.steps[here]
    if last == 0:
        return f"Step {step} is the only evaluation, so there is nothing to choose from."
    if sum(score is not None for score in m.scores) == 1:
        return f"Step {step} is the only evaluation with a score, so there is nothing to choose from."
    after = _changes(m, m.after, here, last, past=False) if here < last else ""
    if here == 0:
        return (
            f"Keep step {step}, the start of the run: no later evaluation has a better score, because until step"
            f" {m.steps[last]} {after}."
        )
    before = _changes(m, m.before, 0, here, past=True)
    if not after:
        return f"Stop at step {step}, the last: from step {m.steps[0]} to there {before}."
    return (
        f"Stop at step {step}: from step {m.steps[0]} to there {before}; after it, until step"
        f" {m.steps[last]}, {after}."
    )


def _changes(
    m: ReasonInputs, changes: Mapping[str, MetricChange], start: int, end: int, *, past: bool
) -> str:
    up, down, flat = ("rose", "fell", "stayed near") if past else ("rises", "falls", "stays near")
    moved, back = ("went", "came back to") if past else ("goes", "comes back to")
    parts: list[str] = []
    for name, change in changes.items():
        a, b = change.start, change.end
        if a is None or b is None:
            wanting = [m.steps[i] for i, value in ((start, a), (end, b)) if value is None]
            parts.append(f"{display_name(name)} has no value at {_steps(wanting)}")
        elif f"{a:.2f}" == f"{b:.2f}":
            parts.append(f"{display_name(name)} {flat if change.steady else back} {b:.2f}")
        elif change.limits is None:
            parts.append(f"{display_name(name)} {moved} from {a:.2f} to {b:.2f}, with an unknown error")
        elif change.limits[0] <= 0 <= change.limits[1]:
            parts.append(f"{display_name(name)} {moved} from {a:.2f} to {b:.2f}, within its error")
        else:
            parts.append(f"{display_name(name)} {up if b > a else down} from {a:.2f} to {b:.2f}")
    return join_with_and(parts)


def _certainty(m: ReasonInputs) -> str:
    """What the intervals imply about the evaluations next to the recommended one."""
    if len(m.steps) == 1:
        return "Use more evaluations to find out where to stop."
    if m.images in TOO_FEW:
        return (
            f"{TOO_FEW[m.images]} too few for advice: this step had the best score for these images, and with other images"
            " another step may be best."
        )
    parts = ["The last evaluation is the best, so training longer may be better still"] * (
        m.best == len(m.steps) - 1
    )
    kinds: dict[str, list[int]] = {}
    for i in m.gaps:
        kinds.setdefault(_kind(m, i), []).append(i)
    parts += [
        _neighbours_text(m, kind, kinds[kind])
        for kind in ("close", "less", "unknown", "nothing")
        if kind in kinds
    ]
    parts[0] = parts[0][0].upper() + parts[0][1:]
    text = "; ".join(parts) + "."
    if m.within_one_prompt:
        text += " All images have the same prompt, so these errors cover the noise only: with other prompts another step may be best."
    return text


def _kind(m: ReasonInputs, i: int) -> str:
    gap = m.gaps[i]
    if m.scores[i] is None:
        return "nothing"
    if gap is None:
        return "unknown"
    return "less" if gap[0] > 0 else "close"


def _neighbours_text(m: ReasonInputs, kind: str, neighbours: Sequence[int]) -> str:
    steps = [m.steps[i] for i in neighbours]
    one = len(steps) == 1
    if kind == "nothing":
        return f"{_steps(steps)} {'has' if one else 'have'} no score"
    last = m.best == len(m.steps) - 1
    little = all(gap is not None and gap[1] <= FLAT for gap in (m.gaps[i] for i in neighbours))
    if kind == "less":
        so = "the last steps gained little" if last else "the exact step matters little"
        but = f", but at most {FLAT:g} less, so {so}" if little else ""
        if len(m.gaps) > len(steps):
            return f"{_steps(steps)} scores clearly less{but}"
        beside = "the evaluation beside it scores" if one else "its neighbours score"
        return f"{beside} clearly less{but}"
    if kind == "unknown":
        which = [
            f"{display_name(name)} has no interval" + (f" ({why})" if why else "")
            for name, why in m.without_interval.items()
        ]
        return f"how sure this is against {_steps(steps)} cannot be told: {join_with_and(which or ['there is no interval'])}"
    near = f"{_steps(steps)} {'scores' if one else 'score'} within the error of the difference"
    if last:
        return f"{near}, so the gain of the last steps is not certain"
    if little:
        return f"{near}, at most {FLAT:g} below it, so the optimum is flat and the exact step matters little"
    return f"{near}, so these images do not tell which is best"


def _steps(steps: Sequence[int]) -> str:
    return f"{'step' if len(steps) == 1 else 'steps'} {join_with_and([str(step) for step in steps])}"


def display_name(name: str) -> str:
    """`similarity_heldout` -> "similarity (heldout)", `clip_text` -> "clip text"."""
    head, _, tail = name.partition("_")
    return f"{head} ({tail})" if tail == "heldout" else name.replace("_", " ")


def join_with_and(parts: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
