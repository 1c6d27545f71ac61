"""The claims as rows for a page, and as a page in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from diffusion_lab.studies.bootstrap import Interval
from diffusion_lab.studies.claim import Claim
from diffusion_lab.studies.claims import check_claims, tally
from diffusion_lab.studies.pool import Pool
from diffusion_lab.studies.published import Beside, beside_published
from diffusion_lab.studies.table import Table
from diffusion_lab.system import atomic


@dataclass(frozen=True, slots=True)
class Row:
    """A claim as texts."""

    claim: str
    verdict: str
    effect: str  # "-0.06 (-0.09 to -0.03) of 0 to 1"; "" without data
    wanted: str
    smallest: str
    data: str
    note: str
    measured: str
    source: str


def row(claim: Claim) -> Row:
    return Row(
        claim=claim.text,
        verdict=claim.verdict,
        effect=_effect(claim),
        wanted=claim.wanted,
        smallest="" if claim.smallest is None else number(claim.smallest),
        data=claim.data
        if claim.effect is None
        else f"{claim.data}; {claim.runs} runs, {claim.prompts} prompts",
        note=claim.note,
        measured=claim.measured,
        source=claim.source,
    )


def _effect(claim: Claim) -> str:
    if claim.effect is None:
        return ""
    limits = (
        "no interval"
        if claim.low is None or claim.high is None
        else f"{number(claim.low)} to {number(claim.high)}"
    )
    return f"{number(claim.effect)} ({limits}) {claim.unit}".strip()


def number(value: float) -> str:
    """Three significant digits, no exponent: 0.0612, 10.8, 119."""
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}" if value else "0"
    text = f"{value:.3g}"
    return f"{value:.5f}" if "e" in text else text


def claims_markdown(
    table: Table, claims: Sequence[Claim] | None = None, *, title: str = "The claims of the sources, checked"
) -> str:
    """The whole page. It is made from the table alone, so that the same runs give the same text.

    ``claims``: `check_claims` of the table, if it is known already.
    """
    claims = check_claims(table) if claims is None else claims
    holds, not_so, unclear = tally(claims).values()
    counted = f"{holds} hold, {not_so} do not hold, of {unclear} one cannot tell"
    subjects = len({run.subject for run in table.runs})
    lines = [
        f"# {title}",
        "",
        f"{len(claims)} claims, checked on {len(table.runs)} runs of {subjects} subjects: {counted}.",
        "",
        HOW,
        "",
    ]
    for source, some in groupby(claims, key=lambda claim: claim.source):
        lines += [f"## {source}", "", *_table(list(some)), ""]
    lines += ["## Published numbers", "", *_published(beside_published(Pool(table))), ""]
    return "\n".join(lines)


HOW = (
    "A claim **holds** if the 95 % interval of its effect lies wholly on the claimed side. It **does not hold** if the "
    "interval lies wholly on the other side, or wholly below the smallest effect that counts. Otherwise, and with a single "
    "subject, the verdict is **cannot tell**. Intervals are over subjects and prompts (the pigeonhole bootstrap, "
    "`studies/bootstrap.py`). *Detectable*: the smallest true effect that such data show with a probability of 80 %. The "
    "miniature's portraits are drawn: what holds there need not hold for photos."
)


def _table(claims: Sequence[Claim]) -> list[str]:
    lines = [
        "| claim | verdict | effect (95 %) | compared with | detectable | data | remarks |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in map(row, claims):
        said = "; ".join(part for part in (r.measured, r.note) if part)
        cells = (r.claim, f"**{r.verdict}**", r.effect, r.wanted, r.smallest, r.data, said)
        lines.append(f"| {' | '.join(map(_cell, cells))} |")
    return lines


def _published(numbers: Sequence[Beside]) -> list[str]:
    lines = [
        "Cosines of different embedders are not on one scale; ours is set beside a number only if the embedder is the same.",
        "",
        "| published | embedder | setting | value | ours | remark |",
        "|---|---|---|---|---|---|",
    ]
    for beside in numbers:
        p = beside.published
        ours = "" if beside.ours is None else f"{_with_limits(beside.ours)}; {beside.data}"
        cells = (
            f"{p.name}: {p.source}",
            p.embedder,
            p.setting,
            f"{p.value:.2f} +- {p.spread:.2f}",
            ours,
            beside.remark,
        )
        lines.append(f"| {' | '.join(map(_cell, cells))} |")
    return lines


def _with_limits(interval: Interval) -> str:
    value = number(interval.value)
    return f"{value} ({number(interval.low)} to {number(interval.high)})" if interval.known else value


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def write_claims(table: Table, path: Path, claims: Sequence[Claim] | None = None) -> Path:
    """Writes `claims_markdown` to a file. UserError (as of `atomic`) if it cannot be written."""
    atomic.write_text(path, claims_markdown(table, claims))
    return path
