"""Random number streams: seeding, capturing and restoring, so that no part of a run affects another.

torch's global streams are used for initialisation and dropout; everything else in a run uses its own
generators. Covers Python, NumPy, and torch on the CPU and on every CUDA device.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True, slots=True)
class RngState:
    """The state of this process's global random streams."""

    python: tuple[Any, ...]
    numpy: tuple[Any, ...]
    torch_cpu: torch.Tensor
    cuda: tuple[torch.Tensor, ...]  # one per device; empty if CUDA was not in use

    @staticmethod
    def capture() -> RngState:
        # querying CUDA would initialise it, even for a run on the CPU
        in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        cuda = tuple(torch.cuda.get_rng_state_all()) if in_use else ()
        numpy: Any = np.random.get_state()  # noqa: NPY002
        return RngState(random.getstate(), numpy, torch.get_rng_state(), cuda)

    def restore(self) -> None:
        random.setstate(self.python)
        np.random.set_state(self.numpy)  # noqa: NPY002
        torch.set_rng_state(self.torch_cpu)
        if self.cuda:  # a run may be resumed with fewer devices, or none
            torch.cuda.set_rng_state_all(list(self.cuda)[: torch.cuda.device_count()])

    def as_plain(self) -> dict[str, Any]:
        """Only numbers, strings, lists and tensors, which can be stored without pickled objects."""
        name, key, *rest = self.numpy
        return {
            "python": [self.python[0], list(self.python[1]), self.python[2]],
            "numpy": [name, key.tolist(), *rest],
            "torch_cpu": self.torch_cpu,
            "cuda": list(self.cuda),
        }

    @staticmethod
    def from_plain(values: Mapping[str, Any]) -> RngState:
        """The inverse of `as_plain`."""
        version, words, gauss = values["python"]
        name, key, *rest = values["numpy"]
        return RngState(
            python=(version, tuple(words), gauss),
            numpy=(name, np.array(key, dtype=np.uint32), *rest),
            torch_cpu=values["torch_cpu"],
            cuda=tuple(values["cuda"]),
        )


@contextmanager
def preserved_rng() -> Iterator[None]:
    """Restores the global streams on exit, whatever is drawn or seeded inside."""
    before = RngState.capture()
    try:
        yield
    finally:
        before.restore()


def seed_everything(seed: int) -> None:
    """Seeds the global streams: Python, NumPy, torch on all devices. For use inside `preserved_rng`."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds the global streams inside, and restores them on exit."""
    with preserved_rng():
        seed_everything(seed)
        yield


def stream_seed(seed: int, stream: str) -> int:
    """The seed of a named stream of a run, independent of the others: 63 bits from NumPy's SeedSequence."""
    words = np.random.SeedSequence([seed, *stream.encode()]).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


def generator(seed: int, stream: str) -> torch.Generator:
    """A generator on the CPU, so that training uses the same numbers on every device."""
    return torch.Generator().manual_seed(stream_seed(seed, stream))
