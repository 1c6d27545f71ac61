"""Hydra's own part: the run's folder, its logging, launchers, and flags such as --cfg."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from diffusion_lab.cli.compose import conf_folder, register


def hand_over(
    words: Sequence[str], task: Callable[[Any], Any], jobs: Sequence[Sequence[str]] | None = None
) -> None:
    """Runs `task` in Hydra with the command line `words`. Hydra's errors are raised as exceptions.

    `jobs`: the overrides of each job of a sweep, instead of those that Hydra's sweeper makes of `words`.
    """
    import hydra

    register()
    decorate = hydra.main(config_path=str(conf_folder()), config_name="config", version_base="1.3")
    if jobs is not None:
        from diffusion_lab.cli import points_sweeper

        words = [*words, points_sweeper.register(jobs)]
    with _process(["diffusion_lab", *words]):
        decorate(task)()


@contextlib.contextmanager
def _process(argv: list[str]) -> Iterator[None]:
    """Sets sys.argv, which Hydra reads, and HYDRA_FULL_ERROR, without which it prints errors and exits."""
    before, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = argv, "1"
    try:
        yield
    finally:
        sys.argv = before
        if full is None:
            os.environ.pop("HYDRA_FULL_ERROR", None)
        else:
            os.environ["HYDRA_FULL_ERROR"] = full
