"""Encoder outputs shared between runs, bit-identical to computing them again.

Unlike `cache.FeatureCache`, which stores a row per image, an entry is the output for one list of images in one
call: the last bits of an embedding depend on the batch in which it was computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from diffusion_lab.system.store import Store, key_of

if TYPE_CHECKING:
    from torch import Tensor


class BlockCache:
    """``facts``: JSON-like, everything the rows depend on besides encoder and images.

    ``hits`` and ``misses`` count entries.
    """

    def __init__(self, store: Store, facts: Mapping[str, Any]) -> None:
        self.store, self.facts = store, facts
        self.hits = self.misses = 0

    def rows(self, identity: str, keys: Sequence[bytes], encode: Callable[[list[int]], Tensor]) -> Tensor:
        """float32 [len(keys), ...]: the output of ``encode(list(range(len(keys))))``, from the store if it is there."""
        key = key_of([identity, [one.hex() for one in keys], self.facts])
        entry = self.store.read(key)
        if entry is not None and "rows" in entry and len(entry["rows"]) == len(keys):
            self.hits += 1
            return entry["rows"]
        self.misses += 1
        found = encode(list(range(len(keys)))).float().cpu()
        self.store.write(key, {"rows": found})
        return found
