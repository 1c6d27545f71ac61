"""The order of the training photos: shuffled epochs, no photo dropped; the state is two numbers."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from diffusion_lab.system.rng import stream_seed


@dataclass(slots=True)
class EpochSampler:
    """An endless sequence of photo indices; each epoch is a new permutation of all of them.

    The permutation is a function of (seed, epoch), so that (epoch, position) is the whole state. A batch may
    span two epochs: every photo is seen equally often, whatever the batch size.
    """

    n: int  # number of photos
    seed: int
    epoch: int = 0
    position: int = 0  # photos of this epoch already returned
    _order: tuple[int, list[int]] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError("a sampler needs at least one picture")

    def order(self) -> list[int]:
        """This epoch's permutation of 0..n-1."""
        if self._order is None or self._order[0] != self.epoch:
            rng = np.random.default_rng([stream_seed(self.seed, "order"), self.epoch])
            self._order = (self.epoch, rng.permutation(self.n).tolist())
        return self._order[1]

    def take(self, k: int) -> list[int]:
        """The next k photo indices."""
        taken: list[int] = []
        while len(taken) < k:
            piece = self.order()[self.position : self.position + k - len(taken)]
            taken += piece
            self.position += len(piece)
            if self.position == self.n:
                self.epoch, self.position = self.epoch + 1, 0
        return taken
