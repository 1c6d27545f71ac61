"""Hardware errors that the user can fix: full disks and full memory, whichever library reports them."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

from diffusion_lab.system import disk_errors

# Messages about failed allocations: torch's allocator, C++, the operating system, the loader.
_MEMORY = re.compile(
    r"DefaultCPUAllocator|not enough memory|can't allocate memory|cannot allocate memory|bad_alloc|out of memory"
    r"|can't start new thread|failed to map segment|unable to mmap|array is too big"
    r"|could not create a (primitive|memory)(?! desc)",  # oneDNN
    re.IGNORECASE,
)
MEMORY_REMEDY = (
    "lower steps.batch_size, prompts.batch_size or metrics.batch_size, set memory.offload=true, close other "
    "programs, or raise the limit (ulimit -v); the same command resumes the run"
)
DEVICE_REMEDY = (
    "lower steps.batch_size, prompts.batch_size or metrics.batch_size, or set model.precision=bf16"
)


def is_memory(error: BaseException) -> bool:
    """Whether memory of the host or the device could not be allocated."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    kinds = (RuntimeError, ImportError, SystemError)
    return (isinstance(error, kinds) or type(error).__name__ == "SafetensorError") and bool(
        _MEMORY.search(str(error))
    )


def out_of_memory(error: BaseException) -> bool:
    """Whether the error, or one from which it was raised, is about memory."""
    return any(map(is_memory, _chain(error)))


def failure_message(error: BaseException) -> str | None:
    """One line for the user: what is full, and the remedy; None for any other error.

    Examines the error and those from which it was raised.
    """
    for one in _chain(error):
        if type(one).__name__ == "OutOfMemoryError":  # torch's; torch may not have been imported
            return f"the device's memory is full: {DEVICE_REMEDY} ({_short(one)})"
        if is_memory(one):
            return f"the machine's memory is full: {MEMORY_REMEDY} ({_short(one)})"
        system = disk_errors.os_error(one)
        if system is not None and (isinstance(one, OSError) or system.errno in disk_errors.FULL):
            name = one.filename if isinstance(one, OSError) and one.filename else "a file"
            message = disk_errors.remedy(str(name), system)
            if message is not None:
                return message
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        yield current
        seen.add(id(current))
        current = current.__cause__


def _short(error: BaseException) -> str:
    """The first line of the library's message, without its stack trace."""
    first = next(iter(str(error).strip().splitlines()), "")
    return " ".join(first.split())[:200] or type(error).__name__
