"""New words for a model: entries of the tokenizer that only the word itself reaches, and rows for them.

A tokenizer's own added tokens are found anywhere in a text, inside of other words too (`lin` in "smiling"); they are
lowered with the text, while diffusers' expansion of a word of several vectors is not; and a text that is a piece of
the vocabulary (`pho`) is no new token at all: its row would be overwritten. So the entries added here have names that
no text contains. The tokenizer writes them in the place of the word wherever it stands as a word (`values.word_match`), in
any form that it reads alike: in any letter case where it lowers texts. Every other text keeps its tokens.

Files say the word as `name_in_diffusers` has it: what plain diffusers, which knows added tokens only, can work with.
"""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

from diffusion_lab.values.word_match import without_overlaps, word_spans

if TYPE_CHECKING:
    from tokenizers import NormalizedString, Tokenizer
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

_ENTRY = "\U0010f5c7{}\U0010f5c8"  # between characters for private use, of Unicode's last plane


class Words:
    """What a tokenizer has learnt: by word, as the tokenizer reads it, the entries to write in its place."""

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend
        self._entries: dict[str, str] = {}

    def __contains__(self, word: str) -> bool:
        return normalised(self._backend, word) in self._entries

    def add(self, word: str, count: int) -> list[int]:
        """Adds the entries of a word, `count` of them; returns their numbers. It must be a new one."""
        from tokenizers import AddedToken

        known = normalised(self._backend, word)
        if not known or known in self._entries:
            raise ValueError(f"{word!r} is {'known already' if known else 'nothing to this tokenizer'}")
        taken = set(self._backend.get_vocab().values())
        first = sum(map(_count, self._entries.values()))
        names = [_ENTRY.format(number) for number in range(first, first + count)]
        self._backend.add_tokens([AddedToken(name, normalized=False, special=False) for name in names])
        ids = [number for name in names if (number := self._backend.token_to_id(name)) is not None]
        if len(ids) != count or len(set(ids) - taken) != count:
            raise ValueError(f"the tokenizer has no free numbers for {word!r}: its vocabulary has gaps")
        self._entries[known] = "".join(names)
        return ids

    def write(self, text: str) -> str:
        """`text` with the entries of every learnt word in its place; untouched where none stands in it."""
        from tokenizers import NormalizedString

        read = NormalizedString(text)
        if self._backend.normalizer is not None:
            self._backend.normalizer.normalize(read)
        found = [
            (start, end, number)
            for number, word in enumerate(self._entries)
            for start, end in word_spans(read.normalized, word)
        ]
        entries = list(self._entries.values())
        parts, at = list[str](), 0
        for start, end, number in without_overlaps(found):
            first = _originally(read, 0, start)
            parts += [text[at:first], entries[number]]
            at = first + _originally(read, start, end)
        return "".join([*parts, text[at:]])


def teach(tokenizer: PreTrainedTokenizerBase, word: str, count: int) -> list[int]:
    """Makes `tokenizer` read `word` as `count` new tokens, whichever way it is called; returns their numbers.

    ValueError where it has learnt the word before.
    """
    held: Any = tokenizer
    if not hasattr(held, "learnt_words"):
        held.learnt_words = Words(held.backend_tokenizer)
        held._encode_plus = types.MethodType(_encode_plus, held)
    ids: list[int] = held.learnt_words.add(word, count)
    return ids


def learn(tokenizer: Any, text_encoder: Any, word: str, vectors: Tensor) -> list[int]:
    """Teaches the tokenizer `word` and gives its tokens the rows of `vectors` [n, d]; returns their numbers.

    Every other row of the embedding stays as it is. ValueError where the width is not the text encoder's, or the
    word has been learnt before.
    """
    import torch

    weight = text_encoder.get_input_embeddings().weight
    if vectors.ndim != 2 or vectors.shape[1] != weight.shape[1]:
        raise ValueError(
            f"the vectors of {word!r} have the shape {list(vectors.shape)}, and the model's text encoder reads "
            f"vectors of {weight.shape[1]} numbers"
        )
    ids = teach(tokenizer, word, len(vectors))
    # A text encoder may have more rows than its tokenizer has entries: never fewer than before.
    text_encoder.resize_token_embeddings(max(len(weight), max(ids) + 1), mean_resizing=False)
    grown = text_encoder.get_input_embeddings().weight
    with torch.no_grad():
        grown[ids] = vectors.to(grown)
    _pool_at_the_end(text_encoder, tokenizer)
    return ids


def _pool_at_the_end(text_encoder: Any, tokenizer: Any) -> None:
    """CLIP's pooled vector is that of the end token.

    Of configs that call the end token 2, as the published ones do, transformers takes the highest number instead,
    and the new entries have higher ones.
    """
    for module in text_encoder.modules():
        if getattr(module, "eos_token_id", None) == 2 and tokenizer.eos_token_id is not None:
            module.eos_token_id = tokenizer.eos_token_id


def name_in_diffusers(backend: Tokenizer, word: str) -> str:
    """What plain diffusers can call `word` by: as the tokenizer reads it, in <> where that is a piece it has.

    It finds a word's further vectors by the lowered text, and refuses a word that is in the vocabulary.
    """
    name = normalised(backend, word)
    return f"<{name}>" if backend.token_to_id(name) is not None else name


def normalised(backend: Tokenizer, text: str) -> str:
    """`text` as the tokenizer reads it: composed, lowered if it does so, single spaces, none around it."""
    read: str = text if backend.normalizer is None else backend.normalizer.normalize_str(text)
    return read.strip()


def _originally(read: NormalizedString, start: int, end: int) -> int:
    """How many characters of the text became the normalised ones from `start` to `end`."""
    part = read[start:end] if end > start else None
    return 0 if part is None else len(part.original)


def _count(entries: str) -> int:
    return entries.count(_ENTRY[0])


def _encode_plus(self: Any, text: Any, text_pair: Any = None, *rest: Any, **options: Any) -> Any:
    """The tokenizer's own, of the written text: all its ways of being called come through here."""
    return type(self)._encode_plus(self, _written(self, text), _written(self, text_pair), *rest, **options)


def _written(tokenizer: Any, text: Any) -> Any:
    if isinstance(text, str):
        return tokenizer.learnt_words.write(text)
    if isinstance(text, list | tuple):
        return type(text)(_written(tokenizer, one) for one in text)
    return text
