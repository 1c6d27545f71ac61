"""Colours of groups: each maps to its form on a dark page.

`HUES`, for names, are those of Okabe and Ito (2008), darkened where they are too pale for lines on white. `ORDERED`, for
numbers, are viridis (van der Walt and Smith 2015) without its palest end; their lightness rises with the number, so
that the order is visible without hue. Lines also differ in dashes and marks, which work without any colour.
"""

from __future__ import annotations

from collections.abc import Mapping

HUES: Mapping[str, str] = {
    "#0072b2": "#4aa8e0",
    "#c44e00": "#f0803c",
    "#008a64": "#35c298",
    "#b0568c": "#e08fbf",
    "#9a7b00": "#e3c34c",
    "#3b9fd1": "#8fd0f2",
    "#4d4d4d": "#b9c0c9",
}
ORDERED: Mapping[str, str] = {
    "#440154": "#8f6fd0",
    "#443983": "#7f86e0",
    "#31688e": "#5aa7d6",
    "#21918c": "#3fc4bb",
    "#2fa763": "#5ee08e",
    "#7db928": "#a9e34b",
    "#b5a60e": "#f2e34c",
}
