"""Where what can be made again is kept."""

from __future__ import annotations

import os
from pathlib import Path


def default_cache() -> Path:
    """For what can be made again: $DIFFUSION_LAB_CACHE, or diffusion_lab in $XDG_CACHE_HOME or ~/.cache."""
    own = os.environ.get("DIFFUSION_LAB_CACHE")
    if own:
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG standard asks to ignore a relative path.
    base = Path(shared) if os.path.isabs(shared) else Path("~/.cache").expanduser()
    return base / "diffusion_lab"
