"""The claims as Markdown, and published numbers beside ours."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from diffusion_lab.studies.claims import check_claims
from diffusion_lab.studies.claims_text import claims_markdown, row, write_claims
from diffusion_lab.studies.pool import Pool
from diffusion_lab.studies.published import beside_published
from diffusion_lab.studies.table import Table
from tests.studies import planted
from tests.studies.planted import course


@pytest.fixture(scope="module")
def table() -> Table:
    return planted.planted(course(), steps=tuple(range(0, 401, 50)), counts=(4, 8, 14))


def test_every_claim_has_a_row(table: Table) -> None:
    text = claims_markdown(table)
    rows = [line for line in text.splitlines() if line.startswith("| ") and "**" in line]
    assert len(rows) == len(check_claims(table))
    assert {line.count(" | ") for line in rows} == {6}
    assert "miniature (drawn portraits); lora; 10 subjects" in text
    assert claims_markdown(table) == text


def test_a_row_says_what_the_claim_says(table: Table) -> None:
    claim = next(claim for claim in check_claims(table) if claim.id == "aesthetics_falls")
    found = row(claim)
    assert claim.effect is not None
    assert found.effect.startswith(f"{claim.effect:.3g} (")
    assert found.effect.endswith(") of 0 to 1")
    assert found.verdict == "holds"
    assert found.wanted == "below 0; less than 0.01 counts as none"
    missing = row(next(claim for claim in check_claims(table) if claim.id == "sd20_worse"))
    assert (missing.effect, missing.verdict) == ("", "cannot tell")
    assert "--sweep models" in missing.note


def test_it_is_written(table: Table, tmp_path: Path) -> None:
    assert write_claims(table, tmp_path / "claims.md").read_text("utf-8") == claims_markdown(table)


def test_published_numbers_stand_only_beside_the_same_embedder(table: Table) -> None:
    assert [number.ours for number in beside_published(Pool(table))] == [None, None]
    assert all("not comparable" in number.remark for number in beside_published(Pool(table)))
    full = {"metrics.encoders": "full", "metrics.face_weights": "vggface2"}
    runs = tuple(replace(run, model="sd15", settings={**run.settings, **full}) for run in table.runs)
    ten, one = beside_published(Pool(replace(table, runs=runs)))
    assert ten.ours is not None
    assert "n = 8" in ten.data
    assert (ten.published.value, one.published.value) == (0.69, 0.43)
    assert one.ours is None
    # Another network for faces: on another scale.
    other = tuple(
        replace(run, settings={**run.settings, "metrics.face_weights": "casia-webface"}) for run in runs
    )
    assert all(number.ours is None for number in beside_published(Pool(replace(table, runs=other))))
