"""Formats the numbers of the plan, with a precision suitable for estimates."""

from __future__ import annotations


def shortened(steps: tuple[int, ...]) -> list[int | str]:
    """Shortens long lists by omitting the middle."""
    return list(steps) if len(steps) <= 9 else [*steps[:4], "...", *steps[-2:]]


def room(size: float) -> str:
    """Disk space as text: "12 MB", "53 GB"."""
    return f"{size / 1e9:.0f} GB" if size >= 10e9 else f"{max(1, round(size / 1e6))} MB"


def counted(n: int, noun: str) -> str:
    """ "1 picture", "4 pictures"."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def duration(seconds: float) -> str:
    """ "40 s", "5 min", "2 h 10 min": with a precision suitable for estimates."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
