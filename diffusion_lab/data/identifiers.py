"""Checks the identifier before anything slow is loaded, with the model's tokenizer only.

It must be visible, differ from the class noun and the words around it, and, if a method learns it as a new word, be
new. `tokenizers` reads a tokenizer in a tenth of a second; transformers would take seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion_lab.data.tokens import CLIP_LIMIT
from diffusion_lab.families.vocabulary import RARE, check_new_word, is_ordinary, read_tokenizer, unknown_id
from diffusion_lab.models.which_family import which_family
from diffusion_lab.records import PromptSet, UserError
from diffusion_lab.values.word_match import contains_word, has_visible_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from diffusion_lab.config.schema import Config


def learns_word(config: Config) -> bool:
    """Does the method make a new word of the identifier?"""
    return config.method.traits.learns_word


def check_identifier(config: Config, noun: str, prompts: PromptSet) -> list[str]:
    """Warnings; UserError for an identifier that cannot work with any tokenizer."""
    identifier, learnt = config.data.identifier, learns_word(config)
    key = f"data.identifier={identifier!r}"
    if not has_visible_text(identifier):
        raise UserError(f"{key}: has no visible character; give a word, such as customcls")
    if learnt and len(identifier.split()) != 1:
        joined = "-".join(identifier.split())
        raise UserError(
            f"{key}: method={config.method.name} learns one word, without spaces; set data.identifier={joined}"
        )
    warnings = []
    if contains_word(identifier, noun):
        warnings.append(
            f"{key}: is a word of the class noun {noun!r}, so the prompts with and without it are the same"
        )
    elif others := [prompt.plain for prompt in prompts if contains_word(identifier, prompt.plain)]:
        warnings.append(
            f"{key}: is an ordinary word of {_some(others)}, where it would refer to the subject too"
        )
    if contains_word(identifier, prompts.negative):
        warnings.append(f"{key}: is in the negative prompt, which would suppress the subject")
    if warnings and learnt:
        raise UserError(f"{warnings[0]}; set data.identifier to a new word, such as customcls")
    return warnings


def check_tokens(
    config: Config, model: Path, prompts: PromptSet, noun: str, captions: Mapping[Path, str]
) -> list[str]:
    """Warnings about how the tokenizer in the folder `model` encodes the identifier.

    UserError if it cannot be learned, if the model would read nothing or a control token in its place, or if the
    instance prompt, a prompt or a caption has too many tokens, including the new word's vectors.
    """
    from diffusion_lab.data.subjects import instance_prompt

    tokenizer = read_tokenizer(model / "tokenizer")
    if tokenizer is None:  # the job checks again after loading the tokenizer
        return []
    identifier = config.data.identifier
    warnings = identifier_warnings(tokenizer, identifier, learnt=learns_word(config))
    named = [
        ("the instance prompt", instance_prompt(identifier, noun)),
        ("the negative prompt", prompts.negative),
        *((f"the caption {file}", text) for file, text in captions.items()),
        *((prompt.id, prompt.text) for prompt in prompts),
    ]
    t5 = which_family(config.model).t5
    if t5 is None or not (model / t5).is_dir():  # T5 reads more than CLIP; the job checks with its tokenizer
        _check_lengths(tokenizer, named, identifier, config.method.traits.vectors)
    return warnings


def identifier_warnings(tokenizer: Tokenizer, identifier: str, *, learnt: bool) -> list[str]:
    """Warnings about the identifier's tokens; UserError if they cannot work."""
    key = f"data.identifier={identifier!r}"
    control = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
    if found := [content for content in control if content in identifier]:
        raise UserError(f"{key}: {found[0]} is a control token of the model's tokenizer; give a word")
    ids = tokenizer.encode(identifier, add_special_tokens=False).ids
    if learnt:
        check_new_word(tokenizer, identifier)
        return _in_diffusers(tokenizer, identifier)
    if not ids:
        raise UserError(f"{key}: the model's tokenizer reads nothing there; give a word, such as customcls")
    if unknown_id(tokenizer) in ids:
        return [
            f"{key}: the model's tokenizer does not know it, in whole or in part, and uses the token for unknown words"
        ]
    if all(is_ordinary(tokenizer, word) for word in identifier.split()):
        return [
            f"{key}: is an ordinary word for this model, and its meaning will change in all prompts; a rare "
            "word, such as customcls, avoids this"
        ]
    return []


def _in_diffusers(tokenizer: Tokenizer, word: str) -> list[str]:
    """Where plain diffusers, which has only added tokens, must call a learnt word otherwise or breaks other words."""
    from diffusion_lab.families.learnt_words import name_in_diffusers

    name = name_in_diffusers(tokenizer, word)
    warnings = []
    if name != word:
        warnings.append(
            f"data.identifier={word!r}: plain diffusers finds the learned word as {name} only; use this name there"
        )
    inside = [
        piece.removesuffix("</w>")
        for piece, number in tokenizer.get_vocab().items()
        if number < RARE and name in piece and piece.endswith("</w>") and piece != f"{name}</w>"
    ]
    if name.isalpha() and (longest := max(inside, key=lambda one: (len(one), one), default="")):
        warnings.append(
            f"data.identifier={word!r}: plain diffusers would find it inside of other words too, such as {longest!r} "
            f"(this program finds it only as a whole word); {word}cls, for example, would be safe there"
        )
    return warnings


def _check_lengths(
    tokenizer: Tokenizer, named: Iterable[tuple[str, str]], identifier: str, vectors: int
) -> None:
    """UserError for the first text that is too long. `vectors`: of the identifier as a new word; 0 if it is not one."""
    written = _identity
    if vectors:
        from diffusion_lab.families.learnt_words import Words

        words = Words(tokenizer)
        words.add(identifier, vectors)
        written = words.write
    for name, text in named:
        length = len(tokenizer.encode(written(text)).ids)
        if length > CLIP_LIMIT:
            fewer = " or set a smaller method.vectors" if vectors > 1 else ""
            raise UserError(
                f"prompts: {name} has {length} tokens with start and end, but the model reads {CLIP_LIMIT}; "
                f"shorten it{fewer}: {text[:60]!r}"
            )


def _identity(text: str) -> str:
    return text


def _some(texts: list[str]) -> str:
    more = f" (and of {len(texts) - 1} more)" if len(texts) > 1 else ""
    return f"the prompt {texts[0]!r}{more}"
