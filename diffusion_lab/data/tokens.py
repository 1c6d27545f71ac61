"""How a tokenizer encodes the identifier and the prompts, checked before anything else is loaded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diffusion_lab.families import of
from diffusion_lab.families.vocabulary import RARE
from diffusion_lab.records import PromptSet, Subject, UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CLIP_LIMIT = 77  # tokens with start and end, of every CLIP text encoder


@dataclass(frozen=True, slots=True)
class TokenReport:
    """Lengths count the start and end tokens, as the limit does."""

    identifier: str
    pieces: tuple[str, ...]  # of the identifier; "</w>" marks the end of a word
    ids: tuple[int, ...]
    unknown: bool  # the tokenizer has no piece for some part of the identifier
    limit: int
    instance_prompt: str
    instance_length: int
    longest: tuple[str, int]  # id and length of the longest prompt
    too_long: tuple[tuple[str, int], ...]  # ids and lengths of truncated prompts
    learnt: bool = False  # the identifier is a new word of the tokenizer, with one vector per id

    @property
    def kind(self) -> str:
        """ "one rare piece", "one ordinary piece", "2 ordinary pieces", "2 pieces, 1 of them rare".

        Ordinary pieces already have a meaning for the model; a rare one, as DreamBooth recommends, hardly any.
        """
        if self.learnt:
            return f"a new word of {len(self.ids)} vector{'s' if len(self.ids) > 1 else ''}"
        rare = sum(number >= RARE for number in self.ids)
        if len(self.pieces) == 1:
            return f"one {'rare' if rare else 'ordinary'} piece"
        return f"{len(self.pieces)} " + (f"pieces, {rare} of them rare" if rare else "ordinary pieces")

    def __str__(self) -> str:
        lines = [
            f"identifier {self.identifier!r}: {self.kind}"
            + ("" if self.learnt else f" ({' '.join(self.pieces)})")
            + (", in part unknown to this tokenizer" if self.unknown else ""),
            f"instance prompt {self.instance_prompt!r}: {self.instance_length} of {self.limit} tokens",
            f"longest prompt {self.longest[0]}: {self.longest[1]} of {self.limit} tokens",
        ]
        if self.too_long:
            lines.append("too long: " + ", ".join(f"{name} ({length})" for name, length in self.too_long))
        return "\n".join(lines)


def limit_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """The maximum number of tokens, including start and end; CLIP's for a tokenizer saved without a limit."""
    limit = int(tokenizer.model_max_length)
    return limit if limit <= 10_000 else CLIP_LIMIT


def length_of(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    """Tokens of `text` without truncation, including start and end."""
    # verbose=False: texts that are too long are reported here.
    return len(tokenizer(text, truncation=False, verbose=False)["input_ids"])


def token_report(tokenizer: PreTrainedTokenizerBase, subject: Subject, prompts: PromptSet) -> TokenReport:
    """Report on the subject's identifier and every prompt; needs only the tokenizer."""
    limit = limit_of(tokenizer)
    lengths = dict(_lengths(tokenizer, subject.instance_prompt, prompts))
    by_id = {prompt.id: lengths[prompt.id] for prompt in prompts}
    longest = max(by_id, key=lambda name: by_id[name])
    ids = tokenizer(subject.identifier, add_special_tokens=False, verbose=False)["input_ids"]
    pieces = tokenizer.convert_ids_to_tokens(ids)
    unknown = tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids
    return TokenReport(
        identifier=subject.identifier,
        pieces=tuple(pieces),
        ids=tuple(ids),
        unknown=unknown,
        limit=limit,
        instance_prompt=subject.instance_prompt,
        instance_length=lengths["instance prompt"],
        longest=(longest, by_id[longest]),
        learnt=subject.identifier in getattr(tokenizer, "learnt_words", ()),
        too_long=tuple((name, length) for name, length in lengths.items() if length > limit),
    )


def check_lengths(tokenizer: PreTrainedTokenizerBase, instance_prompt: str, prompts: PromptSet) -> None:
    """Raises UserError if the instance prompt, a prompt or the negative prompt would be truncated."""
    limit = limit_of(tokenizer)
    too_long = [
        (name, length) for name, length in _lengths(tokenizer, instance_prompt, prompts) if length > limit
    ]
    if not too_long:
        return
    name, length = too_long[0]
    more = f", and {len(too_long) - 1} more" if len(too_long) > 1 else ""
    if name == "instance prompt":
        remedy = "shorten data.identifier or data.class_noun"
    elif name == "negative prompt":
        remedy = "shorten prompts.negative"
    else:
        text = next(prompt.text for prompt in prompts if prompt.id == name)
        remedy = f"shorten it or leave it out (prompts.path): {_start(text)!r}"
    raise UserError(
        f"prompts: {name}{more}: {length} tokens, start and end included, but the model reads {limit}: "
        f"the rest would be cut off silently; {remedy}"
    )


def check_texts(pipe: Any, prompts: PromptSet, instance_prompt: str = "") -> None:
    """Raises UserError if a prompt would be truncated. If there is a T5, CLIP's cut is the pipeline's own way."""
    family = of(pipe)
    if family.t5 is None or getattr(pipe, family.t5) is None:
        check_lengths(pipe.tokenizer, instance_prompt, prompts)
        return
    named = [
        ("instance prompt", instance_prompt, "shorten data.identifier or data.class_noun"),
        ("negative prompt", prompts.negative, "shorten prompts.negative"),
        *((one.id, one.text, "shorten it or leave it out (prompts.path)") for one in prompts),
    ]
    for name, text, remedy in named:
        try:
            family.tokenize(pipe, text)
        except ValueError as error:
            raise UserError(f"prompts: {name}: {error}; {remedy}") from error


def _lengths(
    tokenizer: PreTrainedTokenizerBase, instance_prompt: str, prompts: PromptSet
) -> Iterable[tuple[str, int]]:
    yield "instance prompt", length_of(tokenizer, instance_prompt)
    yield "negative prompt", length_of(tokenizer, prompts.negative)
    for prompt in prompts:
        yield prompt.id, length_of(tokenizer, prompt.text)


def _start(text: str, most: int = 60) -> str:
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"
