"""Finds words in texts, by one rule for prompts, captions, checks and the tokenizer.

Neither end of a word may be adjacent to a letter, digit, mark or underscore: `lin` is not in "smiling", `x` not in
"x_1", but in "x, x-ray and (x)". The end of "man's" or "don't" is not a word. An end that is itself a symbol
(`<cat-toy>`, an emoji) needs no boundary. Accents, joiners and skin tones after the last character belong to it.
Scripts without spaces need spaces (or punctuation) around the word. Texts are compared in Unicode's composed form (NFC)
and optionally without regard to case.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

_JOINERS = frozenset("\u200c\u200d")  # zero width (non-)joiner: one written word, one emoji of several people
_ENDINGS = frozenset(
    {"s", "t", "re", "ve", "m", "ll", "d"}
)  # 's and similar suffixes, as split off by CLIP's tokenizer
_SKIN_TONES = range(0x1F3FB, 0x1F400)


def word_spans(text: str, word: str) -> list[tuple[int, int]]:
    """Start and end of every occurrence of `word` as a word, from left to right, without overlap.

    Both are compared unchanged: normalise them first if case or form may differ.
    """
    return _matches(text, re.compile(re.escape(word))) if word else []


def without_overlaps(found: Iterable[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """The (start, end, which) that do not overlap: the leftmost, and of these the longest."""
    kept: list[tuple[int, int, int]] = []
    for span in sorted(found, key=lambda one: (one[0], -one[1])):
        if not kept or span[0] >= kept[-1][1]:
            kept.append(span)
    return kept


def contains_word(word: str, text: str) -> bool:
    """Is `word` in `text` as a word, in any letter case and Unicode form?

    >>> contains_word("lin", "Lin, smiling"), contains_word("lin", "a smiling man")
    (True, False)
    """
    return bool(_any_case_matches(nfc(text), word))


def replace_words(text: str, words: Sequence[str], by: str) -> str:
    """`text` with `by` in place of each of `words` (the longest if several start at one place), in any letter case.

    White space in a word matches any white space. If the text changes, it is returned in composed form.

    >>> replace_words("a photo of Sks  dog, skswear", ["sks dog", "sks"], "dog")
    'a photo of dog, skswear'
    """
    composed = nfc(text)
    matches = [
        (start, end, number)
        for number, word in enumerate(words)
        for start, end in _any_case_matches(composed, word)
    ]
    if not matches:
        return text
    parts, at = list[str](), 0
    for start, end, _ in without_overlaps(matches):
        parts += [composed[at:start], by]
        at = end
    return "".join([*parts, composed[at:]])


def nfc(text: str) -> str:
    """Composed form, as used by CLIP tokenizers."""
    return unicodedata.normalize("NFC", text)


def has_visible_text(text: str) -> bool:
    """Whether `text` has a visible character. White space, control and zero width characters are not."""
    return any(unicodedata.category(one)[0] not in "CZ" for one in text)


def _any_case_matches(text: str, word: str) -> list[tuple[int, int]]:
    """As `spans`, in any letter case, with any white space where the word has some."""
    parts = nfc(word).split()
    return _matches(text, re.compile(r"\s+".join(map(re.escape, parts)), re.IGNORECASE)) if parts else []


def _matches(text: str, pattern: re.Pattern[str]) -> list[tuple[int, int]]:
    found, at = list[tuple[int, int]](), 0
    while match := pattern.search(text, at):
        free = _is_separate(text, *match.span())
        if free:
            found.append(match.span())
        at = match.end() if free else match.start() + 1
    return found


def _is_separate(text: str, start: int, end: int) -> bool:
    """Whether neither end of text[start:end] is adjacent to a word character."""
    if start and (
        text[start - 1] in _JOINERS
        or (_is_word_character(text[start - 1]) and _is_word_character(text[start]))
    ):
        return False
    is_ending = start > 1 and text[start - 1] in "'\u2019" and _is_word_character(text[start - 2])
    if is_ending and text[start:end].casefold() in _ENDINGS:
        return False
    if end == len(text):
        return True
    after = text[end]
    if after in _JOINERS or ord(after) in _SKIN_TONES or unicodedata.category(after)[0] == "M":
        return False
    return not (_is_word_character(after) and _is_word_character(text[end - 1]))


def _is_word_character(character: str) -> bool:
    """Whether it is a word character: letter, digit, mark, underscore."""
    return character == "_" or unicodedata.category(character)[0] in "LNM"
