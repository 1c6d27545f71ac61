"""One checksum for several texts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def digest(words: Sequence[str]) -> str:
    """SHA-256 over the texts, in order."""
    return hashlib.sha256("\0".join(words).encode()).hexdigest()
