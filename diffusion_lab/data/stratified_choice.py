"""Draws phrases for prompts: every phrase of a slot equally often, no prompt twice, the first n the same for any n."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import TypeVar

from diffusion_lab.records import UserError

T = TypeVar("T")


def seeded_random(*words: object) -> random.Random:
    """A separate generator for each use. Seeded with a text, it is the same in every process."""
    return random.Random("\0".join(map(str, words)))


def stratified(slots: Mapping[str, tuple[T, ...]], n: int, seed: int) -> list[dict[str, T]]:
    """n different combinations; in each slot the counts of the options differ by at most one. Nested in n.

    Each slot draws its options in shuffled rounds. A combination that already exists takes another option of a
    round in progress instead, which keeps every prefix balanced. If no round is in progress, it borrows one of
    the next round; counts then differ by up to two until that round is over. Raises UserError if no new
    combination is left.
    """
    there = math.prod(map(len, slots.values()))
    if n > there:
        raise UserError(
            f"prompts.n: no more than {there} different prompts can be drawn from the set's phrases, but it is {n}; "
            "set it lower"
        )
    dealers = {
        slot: _Dealer(options, seeded_random("prompts", seed, slot)) for slot, options in slots.items()
    }
    seen: set[tuple[int, ...]] = set()
    chosen: list[dict[str, T]] = []
    for _ in range(n):
        hand = {slot: dealer.deal() for slot, dealer in dealers.items()}
        if tuple(hand.values()) in seen:
            hand = _another(hand, dealers, seen)
        seen.add(tuple(hand.values()))
        chosen.append({slot: slots[slot][card] for slot, card in hand.items()})
    return chosen


class _Dealer:
    """Draws the indices of `options` in shuffled rounds, without end."""

    def __init__(self, options: tuple[object, ...], generator: random.Random) -> None:
        self.size, self.generator = len(options), generator
        self.rest: list[int] = []

    def deal(self) -> int:
        self.begin()
        return self.rest.pop()

    def begin(self) -> None:
        """Starts a new round if none is in progress."""
        if not self.rest:
            # Of all methods of Random, only random() is guaranteed to stay the same in later Python versions.
            self.rest = sorted(range(self.size), key=lambda _: self.generator.random())


def _another(
    hand: dict[str, int], dealers: Mapping[str, _Dealer], seen: set[tuple[int, ...]]
) -> dict[str, int]:
    """`hand` with one option exchanged for another of the same round of its slot, so that it is new."""
    for borrow in (False, True):
        for slot, dealer in dealers.items():
            if borrow:
                dealer.begin()
            for place, card in enumerate(dealer.rest):
                other = {**hand, slot: card}
                if tuple(other.values()) not in seen:
                    dealer.rest[place] = hand[slot]
                    return other
    raise UserError(f"prompts.n: no more than {len(seen)} different prompts can be drawn; set it lower")
