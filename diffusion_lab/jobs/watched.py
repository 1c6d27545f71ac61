"""A run that is watched: a sweeper sees the scores of every evaluation and may end the run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING

from diffusion_lab.jobs.conclude import Findings, recommendation
from diffusion_lab.records import Pruned

if TYPE_CHECKING:
    from diffusion_lab.analysis.stop import Recommendation
    from diffusion_lab.config.schema import Config

Watch = Callable[["Recommendation"], str | None]
"""Called with the recommendation from all evaluations so far; returns why the run ends here, or None."""
_watch: ContextVar[Watch | None] = ContextVar("watch", default=None)


@contextlib.contextmanager
def watched(watch: Watch | None) -> Iterator[None]:
    """Inside, `watch` is called after every evaluation of a fine-tuning run; None: nobody watches."""
    token = _watch.set(watch)
    try:
        yield
    finally:
        _watch.reset(token)


def ask(config: Config, findings: Findings, step: int) -> None:
    """Shows the scores up to `step` to the watch. Raises Pruned if it ends the run before its last evaluation.

    The checkpoint of the step is written before, so that the run can be resumed.
    """
    watch = _watch.get()
    if watch is None:
        return
    found = recommendation(config, findings)
    why = None if found is None else watch(found)
    last = findings.planned is None or step >= max(findings.planned.evaluations)
    if why is not None and not last:
        raise Pruned(why)
