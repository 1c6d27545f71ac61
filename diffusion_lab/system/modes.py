"""Train and eval modes as context managers that restore the previous mode of each submodule."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def _mode(modules: tuple[nn.Module, ...], training: bool) -> Iterator[None]:
    before = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for module in modules:
            module.train(training)
        yield
    finally:
        for part, was_training in before:
            part.training = was_training


@contextmanager
def training_mode(*modules: nn.Module) -> Iterator[None]:
    """Train mode inside, so dropout is on."""
    with _mode(modules, True):
        yield


@contextmanager
def eval_mode(*modules: nn.Module) -> Iterator[None]:
    """Eval mode inside, so dropout is off."""
    with _mode(modules, False):
        yield
