"""The claims of the sources, checked on all runs of a folder: a page, and the same as Markdown.

`_claims/index.html` and `_claims/claims.md` in the folder of the runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from diffusion_lab.report.page import save
from diffusion_lab.report.study.texts import cautions, claim_row, source
from diffusion_lab.studies.claim import Claim
from diffusion_lab.studies.claims import check_claims, tally
from diffusion_lab.studies.claims_text import write_claims
from diffusion_lab.studies.definition import CLAIMS
from diffusion_lab.studies.pool import Pool
from diffusion_lab.studies.published import Beside, beside_published
from diffusion_lab.studies.record import study_folder
from diffusion_lab.studies.table import Table

WIDTH, HEIGHT, EDGE = 190.0, 26.0, 8.0  # of the drawing of an interval, in pixels
ROOM = 0.12  # beside the outermost value, of the distance between them


def write_claims_page(folder: Path, table: Table) -> Path:
    """Writes the page and `claims.md` for the table of all runs in `folder`, and returns the path of the page."""
    place = study_folder(folder, CLAIMS)
    claims = check_claims(table)
    write_claims(table, place / "claims.md", claims)
    return save(place / "index.html", "claims", _view(folder, table, claims), charts=False)


def _view(folder: Path, table: Table, claims: Sequence[Claim]) -> dict[str, Any]:
    by_topic: dict[str, list[Claim]] = {}
    for claim in claims:
        by_topic.setdefault(claim.source, []).append(claim)
    topics = [
        {
            "name": name,
            "counts": list(tally(some).values()),
            "unmeasured": sum(claim.effect is None for claim in some),
            "claims": [
                claim_row(claim) | {"drawing": drawing(claim), "study": claim.study} for claim in some
            ],
        }
        for name, some in by_topic.items()
    ]
    return {
        "title": "Claims",
        "answer": answer(claims),
        "folder": folder.resolve().name,
        "source": source(table),
        "cautions": cautions(table),
        "verdicts": list(tally(claims)),
        "counts": list(tally(claims).values()),
        "unmeasured": sum(claim.effect is None for claim in claims),
        "topics": topics,
        "published": [_published(beside) for beside in beside_published(Pool(table))],
        "data": {},
    }


def answer(claims: Sequence[Claim]) -> str:
    """ "Of 58 claims 12 hold and 3 do not hold; of 43 one cannot tell, 20 of these for want of data."."""
    holds, not_so, unclear = tally(claims).values()
    unmeasured = sum(claim.effect is None for claim in claims)
    return (
        f"Of {len(claims)} claims {holds} hold{'s' * (holds == 1)} and {not_so} do{'es' * (not_so == 1)} not hold; "
        f"of {unclear} one cannot tell, {unmeasured} of these for want of data."
    )


def _published(beside: Beside) -> dict[str, str]:
    number, ours = beside.published, beside.ours
    if ours is None:
        told = "-"
    elif ours.known:
        told = f"{ours.value:.2f} ({ours.low:.2f} to {ours.high:.2f}); {beside.data}"
    else:
        told = f"{ours.value:.2f}; {beside.data}"
    return {
        "name": number.name,
        "source": number.source,
        "embedder": number.embedder,
        "setting": number.setting,
        "value": f"{number.value:.2f} \N{PLUS-MINUS SIGN} {number.spread:.2f}",
        "ours": told,
        "remark": beside.remark,
    }


def drawing(claim: Claim) -> Markup:
    """The effect and its interval as SVG, with the claimed side shaded; empty without an effect."""
    if claim.effect is None or claim.claimed is None:
        return Markup("")
    low = claim.effect if claim.low is None else claim.low
    high = claim.effect if claim.high is None else claim.high
    bounds = [end for end in claim.claimed if math.isfinite(end)]
    first, last = min(low, *bounds), max(high, *bounds)
    room = ROOM * (last - first) or abs(first) or 1.0

    def x(value: float) -> float:
        inside = min(max(value, first - room), last + room)
        return EDGE + (WIDTH - 2 * EDGE) * (inside - first + room) / (last - first + 2 * room)

    left, right = x(claim.claimed[0]), x(claim.claimed[1])
    middle = HEIGHT / 2
    parts = [
        f'<rect class="side" x="{left:.1f}" y="1" width="{right - left:.1f}" height="{HEIGHT - 2:g}"/>',
        *(f'<path class="bound" d="M{x(end):.1f} 1V{HEIGHT - 1:g}"/>' for end in bounds),
    ]
    if claim.low is not None and claim.high is not None:
        ends = "".join(f"M{x(end):.1f} {middle - 4:g}v8" for end in (low, high))
        parts.append(f'<path class="span" d="M{x(low):.1f} {middle:g}H{x(high):.1f}{ends}"/>')
    parts.append(f'<circle class="at" cx="{x(claim.effect):.1f}" cy="{middle:g}" r="3.5"/>')
    told = Markup("{}; the shaded side is claimed: {}").format(_said(claim), claim.wanted)
    return Markup('<svg class="interval" viewBox="0 0 {} {}" width="{}" height="{}" role="img" aria-label="{}">{}</svg>').format(
        f"{WIDTH:g}", f"{HEIGHT:g}", f"{WIDTH:g}", f"{HEIGHT:g}", told, Markup("".join(parts))
    )  # fmt: skip


def _said(claim: Claim) -> str:
    row = claim_row(claim)
    return f"{row['effect']}, {'no interval' if row['interval'] == '-' else row['interval']}"
