"""The recommended stop in words: two plain sentences, then what was assumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Optimizer steps per picture that practitioners quote; the second and third of the original study.
RULES_OF_THUMB: Mapping[str, int] = {"in general": 100, "for men": 120, "for women": 150}


@dataclass(frozen=True, slots=True, kw_only=True)
class Moves:
    """What `explain` speaks of. All sequences run along `steps`."""

    steps: Sequence[int]
    best: int  # position of the recommended step
    weights: Mapping[str, float]
    values: Mapping[str, Sequence[float | None]]  # of the weighted metrics
    halves: Mapping[str, Sequence[float | None]]  # half 95 % intervals of the values
    scores: Sequence[float | None]
    half_widths: Sequence[float | None]  # half 95 % intervals of the scores
    n_images: int | None
    class_noun: str | None
    notes: Sequence[str]


def explain(moves: Moves) -> str:
    """What moved up to the recommended step and after it; how sure the choice is; then notes."""
    rules = rules_of_thumb(moves.n_images, moves.class_noun)
    sentences = [_movement(moves), _certainty(moves), *moves.notes]
    if rules and moves.steps[-1] >= min(rules.values()) / 2:
        said = ", ".join(f"{step} {words}" for words, step in rules.items())
        sentences.append(f"Rules of thumb for {moves.n_images} pictures: {said}.")
    return " ".join(sentences)


def rules_of_thumb(n_images: int | None, class_noun: str | None) -> dict[str, int]:
    """Steps by whom the rule is for: 100 n, and 120 n for men, 150 n for women where the noun says so."""
    if not n_images:
        return {}
    nouns = {"man": ["for men"], "woman": ["for women"]}.get(class_noun or "", [])
    return {words: RULES_OF_THUMB[words] * n_images for words in ["in general", *nouns]}


def _movement(m: Moves) -> str:
    here, last = m.best, len(m.steps) - 1
    step = m.steps[here]
    if last == 0:
        return f"Step {step} is the only evaluation, so there is nothing to choose from."
    after = _changes(m, here, last, past=False) if here < last else ""
    if here == 0:
        return (
            f"Keep step {step}, where the run begins: no later evaluation weighs better, for until step"
            f" {m.steps[last]} {after}."
        )
    before = _changes(m, 0, here, past=True)
    if not after:
        return f"Stop at step {step}, the last: from step {m.steps[0]} to there {before}."
    return (
        f"Stop at step {step}: from step {m.steps[0]} to there {before}; after it, until step"
        f" {m.steps[last]}, {after}."
    )


def _changes(m: Moves, start: int, end: int, *, past: bool) -> str:
    up, down, flat = ("rose", "fell", "stayed near") if past else ("rises", "falls", "stays near")
    moved = "went" if past else "goes"
    parts: list[str] = []
    for name in m.weights:
        a, b = m.values[name][start], m.values[name][end]
        if a is None or b is None:
            parts.append(f"{spoken(name)} has no value")
            continue
        noise = ((m.halves[name][start] or 0.0) ** 2 + (m.halves[name][end] or 0.0) ** 2) ** 0.5
        if f"{a:.2f}" == f"{b:.2f}":
            parts.append(f"{spoken(name)} {flat} {b:.2f}")
        elif abs(b - a) <= noise:
            parts.append(f"{spoken(name)} {moved} from {a:.2f} to {b:.2f}, within its error")
        else:
            parts.append(f"{spoken(name)} {up if b > a else down} from {a:.2f} to {b:.2f}")
    return listed(parts)


def _certainty(m: Moves) -> str:
    if len(m.steps) == 1:
        return "Train with more evaluations to see where to stop."
    close = [m.steps[i] for i in _neighbours(m) if _as_good(m, i)]
    last_is_best = m.best == len(m.steps) - 1
    if last_is_best:
        start = "The last evaluation is the best, so training longer may be better still"
    elif m.half_widths[m.best] is None:
        return "How sure this is cannot be told from one image an evaluation."
    else:
        start = ""
    if close:
        verb = "scores" if len(close) == 1 else "score"
        word = "step" if len(close) == 1 else "steps"
        near = f"{word} {listed([str(s) for s in close])} {verb} within its 95 % interval"
        end = f"{near}, so " + (
            "the gain of the last steps is not certain"
            if last_is_best
            else "the optimum is flat and the exact step matters little"
        )
    elif m.half_widths[m.best] is None:
        end = ""
    else:
        alone = len(_neighbours(m)) == 1
        end = "the evaluation beside it scores clearly less" if alone else "its neighbours score clearly less"
    if not start:
        end = end[0].upper() + end[1:]
    return "; ".join(part for part in (start, end) if part) + "."


def _neighbours(m: Moves) -> list[int]:
    return [i for i in (m.best - 1, m.best + 1) if 0 <= i < len(m.steps)]


def _as_good(m: Moves, i: int) -> bool:
    best, score, half = m.scores[m.best], m.scores[i], m.half_widths[m.best]
    return best is not None and score is not None and half is not None and best - score <= half


def spoken(name: str) -> str:
    """`similarity_heldout` -> "similarity (heldout)", `clip_text` -> "clip text"."""
    head, _, tail = name.partition("_")
    return f"{head} ({tail})" if tail == "heldout" else name.replace("_", " ")


def listed(parts: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
