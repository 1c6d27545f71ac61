"""How a command ends: a line on standard error, and the exit status.

0 success, 2 an error the user can fix (configuration, input, disk), 3 training diverged, 130 Ctrl-C, 143
SIGTERM, 1 any other error; a sweep ends with 1 if any of its jobs failed.
"""

from __future__ import annotations

import sys

from diffusion_lab.jobs import Outcome
from diffusion_lab.records import Terminated, UserError
from diffusion_lab.system import failures


def complain(message: str, status: int) -> int:
    """Prints the message and returns the status."""
    print(message if status in (130, 143) else f"error: {message}", file=sys.stderr)
    return status


def of_outcome(outcome: Outcome) -> int:
    """The exit status of a job that ended. For errors other than 2 and 3, the log contains the traceback."""
    if outcome.exit_status in (2, 3):
        complain(outcome.message, outcome.exit_status)
    return outcome.exit_status


def of_error(error: BaseException) -> int:
    """The exit status for the error that stopped a command. Re-raises errors that the user cannot fix."""
    if isinstance(error, UserError):
        told = failures.failure_message(error) if failures.out_of_memory(error) else None
        return complain(told or str(error), 2)
    if isinstance(error, Terminated):
        return complain("stopped by SIGTERM", 143)
    if isinstance(error, KeyboardInterrupt):
        return complain("stopped by Ctrl-C", 130)
    if not isinstance(error, Exception):
        raise error
    message = failures.failure_message(error)
    if message is not None:
        return complain(message, 2)
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    if not isinstance(error, HydraException | OmegaConfBaseException):
        raise error
    from diffusion_lab.cli.explain import explain

    return complain(explain(error), 2)
