"""Runs that are extended: the folder holds the same run with fewer steps, and training goes on from there.

The result is that of the longer run from its start, bit for bit on a CPU. This requires that nothing in the shorter
run depends on its number of steps, or that the part which does is made again:

- Learning rates and a method's phases that depend on `steps.total` cannot be extended.
- At its last step a run evaluates and writes a line of its training curve in any case. If the longer run
  does neither there (`steps.every`, `steps.log_every`), training goes on from an earlier checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion_lab.methods import METHODS
from diffusion_lab.records import SETTLED, UserError
from diffusion_lab.runs.folder_record import CHECKPOINTS, ENDED

LENGTH = ("steps.total", "steps.stop", "steps.stop_evaluations", "steps.stop_level")
"""Keys that decide how long a run trains, and nothing else if its schedule permits it."""
CONSTANT = ("constant", "constant_with_warmup")  # rates that do not depend on steps.total
_FOLDER = re.compile(r"step-(\d{6,})")

Changes = Mapping[str, tuple[Any, Any]]  # key -> value in the folder's record, value wanted


def is_longer(changed: Changes) -> bool:
    """Whether the changed keys describe the same run with more steps.

    More steps: a larger steps.total, or steps.stop=total instead of auto. steps.every, which by default follows
    from steps.total, may differ too: `check` explains what to do.
    """
    was, now = changed.get("steps.total", (0, 0))
    stop = changed.get("steps.stop")
    if not set(changed) <= {*LENGTH, "steps.every"} or not (isinstance(was, int) and isinstance(now, int)):
        return False
    if stop is None:
        return now > was and not set(changed) & {"steps.stop_evaluations", "steps.stop_level"}
    return stop == ("auto", "total") and (
        now > was if "steps.total" in changed else set(changed) <= set(LENGTH)
    )


def check(folder: Path, result: Mapping[str, Any], changed: Changes, now: Mapping[str, Any]) -> None:
    """Checks that the run in `folder` can be extended to the flat configuration `now`.

    `result`: its record. Raises UserError with the key, the reason and the remedy.
    """
    if "steps.total" not in changed:  # only the rule that ends it early is dropped
        usable_steps(folder, result, now)
        return
    was, total = changed["steps.total"]
    begin = f"steps.total={total}: the run in {folder} has steps.total={was} and cannot be extended"
    elsewhere = "train the longer run from its start, in another folder, with hydra.run.dir=FOLDER"
    if "steps.every" in changed:
        every, wanted = changed["steps.every"]
        raise UserError(
            f"{begin} with evaluations every {wanted} steps, because it was evaluated every {every}; set steps.every={every}"
        )
    ended = result.get("ended") or {}
    if ended.get("kind") == SETTLED and now.get("steps.stop") == "auto":
        raise UserError(
            f"{begin} with steps.stop=auto: it ended at step {ended.get('step')} because its recommended stop was "
            "settled, and would end there again; set steps.stop=total"
        )
    schedule = now.get("steps.lr_scheduler")
    if schedule not in CONSTANT:
        raise UserError(
            f"{begin}: the learning rates of steps.lr_scheduler={schedule} depend on the number of steps; {elsewhere}"
        )
    fraction = _fraction(now)
    if fraction:
        raise UserError(f"{begin}: {fraction} is a fraction of the number of steps; {elsewhere}")
    usable_steps(folder, result, now)


def _fraction(now: Mapping[str, Any]) -> str:
    """The method's key that is a fraction of the number of steps; "" if it has none."""
    kind = METHODS.get(str(now.get("method.name")))
    return "" if kind is None else kind().traits.fraction_of_steps


def usable_steps(folder: Path, result: Mapping[str, Any], now: Mapping[str, Any]) -> list[int]:
    """Steps of the checkpoints from which the run can be extended, ascending.

    Empty for an unfinished run that has none yet: it begins again. Raises UserError if a finished run has none.
    """
    config = (result.get("config") or {}).get("steps") or {}
    total, longer = int(config.get("total") or 0), now.get("steps.total")
    root = folder / CHECKPOINTS
    places = root.iterdir() if root.is_dir() else ()
    found = sorted(int(match[1]) for place in places if (match := _FOLDER.fullmatch(place.name)))
    extra = [key for key in ("every", "log_every") if longer != total and total % now[f"steps.{key}"]]
    steps = [step for step in found if step < total or not extra]
    if steps or result.get("status") not in ENDED:
        return steps
    why = "it has no checkpoint (steps.checkpoint_every, steps.keep_checkpoints)"
    if found:
        why = (
            f"its last step, {total}, is no multiple of steps.{extra[0]}, and no checkpoint before it is left "
            "(steps.keep_checkpoints)"
        )
    raise UserError(
        f"steps.total={longer}: the run in {folder} cannot be extended: {why}; train the longer run from its start, "
        "in another folder, with hydra.run.dir=FOLDER"
    )
