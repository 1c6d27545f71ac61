"""The claims as a page: every claim, its drawing, and the Markdown beside it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from diffusion_lab.report.study.claims_page import EDGE, WIDTH, drawing, write_claims_page
from diffusion_lab.studies.bootstrap import Interval
from diffusion_lab.studies.claim import Asked, Claim
from diffusion_lab.studies.claims import check_claims, tally
from diffusion_lab.studies.claims_text import claims_markdown
from tests.studies import planted


def asked(low: float, high: float) -> tuple[Asked, Interval, list[Any]]:
    run = planted.planted(subjects=("anna",), counts=(4,)).runs[0]
    interval = Interval((low + high) / 2, low, high, 0.1, 9.0, 10, 48, "subjects and prompts")
    return Asked("a", 'So "it" <is>.', "here", "counts", "cosine", "how"), interval, [run]


def shapes(claim: Claim) -> dict[str, dict[str, str]]:
    svg = ET.fromstring(str(drawing(claim)))
    assert claim.wanted in svg.attrib["aria-label"]
    return {shape.attrib["class"]: dict(shape.attrib) for shape in svg}


@pytest.mark.parametrize(
    ("low", "high", "inside"), [(0.1, 0.3, True), (-0.3, -0.1, False), (-0.1, 0.3, False), (90.0, 95.0, True)]
)
def test_the_interval_is_drawn_within_the_claimed_side_if_the_claim_holds(
    low: float, high: float, inside: bool
) -> None:
    claim, interval, runs = asked(low, high)
    found = claim.above(interval, runs)
    assert (found.verdict == "holds") == inside
    drawn = shapes(found)
    side = float(drawn["side"]["x"])
    end = side + float(drawn["side"]["width"])
    left, right = (float(x) for x in re.findall(r"M([\d.]+) \S+v8", drawn["span"]["d"]))
    assert EDGE <= left < float(drawn["at"]["cx"]) < right <= WIDTH - EDGE
    assert (side <= left and right <= end) == inside
    assert end == pytest.approx(WIDTH - EDGE, abs=0.1)


def test_a_band_has_two_ends_and_an_effect_without_interval_is_a_point() -> None:
    claim, interval, runs = asked(80, 110)
    assert str(drawing(claim.within(interval, runs, 75, 125))).count("bound") == 2
    alone = replace(claim.below(interval, runs), low=None, high=None)
    assert set(shapes(alone)) == {"side", "bound", "at"}
    assert "no interval" in str(drawing(alone))
    assert drawing(claim.missing("nothing")) == ""


def test_every_claim_is_on_the_page_and_in_the_markdown(tmp_path: Path) -> None:
    table = planted.planted(planted.course(), counts=(4, 14))
    page = write_claims_page(tmp_path, table)
    text, claims = unescape(page.read_text("utf-8")), check_claims(table)
    assert page == tmp_path / "_claims" / "index.html"
    assert all(f'<th scope="row">{claim.text}<p>' in text for claim in claims)
    assert text.count("<tr data-verdict") == len(claims)
    assert text.count('class="interval"') == sum(claim.effect is not None for claim in claims) > 10
    holds, not_so, unclear = tally(claims).values()
    assert f"Of {len(claims)} claims {holds} hold and {not_so} do" in text
    assert f"of {unclear} one cannot tell" in text
    assert text.count("not comparable") == 2
    assert "miniature (drawn portraits); lora; 10 subjects; n = 4, 14" in text
    assert (page.parent / "claims.md").read_text("utf-8") == claims_markdown(table)


def test_claims_of_one_verdict(tmp_path: Path, visit: Callable[..., Any]) -> None:
    table = planted.planted(planted.course(), counts=(4, 14))
    page = visit(write_claims_page(tmp_path, table))
    counts = tally(check_claims(table))
    for verdict, count in counts.items():
        page.select_option("#shown-verdict", verdict)
        assert page.locator("tr[data-verdict]:visible").count() == count
        assert page.locator("#shown").inner_text().startswith(f"{count} claim")
    page.select_option("#shown-verdict", "")
    assert page.locator("tr[data-verdict]:visible").count() == sum(counts.values())
