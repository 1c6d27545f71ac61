"""Several processes of one run, as started by `accelerate launch` and `torchrun`.

Every process computes its share of each batch; only the main process decides, measures, logs and writes.
torch is imported only when needed.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from diffusion_lab.records import UserError

if TYPE_CHECKING:
    import torch

WAIT = timedelta(days=7)  # for the main process, whose evaluations exceed the default half hour


def count() -> int:
    """The number of processes in the run."""
    return max(1, _whole("WORLD_SIZE", 1))


def is_main() -> bool:
    """Whether this is the process that decides, measures and writes."""
    return count() == 1 or _whole("RANK", 0) == 0


def _whole(name: str, usual: int) -> int:
    """The value of a launcher's variable. Raises UserError if it is not an integer."""
    given = os.environ.get(name) or str(usual)
    try:
        return int(given)
    except ValueError:
        raise UserError(
            f"{name}={given} in the environment: must be a whole number, as launchers set it; unset {name} for one process"
        ) from None


def join(device: torch.device) -> torch.device:
    """Connects to the other processes and returns this process's device. Does nothing with one process."""
    if count() == 1:
        return device
    from accelerate import PartialState

    own: torch.device = PartialState(cpu=device.type == "cpu", timeout=WAIT).device
    return own


def shared(value: Any) -> Any:
    """Broadcasts the main process's `value` to every process."""
    if count() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]


def wait() -> None:
    """Waits until every process has reached this point; if one fails, the launcher ends all of them."""
    if count() > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()
