"""Numbers of the plan as a person reads them: as exact as estimates deserve."""

from __future__ import annotations


def shortened(steps: tuple[int, ...]) -> list[int | str]:
    """Long lists with their middle left out."""
    return list(steps) if len(steps) <= 9 else [*steps[:4], "...", *steps[-2:]]


def room(size: float) -> str:
    """Bytes of a disk, for a person: "12 MB", "53 GB"."""
    return f"{size / 1e9:.0f} GB" if size >= 10e9 else f"{max(1, round(size / 1e6))} MB"


def counted(n: int, noun: str) -> str:
    """ "1 picture", "4 pictures"."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def duration(seconds: float) -> str:
    """ "40 s", "5 min", "2 h 10 min": as exact as an estimate deserves."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
