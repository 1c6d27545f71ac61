"""Dealing phrases to prompts: every phrase of a slot equally often, no prompt twice, the first n the same for any n."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import TypeVar

from diffusion_lab.records import UserError

T = TypeVar("T")


def seeded_random(*words: object) -> random.Random:
    """A generator of its own for each use; seeded by text it is the same in every process."""
    return random.Random("\0".join(map(str, words)))


def stratified(slots: Mapping[str, tuple[T, ...]], n: int, seed: int) -> list[dict[str, T]]:
    """n different combinations, in each slot every option equally often up to one; nested in n.

    Each slot deals its options in shuffled rounds. A combination that was there before takes another card of a
    round in progress instead, which keeps every prefix balanced; where no round is in progress it borrows one of
    the next round, which makes it up to two until that round is over. Raises UserError where nothing new is left.
    """
    there = math.prod(map(len, slots.values()))
    if n > there:
        raise UserError(
            f"prompts.n: no more than {there} different prompts can be drawn from the set's phrases, and it is {n}; "
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
    """Deals the numbers of `options` in shuffled rounds, without end."""

    def __init__(self, options: tuple[object, ...], generator: random.Random) -> None:
        self.size, self.generator = len(options), generator
        self.rest: list[int] = []

    def deal(self) -> int:
        self.begin()
        return self.rest.pop()

    def begin(self) -> None:
        """A new round where none is in progress."""
        if not self.rest:
            # Of all that Random offers, random() alone is promised to stay the same in later Pythons.
            self.rest = sorted(range(self.size), key=lambda _: self.generator.random())


def _another(
    hand: dict[str, int], dealers: Mapping[str, _Dealer], seen: set[tuple[int, ...]]
) -> dict[str, int]:
    """`hand` with one card exchanged for one still to come in its slot's round, so that it is new."""
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
