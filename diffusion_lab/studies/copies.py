"""Copies and repetitions of a run are found by its configuration and count once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, Protocol, TypeVar

from diffusion_lab.runs.resume import run_id


class Recorded(Protocol):
    """What is needed to tell copies apart; `runs.reading.Run` has it."""

    @property
    def folder(self) -> Path: ...
    @property
    def config(self) -> Mapping[str, Any]: ...
    @property
    def status(self) -> str: ...
    @property
    def summaries(self) -> Sized: ...
    @property
    def started(self) -> str: ...
    @property
    def finished(self) -> str: ...


T = TypeVar("T", bound=Recorded)


def distinct(runs: Sequence[T]) -> tuple[list[T], list[tuple[T, T]]]:
    """Every run once, in order, and for each copy or repetition the run that is used instead.

    A run is identified by its configuration and seeds, not by its folder. Of several records of one run, a
    completed one is preferred, then one with more evaluations, then the newest. Records without a configuration, of
    jobs that ended before their run began, are all kept.
    """
    best: dict[str, T] = {}
    ids = [run_id(run.config) if run.config else str(run.folder) for run in runs]
    for name, run in zip(ids, runs, strict=True):
        if name not in best or _rank(run) > _rank(best[name]):
            best[name] = run
    kept = [run for name, run in zip(ids, runs, strict=True) if best[name] is run]
    repeated = [(run, best[name]) for name, run in zip(ids, runs, strict=True) if best[name] is not run]
    return kept, repeated


def _rank(run: Recorded) -> tuple[bool, int, str, str]:
    return run.status == "completed", len(run.summaries), run.finished, run.started
