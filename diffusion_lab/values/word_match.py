"""Where a word stands in a text: the one rule for prompts, captions, checks and the tokenizer.

A word stands where neither of its ends is glued to a letter, digit, mark or underscore: `lin` is not in "smiling",
`x` not in "x_1", but in "x, x-ray and (x)". The end of "man's" or "don't" is no word of its own. An end that is itself
a symbol (`<cat-toy>`, an emoji) needs no gap. What belongs to the last character counts as part of it: an accent, a
joiner, a skin tone. Scripts without spaces need spaces (or punctuation) around the word. Compared in Unicode's composed
form (NFC) and, if asked, in any letter case.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

_JOINERS = frozenset("\u200c\u200d")  # zero width (non-)joiner: one written word, one emoji of several people
_ENDINGS = frozenset(
    {"s", "t", "re", "ve", "m", "ll", "d"}
)  # 's and the like, as CLIP's tokenizer cuts them off
_SKIN_TONES = range(0x1F3FB, 0x1F400)


def word_spans(text: str, word: str) -> list[tuple[int, int]]:
    """Start and end of every place where `word` stands as a word, from left to right, without overlap.

    Both are compared as they are: normalise them first where case or form may differ.
    """
    return _matches(text, re.compile(re.escape(word))) if word else []


def without_overlaps(found: Iterable[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Of (start, end, which) those that do not overlap: the leftmost, of these the longest."""
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
    """`text` with `by` in place of every one of `words` (the longest where several begin), in any letter case.

    White space within a word stands for any white space. The text comes back in composed form where it changes.

    >>> replace_words("a photo of Sks  dog, skswear", ["sks dog", "sks"], "dog")
    'a photo of dog, skswear'
    """
    composed = nfc(text)
    found = [
        (start, end, number)
        for number, word in enumerate(words)
        for start, end in _any_case_matches(composed, word)
    ]
    if not found:
        return text
    parts, at = list[str](), 0
    for start, end, _ in without_overlaps(found):
        parts += [composed[at:start], by]
        at = end
    return "".join([*parts, composed[at:]])


def nfc(text: str) -> str:
    """Composed form, as every CLIP tokenizer reads a text."""
    return unicodedata.normalize("NFC", text)


def has_visible_text(text: str) -> bool:
    """Has `text` a character that a person can see? White space, controls and zero width characters are none."""
    return any(unicodedata.category(one)[0] not in "CZ" for one in text)


def _any_case_matches(text: str, word: str) -> list[tuple[int, int]]:
    """As `spans`, in any case, with any white space where the word has some."""
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
    """Neither end of text[start:end] is glued to its neighbour."""
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
    """A character of which words are made: letter, digit, mark, underscore."""
    return character == "_" or unicodedata.category(character)[0] in "LNM"
