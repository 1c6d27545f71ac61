"""The folder of cached files."""

from __future__ import annotations

import os
from pathlib import Path


def default_cache() -> Path:
    """The cache folder: $DIFFUSION_LAB_CACHE, or diffusion_lab in $XDG_CACHE_HOME or ~/.cache."""
    own = os.environ.get("DIFFUSION_LAB_CACHE")
    if own:
        return Path(own).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG standard requires relative paths to be ignored.
    base = Path(shared) if os.path.isabs(shared) else Path("~/.cache").expanduser()
    return base / "diffusion_lab"
