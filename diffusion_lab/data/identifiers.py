"""Checks the identifier before anything slow is loaded, with the model's tokenizer only.

It must be visible, differ from the class noun and the words around it, and, if a method learns it as a new word, be
new. `tokenizers` reads a tokenizer in a tenth of a second; transformers would take seconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion_lab.data.tokens import CLIP_LIMIT, RARE
from diffusion_lab.data.words import stands_in, visible
from diffusion_lab.interfaces import PromptSet, UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from diffusion_lab.config import Config

RARE_WORDS = frozenset({"sks", "ohwx", "zwx"})
"""Identifiers recommended by DreamBooth guides: single pieces of some vocabularies, but without meaning for the models."""
_SPLIT = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def learns_word(config: Config) -> bool:
    """Whether the method learns the identifier as a new word."""
    return hasattr(config.method, "token")


def check_identifier(config: Config, noun: str, prompts: PromptSet) -> list[str]:
    """Warnings; UserError for an identifier that cannot work with any tokenizer."""
    identifier, learnt = config.data.identifier, learns_word(config)
    key = f"data.identifier={identifier!r}"
    if not visible(identifier):
        raise UserError(f"{key}: has no visible character; give a word, such as customcls")
    if learnt and len(identifier.split()) != 1:
        joined = "-".join(identifier.split())
        raise UserError(
            f"{key}: method={config.method.name} learns one word, without spaces; set data.identifier={joined}"
        )
    told = []
    if stands_in(identifier, noun):
        told.append(
            f"{key}: is a word of the class noun {noun!r}, so the prompts with and without it are the same"
        )
    elif others := [prompt.plain for prompt in prompts if stands_in(identifier, prompt.plain)]:
        told.append(f"{key}: is an ordinary word of {_some(others)}, where it would refer to the subject too")
    if stands_in(identifier, prompts.negative):
        told.append(f"{key}: stands in the negative prompt, which would suppress the subject")
    if told and learnt:
        raise UserError(f"{told[0]}; set data.identifier to a new word, such as customcls")
    return told


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
    vectors = getattr(config.method, "vectors", 1) if learns_word(config) else 0
    _check_lengths(tokenizer, named, identifier, vectors)
    return warnings


def check_new_word(tokenizer: Tokenizer, word: str) -> None:
    """UserError if the vocabulary contains `word`: it has a meaning in all other texts."""
    if _ordinary(tokenizer, word):
        candidates = (f"{word}cls", f"{word}-{word}", "customcls")
        better = next(one for one in candidates if not _ordinary(tokenizer, one))
        raise UserError(
            f"data.identifier={word}: is a word of the model's vocabulary, and the new word would replace it in "
            f"every prompt; a new one is needed, such as data.identifier={better}"
        )


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
    if _unknown(tokenizer) in ids:
        return [
            f"{key}: the model's tokenizer does not know it, in whole or in part, and uses the token for unknown words"
        ]
    if all(_ordinary(tokenizer, word) for word in identifier.split()):
        return [
            f"{key}: is an ordinary word for this model, and its meaning will change in all prompts; a rare "
            "word, such as customcls, avoids this"
        ]
    return []


def read_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer of a model folder without a length limit, from tokenizer.json or CLIP's two files; None if missing."""
    from tokenizers import Tokenizer

    whole = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(whole)) if whole.is_file() else _clip_tokenizer(folder)
    except Exception as error:  # `tokenizers` raises no specific errors
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"model.path: the tokenizer in {folder} is damaged ({reason}); copy or download the model again"
        ) from error
    if tokenizer is None:
        return None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _clip_tokenizer(folder: Path) -> Tokenizer | None:
    """Built as by `transformers.CLIPTokenizer` from the same files; None if they are not CLIP's."""
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    start, end = "<|startoftext|>", "<|endoftext|>"
    if not ((folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()):
        return None
    vocabulary = json.loads((folder / "vocab.json").read_text("utf-8"))
    if not {start, end} <= set(vocabulary):
        return None
    lines = (folder / "merges.txt").read_text("utf-8").split("\n")
    merges = [
        (pair[0], pair[1]) for line in lines if len(pair := line.split()) == 2 and line[:8] != "#version"
    ]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token=end, end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.add_special_tokens([AddedToken(one, normalized=False, special=True) for one in (start, end)])
    tokenizer.post_processor = processors.RobertaProcessing(
        (end, vocabulary[end]), (start, vocabulary[start]), False, False
    )
    return tokenizer


def _ordinary(tokenizer: Tokenizer, word: str) -> bool:
    """Whether it is one piece that already has a meaning for the model; see `tokens.RARE`."""
    ids = tokenizer.encode(word, add_special_tokens=False).ids
    known = len(ids) == 1 and ids[0] != _unknown(tokenizer)
    return known and ids[0] < RARE and word.casefold() not in RARE_WORDS


def _unknown(tokenizer: Tokenizer) -> int | None:
    name = getattr(tokenizer.model, "unk_token", None)
    return None if name is None else tokenizer.token_to_id(name)


def _in_diffusers(tokenizer: Tokenizer, word: str) -> list[str]:
    """Warnings: plain diffusers, which only has added tokens, needs another name for a learned word or splits other words."""
    from diffusion_lab.models.learnt_words import name_in_diffusers

    name = name_in_diffusers(tokenizer, word)
    told = []
    if name != word:
        told.append(
            f"data.identifier={word!r}: plain diffusers finds the learned word as {name} only; use this name there"
        )
    inside = [
        piece.removesuffix("</w>")
        for piece, number in tokenizer.get_vocab().items()
        if number < RARE and name in piece and piece.endswith("</w>") and piece != f"{name}</w>"
    ]
    if name.isalpha() and (longest := max(inside, key=lambda one: (len(one), one), default="")):
        told.append(
            f"data.identifier={word!r}: plain diffusers would find it inside of other words too, such as {longest!r} "
            f"(this program finds it only as a whole word); {word}cls, for example, would be safe there"
        )
    return told


def _check_lengths(
    tokenizer: Tokenizer, named: Iterable[tuple[str, str]], identifier: str, vectors: int
) -> None:
    """UserError for the first text that is too long. `vectors`: of the identifier as a new word; 0 if it is not one."""
    written = _identity
    if vectors:
        from diffusion_lab.models.learnt_words import Words

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
