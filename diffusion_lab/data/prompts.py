"""Prompt sets: the fixed prompts that every evaluation of a run, and of the runs it is compared with, uses.

A set's own negative prompt is empty except in `miniature_negative`, `portrait_negative` and in user tables that have
one. A negative prompt by itself changes similarity and aesthetics, so the default sets do not use one.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import logging
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion_lab.data.prompt_files import Line, stream_lines
from diffusion_lab.data.stratified_choice import seeded_random, stratified
from diffusion_lab.data.tables import PORTRAIT, Table, read_table
from diffusion_lab.data.templates import (
    DREAMBOOTH_LIVE,
    DREAMBOOTH_OBJECTS,
    LOGO,
    PAPER,
    PROBES,
    Template,
)
from diffusion_lab.miniature import phrases
from diffusion_lab.records import Prompt, PromptSet, UserError
from diffusion_lab.values.checks import closest
from diffusion_lab.values.word_match import contains_word, replace_words

if TYPE_CHECKING:
    from diffusion_lab.config.schema import Prompts

log = logging.getLogger(__name__)

IDENTIFIER, WITH, WITHOUT = "identifier", "with", "without"  # a slot of sets that have both, and its phrases


def load_prompts(config_prompts: Prompts, *, identifier: str, class_noun: str) -> PromptSet:
    """The configured set, filled with the subject's words.

    Depends only on `prompts.seed`. In `miniature`, the first n prompts of a larger set are the set of n; of a list,
    the drawn n are a subset of the drawn n + 1. Ids do not change either. If the set has fewer than n prompts,
    `images_per_prompt` is increased. Raises UserError for an unknown set or a file that cannot be used.
    """
    make = SETS.get(config_prompts.name)
    if make is None:
        raise UserError(
            f"prompts.name={config_prompts.name}: must be one of {', '.join(SETS)}"
            f"{closest(config_prompts.name, SETS)}"
        )
    if config_prompts.n < 1:
        raise UserError(f"prompts.n={config_prompts.n}: at least 1 prompt is needed")
    prompts, own_negative = make(config_prompts, identifier, class_noun)
    negative = own_negative if config_prompts.negative is None else config_prompts.negative
    made = PromptSet(
        name=config_prompts.name, prompts=prompts, negative=negative, sha256=prompts_sha256(prompts, negative)
    )
    if len(made) < config_prompts.n:
        log.info(
            "prompts.n=%d, but the set %s has %d prompts: using %d images per prompt",
            config_prompts.n, made.name, len(made), images_per_prompt(config_prompts, made),
        )  # fmt: skip
    return made


def images_per_prompt(config_prompts: Prompts, prompts: PromptSet) -> int:
    """Images per prompt, so that there are at least `prompts.n` times `prompts.images_per_prompt` in all."""
    return math.ceil(config_prompts.n / len(prompts)) * config_prompts.images_per_prompt


def without_identifier(prompt: Prompt) -> bool:
    """True for prompts of the class alone: their images do not show the subject."""
    return prompt.slots.get(IDENTIFIER) == WITHOUT


def prompts_sha256(prompts: Sequence[Prompt], negative: str) -> str:
    """Of ids, texts, slots and the negative prompt."""
    content = [[p.id, p.text, p.plain, dict(p.slots)] for p in prompts]
    return hashlib.sha256(json.dumps([content, negative], ensure_ascii=False).encode()).hexdigest()


# --- the miniature's phrases ----------------------------------------------------------------------------


def _miniature(config: Prompts, identifier: str, class_noun: str) -> tuple[tuple[Prompt, ...], str]:
    chosen = stratified(prompt_slots(), config.n, config.seed)
    prompts = tuple(
        Prompt(
            id=_id(i),
            text=phrases.caption(class_noun, by_slot, subject=f"{identifier} {class_noun}"),
            plain=phrases.caption(class_noun, by_slot, subject=with_article(class_noun)),
            slots={slot: phrase.text for slot, phrase in by_slot.items()},
        )
        for i, by_slot in enumerate(chosen)
    )
    return prompts, ""


def _miniature_negative(config: Prompts, identifier: str, class_noun: str) -> tuple[tuple[Prompt, ...], str]:
    return _miniature(config, identifier, class_noun)[0], phrases.NEGATIVE_PROMPT


def prompt_slots() -> dict[str, tuple[phrases.Phrase, ...]]:
    """`phrases.SLOTS` without the phrases for degraded pictures, which are used only in negative prompts."""
    return {
        slot: tuple(phrase for phrase in options if phrase not in phrases.SPOILT)
        for slot, options in phrases.SLOTS.items()
    }


# --- a template and a table of phrases -----------------------------------------------------------------


def _portrait(config: Prompts, identifier: str, class_noun: str) -> tuple[tuple[Prompt, ...], str]:
    return _from_table(PORTRAIT, config, identifier, class_noun), ""


def _portrait_negative(config: Prompts, identifier: str, class_noun: str) -> tuple[tuple[Prompt, ...], str]:
    return _from_table(PORTRAIT, config, identifier, class_noun), PORTRAIT.negative


def _table(config: Prompts, identifier: str, class_noun: str) -> tuple[tuple[Prompt, ...], str]:
    if not config.path:
        raise UserError("prompts.path is not set: give a YAML file with template and slots")
    table = read_table(Path(config.path).expanduser())
    return _from_table(table, config, identifier, class_noun), table.negative


def _from_table(table: Table, config: Prompts, identifier: str, class_noun: str) -> tuple[Prompt, ...]:
    hands = stratified(table.slots, config.n, config.seed)
    texts = [table.text(chosen) for chosen in hands]
    return tuple(
        Prompt(
            id=_id(i),
            text=fill(text, f"{identifier} {class_noun}"),
            plain=plain_prompt(text, identifier, class_noun),
            slots=chosen,
        )
        for i, (text, chosen) in enumerate(zip(texts, hands, strict=True))
    )


# --- lists ----------------------------------------------------------------------------------------------


def _templates(templates: tuple[Template, ...]) -> Make:
    def make(config: Prompts, identifier: str, class_noun: str) -> tuple[tuple[Prompt, ...], str]:
        lines = [Line(template, {slot: phrase}) for slot, phrase, template in templates]
        return _from_lines(lines, config, identifier, class_noun), ""

    return make


def _paper(config: Prompts, identifier: str, class_noun: str) -> tuple[tuple[Prompt, ...], str]:
    """Every prompt with the identifier, then the same ones without it. For n below 20, whole pairs, always including
    the plain prompt. An odd number is rounded up to whole pairs.
    """
    edits = list(enumerate(PAPER))
    if config.n < 2 * len(PAPER):
        generator = seeded_random("prompts", config.seed)
        drawn = sorted(edits[1:], key=lambda _: generator.random())[: (config.n + 1) // 2 - 1]
        edits = [edits[0], *sorted(drawn)]
    both = ((WITH, f"{identifier} {class_noun}", 0), (WITHOUT, class_noun, len(PAPER)))
    prompts = tuple(
        Prompt(
            id=_id(first + number),
            text=fill(template, subject),
            plain=fill(template, class_noun),
            slots={"edit": edit, IDENTIFIER: with_identifier},
        )
        for with_identifier, subject, first in both
        for number, (edit, template) in edits
    )
    return prompts, ""


def _file(config: Prompts, identifier: str, class_noun: str) -> tuple[tuple[Prompt, ...], str]:
    if not config.path:
        raise UserError("prompts.path is not set: give a text file (one prompt per line) or a CSV file")
    lines = stream_lines(Path(config.path).expanduser())
    prompts = _from_lines(lines, config, identifier, class_noun)
    other_prompts = [
        p.text
        for p in prompts
        if not (contains_word(identifier, p.text) or contains_word(class_noun, p.text))
    ]
    if other_prompts:
        log.warning(
            "prompts.path: %d prompts name neither %r nor %r, so they cannot show the subject; write "
            "{subject} where it belongs: %s",
            len(other_prompts), identifier, class_noun, "; ".join(other_prompts[:3]),
        )  # fmt: skip
    return prompts, ""


def _from_lines(
    lines: Iterable[Line], config: Prompts, identifier: str, class_noun: str
) -> tuple[Prompt, ...]:
    """All lines, or n drawn so that smaller draws are subsets of larger ones, in the order of the lines.

    Every line gets a random number, and the n smallest are drawn: only n lines are in memory at a time.
    """
    generator = seeded_random("prompts", config.seed)
    drawn: list[tuple[float, int, Line]] = []  # the largest number first; positions are unique
    for i, line in enumerate(lines):
        entry = (-generator.random(), -i, line)
        if len(drawn) < config.n:
            heapq.heappush(drawn, entry)
        else:
            heapq.heappushpop(drawn, entry)
    numbered = sorted(((-place, line) for _, place, line in drawn), key=lambda pair: pair[0])
    return tuple(
        Prompt(
            id=_id(i),
            text=fill(line.text, f"{identifier} {class_noun}"),
            plain=plain_prompt(line.text, identifier, class_noun),
            slots=line.slots,
        )
        for i, line in numbered
    )


def plain_prompt(template: str, identifier: str, class_noun: str) -> str:
    """The prompt with the class noun in place of the subject."""
    if "{subject}" in template:
        # "a photo of {subject}" needs an article, which an identifier does not.
        bare = re.compile(r"(?i)(^|\b(?:of|with|by|from|like|for|and|near|beside|in|on|at)\s+)\{subject\}")
        articled = bare.sub(lambda match: match[1] + with_article(class_noun), template)
        return fill(articled, class_noun)
    return replace_words(template, [f"{identifier} {class_noun}", identifier], class_noun)


def fill(template: str, words: str) -> str:
    """`template` with `words` for `{subject}`; "a {subject}" becomes "an ..." if the word needs it."""
    if words[:1].casefold() in "aeiou":
        template = re.sub(r"\b([Aa]) \{subject\}", r"\1n {subject}", template)
    return template.replace("{subject}", words)


def with_article(noun: str) -> str:
    """ "a dog", "an apple"; by the first letter."""
    return f"{'an' if noun[:1].casefold() in 'aeiou' else 'a'} {noun}"


def _id(number: int) -> str:
    return f"p{number:03d}"


Make = Callable[["Prompts", str, str], tuple[tuple[Prompt, ...], str]]

SETS: dict[str, Make] = {
    "miniature": _miniature,
    "miniature_negative": _miniature_negative,
    "portrait": _portrait,
    "portrait_negative": _portrait_negative,
    "table": _table,
    "dreambooth_objects": _templates(DREAMBOOTH_OBJECTS),
    "dreambooth_live": _templates(DREAMBOOTH_LIVE),
    "paper": _paper,
    "logo": _templates(LOGO),
    "probes": _templates(PROBES),
    "file": _file,
}
"""By name: functions from the config, the identifier and the class noun to the prompts and the set's negative prompt."""
