"""Seconds and peak memory of the phases of a run, measured apart."""

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
    """Adds up the wall seconds spent in named phases and keeps the highest memory seen in each.

    Memory is torch's peak of allocated bytes on a CUDA device, and the process's peak resident set elsewhere.
    A CUDA device works behind the program's back; it is waited for when the phase changes, not at each step.
    """

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)  # by phase
    peak_bytes: dict[str, int] = field(default_factory=dict)  # by phase
    _last: str | None = field(default=None, init=False, repr=False)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Everything inside counts as `name`. Not to be nested."""
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
        """Highest memory in bytes seen in this phase so far; 0 where it never ran."""
        if name == self._last:
            self._record_peak()
        return self.peak_bytes.get(name, 0)

    def began(self, name: str, seconds: float) -> None:
        """A phase that was over before this meter was there, from a `reset_peak` on: its seconds and peak memory."""
        self.add(name, seconds)
        now = _cuda_peak(self.device) if self.device.type == "cuda" else _resident_peak()
        self.peak_bytes[name] = max(self.peak_bytes.get(name, 0), now)

    def add(self, name: str, seconds: float) -> None:
        """Counts what was spent before this process began."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def peaks(self) -> dict[str, int]:
        """Highest memory in bytes of every phase so far."""
        return {name: self.peak(name) for name in self.seconds}

    def summary(self) -> dict[str, dict[str, float]]:
        """`{"training": {"seconds": ..., "peak_bytes": ...}, ...}` of all phases so far, for the record."""
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
    """From here on the peak counts anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        # Linux forgets the peak on this order; where it cannot, later phases show the run's peak so far.
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


@dataclass(slots=True)
class Since:
    """What has been gathered since the last log line of a run; a run that goes on goes on with it."""

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
