"""Registers this program's own Hydra plugins.

Hydra accepts plugins of the package hydra_plugins only, by name, and imports what is installed there in every Hydra
application. So a module of such a name is made in this process; launchers do not send sweepers to others.
"""

from __future__ import annotations

import sys
import types

from hydra.core.plugins import Plugins

PACKAGE = "hydra_plugins.diffusion_lab"


def register(kind: type) -> str:
    """Registers a plugin class; returns its name for `_target_`. Can be called repeatedly."""
    module = sys.modules.setdefault(PACKAGE, types.ModuleType(PACKAGE))
    setattr(module, kind.__name__, kind)
    kind.__module__ = PACKAGE
    Plugins.instance().register(kind)
    return f"{PACKAGE}.{kind.__name__}"
