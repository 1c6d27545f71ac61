"""Several processes of one run, as `accelerate launch` and `torchrun` start them.

Every process computes its share of each batch; only the main one decides, measures, speaks and writes.
Nothing here imports torch before it is needed.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from diffusion_lab.records import UserError

if TYPE_CHECKING:
    import torch

WAIT = timedelta(days=7)  # for the main process, whose evaluations take longer than the libraries' half hour


def count() -> int:
    """How many processes train together."""
    return max(1, _whole("WORLD_SIZE", 1))


def is_main() -> bool:
    """Whether this process is the one that decides, measures and writes."""
    return count() == 1 or _whole("RANK", 0) == 0


def _whole(name: str, usual: int) -> int:
    """A launcher's variable; UserError where it is no whole number."""
    given = os.environ.get(name) or str(usual)
    try:
        return int(given)
    except ValueError:
        raise UserError(
            f"{name}={given} in the environment: must be a whole number, as launchers set it; unset {name} for one process"
        ) from None


def join(device: torch.device) -> torch.device:
    """Meets the other processes; returns this process's own device. With one process nothing happens."""
    if count() == 1:
        return device
    from accelerate import PartialState

    own: torch.device = PartialState(cpu=device.type == "cpu", timeout=WAIT).device
    return own


def shared(value: Any) -> Any:
    """The main process's `value`, in every process."""
    if count() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]


def wait() -> None:
    """Until every process has come here: a launcher ends all of them when the first one fails."""
    if count() > 1:
        from accelerate import PartialState

        PartialState().wait_for_everyone()
