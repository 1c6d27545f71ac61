"""New words for a model: tokenizer entries that only the word itself produces, and embedding rows for them.

A tokenizer's own added tokens are found anywhere in a text, even inside other words (`lin` in "smiling").
They are lowercased with the text, while diffusers' expansion of a word with several vectors is not. A word
that is already a piece of the vocabulary (`pho`) does not become a new token: its row would be overwritten.
The entries added here therefore have names that occur in no text. The tokenizer replaces the word by them
wherever it is a separate word (`values.word_match`), in any form that it normalises to the same text: in any
letter case if it lowercases texts. All other texts keep their tokens.

Files store the word as returned by `name_in_diffusers`, which works with plain diffusers and its added
tokens.
"""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any

from diffusion_lab.values.word_match import without_overlaps, word_spans

if TYPE_CHECKING:
    from tokenizers import NormalizedString, Tokenizer
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

_ENTRY = "\U0010f5c7{}\U0010f5c8"  # between private-use characters of Unicode's last plane


class Words:
    """The words that a tokenizer has learned: each normalised word with the entries that replace it."""

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend
        self._entries: dict[str, str] = {}

    def __contains__(self, word: str) -> bool:
        return normalised(self._backend, word) in self._entries

    def add(self, word: str, count: int) -> list[int]:
        """Adds `count` entries for a new word; returns their ids."""
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
        """`text` with every learned word replaced by its entries; unchanged if it contains none."""
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
    """Makes `tokenizer` read `word` as `count` new tokens, however it is called; returns their ids.

    ValueError if the word has been learned before.
    """
    held: Any = tokenizer
    if not hasattr(held, "learnt_words"):
        held.learnt_words = Words(held.backend_tokenizer)
        held._encode_plus = types.MethodType(_encode_plus, held)
    ids: list[int] = held.learnt_words.add(word, count)
    return ids


def learn(tokenizer: Any, text_encoder: Any, word: str, vectors: Tensor) -> list[int]:
    """Teaches the tokenizer `word` and assigns the rows of `vectors` [n, d] to its tokens; returns their ids.

    All other rows of the embedding are unchanged. ValueError if the width differs from the text encoder's, or
    the word has been learned before.
    """
    import torch

    weight = text_encoder.get_input_embeddings().weight
    if vectors.ndim != 2 or vectors.shape[1] != weight.shape[1]:
        raise ValueError(
            f"the vectors of {word!r} have the shape {list(vectors.shape)}, and the model's text encoder reads "
            f"vectors of {weight.shape[1]} numbers"
        )
    ids = teach(tokenizer, word, len(vectors))
    # A text encoder may have more rows than its tokenizer has entries; never shrink it.
    text_encoder.resize_token_embeddings(max(len(weight), max(ids) + 1), mean_resizing=False)
    grown = text_encoder.get_input_embeddings().weight
    with torch.no_grad():
        grown[ids] = vectors.to(grown)
    _pool_at_the_end(text_encoder, tokenizer)
    return ids


def _pool_at_the_end(text_encoder: Any, tokenizer: Any) -> None:
    """Keeps CLIP's pooled vector at the end token.

    For configs with end token id 2, like the published ones, transformers uses the highest id instead,
    and the new entries have higher ids.
    """
    for module in text_encoder.modules():
        if getattr(module, "eos_token_id", None) == 2 and tokenizer.eos_token_id is not None:
            module.eos_token_id = tokenizer.eos_token_id


def name_in_diffusers(backend: Tokenizer, word: str) -> str:
    """The name of `word` in plain diffusers: normalised, in <> if it is a piece of the vocabulary.

    diffusers finds a word's further vectors by the lowercased text, and rejects a word that is in the
    vocabulary.
    """
    name = normalised(backend, word)
    return f"<{name}>" if backend.token_to_id(name) is not None else name


def normalised(backend: Tokenizer, text: str) -> str:
    """`text` as normalised by the tokenizer: composed, possibly lowercased, with single spaces, stripped."""
    read: str = text if backend.normalizer is None else backend.normalizer.normalize_str(text)
    return read.strip()


def _originally(read: NormalizedString, start: int, end: int) -> int:
    """Number of characters of the original text that became the normalised ones from `start` to `end`."""
    part = read[start:end] if end > start else None
    return 0 if part is None else len(part.original)


def _count(entries: str) -> int:
    return entries.count(_ENTRY[0])


def _encode_plus(self: Any, text: Any, text_pair: Any = None, *rest: Any, **options: Any) -> Any:
    """Calls the tokenizer's own method with the replaced text; all ways of calling the tokenizer end here."""
    return type(self)._encode_plus(self, _written(self, text), _written(self, text_pair), *rest, **options)


def _written(tokenizer: Any, text: Any) -> Any:
    if isinstance(text, str):
        return tokenizer.learnt_words.write(text)
    if isinstance(text, list | tuple):
        return type(text)(_written(tokenizer, one) for one in text)
    return text
