"""Seconds and peak memory, measured separately for each phase of a run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import torch


@dataclass(slots=True)
class Meter:
    """Adds up the wall-clock seconds spent in named phases and keeps the peak memory of each.

    Memory is torch's peak of allocated bytes on a CUDA device, and the process's peak resident set otherwise.
    A CUDA device works asynchronously; it is synchronised when the phase changes, not at each step.
    """

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)  # by phase
    peak_bytes: dict[str, int] = field(default_factory=dict)  # by phase
    _last: str | None = field(default=None, init=False, repr=False)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Everything inside the context counts as `name`. Cannot be nested."""
        if name != self._last:
            self._settle()
            self._last = name
            self._reset_peak()
        start = perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + perf_counter() - start

    def peak(self, name: str) -> int:
        """Peak memory of this phase so far in bytes; 0 if it never ran."""
        if name == self._last:
            self._record_peak()
        return self.peak_bytes.get(name, 0)

    def began(self, name: str, seconds: float) -> None:
        """Adds seconds and peak memory of a phase that began with `reset_peak` before this meter existed."""
        self.add(name, seconds)
        now = _cuda_peak(self.device) if self.device.type == "cuda" else _resident_peak()
        self.peak_bytes[name] = max(self.peak_bytes.get(name, 0), now)

    def add(self, name: str, seconds: float) -> None:
        """Adds time spent before this process started."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def peaks(self) -> dict[str, int]:
        """Peak memory of every phase so far, in bytes."""
        return {name: self.peak(name) for name in self.seconds}

    def summary(self) -> dict[str, dict[str, float]]:
        """`{"training": {"seconds": ..., "peak_bytes": ...}, ...}` for all phases so far, for the record."""
        self._settle()
        return {
            name: {"seconds": seconds, "peak_bytes": self.peak_bytes.get(name, 0)}
            for name, seconds in self.seconds.items()
        }

    def _settle(self) -> None:
        if self._last is None:
            return
        if self.device.type == "cuda":
            start = perf_counter()
            torch.cuda.synchronize(self.device)
            self.seconds[self._last] = self.seconds.get(self._last, 0.0) + perf_counter() - start
        self._record_peak()

    def _record_peak(self) -> None:
        if self._last is not None:
            now = _cuda_peak(self.device) if self.device.type == "cuda" else _resident_peak()
            self.peak_bytes[self._last] = max(self.peak_bytes.get(self._last, 0), now)

    def _reset_peak(self) -> None:
        reset_peak(self.device)


def reset_peak(device: torch.device) -> None:
    """Restarts the measurement of the peak."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        # Resets the peak on Linux; if this is not possible, later phases show the run's peak so far.
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


@dataclass(slots=True)
class Since:
    """Values accumulated since the last log line of a run; kept when a run is resumed."""

    losses: list[float] = field(default_factory=list)
    images: int = 0
    seconds: float = 0.0  # the meter's training seconds at the last log


def _cuda_peak(device: torch.device) -> int:
    return int(torch.cuda.max_memory_allocated(device))


def _resident_peak() -> int:
    """Peak resident set of this process in bytes."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return int(getattr(psutil.Process().memory_info(), "peak_wset", 0))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
