"""Looks up words in a tokenizer's vocabulary with `tokenizers`, which loads faster than transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion_lab.records import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# CLIP's pieces are numbered by falling frequency (the order of its merges): the last fifth of 49,408 is rare,
# also "sks".
RARE = 40_000
RARE_WORDS = frozenset({"sks", "ohwx", "zwx"})
"""Identifiers from DreamBooth guides: pieces of some vocabularies, but without meaning to the models."""
_SPLIT = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def check_new_word(tokenizer: Tokenizer, word: str) -> None:
    """UserError if `word` is an ordinary word of the vocabulary: it already has a meaning in other texts."""
    if is_ordinary(tokenizer, word):
        candidates = (f"{word}cls", f"{word}-{word}", "customcls")
        better = next(one for one in candidates if not is_ordinary(tokenizer, one))
        raise UserError(
            f"data.identifier={word}: is a word of the model's vocabulary, and the new word would take its place in "
            f"every prompt; a new one is needed, such as data.identifier={better}"
        )


def read_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer of a model folder without limits, from tokenizer.json or CLIP's two files, or None."""
    from tokenizers import Tokenizer

    whole = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(whole)) if whole.is_file() else _clip_tokenizer(folder)
    except Exception as error:  # `tokenizers` raises no more specific exception
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
    """Built from the same files as `transformers.CLIPTokenizer`; None if they are not CLIP's."""
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


def is_ordinary(tokenizer: Tokenizer, word: str) -> bool:
    """Whether the word is a single piece that already has a meaning to the model; see `RARE`."""
    ids = tokenizer.encode(word, add_special_tokens=False).ids
    known = len(ids) == 1 and ids[0] != unknown_id(tokenizer)
    return known and ids[0] < RARE and word.casefold() not in RARE_WORDS


def unknown_id(tokenizer: Tokenizer) -> int | None:
    name = getattr(tokenizer.model, "unk_token", None)
    return None if name is None else tokenizer.token_to_id(name)
