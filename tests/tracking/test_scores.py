from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_lab.records import Evaluation, ScoreRow
from diffusion_lab.runs import scores


def test_columns_and_order(tmp_path: Path, cases: ModuleType) -> None:
    rows = [*cases.evaluation(50).rows, *cases.evaluation(0).rows]
    scores.write(tmp_path / "scores.parquet", rows)
    table = pq.read_table(tmp_path / "scores.parquet")
    assert table.column_names == [
        "step", "prompt_id", "index", "seed", "metric", "version", "value", "slot:accessory", "slot:place",
    ]  # fmt: skip
    assert table.num_rows == 2 * 6 * 2
    keys = list(
        zip(
            *(table.column(name).to_pylist() for name in ("step", "prompt_id", "index", "metric")),
            strict=True,
        )
    )
    assert keys == sorted(keys)
    first = table.slice(0, 2).to_pylist()
    assert [row["metric"] for row in first] == ["aesthetics", "similarity"]
    assert first[0]["value"] is not None
    assert first[1]["value"] is None  # undefined is null, not NaN and not absent
    assert first[0]["seed"] == 2**63
    assert first[0]["slot:place"] == "in place 0"


def test_the_same_content_gives_the_same_bytes(tmp_path: Path, cases: ModuleType) -> None:
    rows = [row for step in (0, 50, 100) for row in cases.evaluation(step).rows]
    scores.write(tmp_path / "one.parquet", rows)
    random.Random(1).shuffle(rows)
    scores.write(tmp_path / "elsewhere" / "two.parquet", rows)
    one = (tmp_path / "one.parquet").read_bytes()
    assert one == (tmp_path / "elsewhere" / "two.parquet").read_bytes()
    # Nor do another process, another moment and another order of Python's sets change it.
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import cases, pathlib\n"
        "from diffusion_lab.runs import scores\n"
        "rows = [row for step in (100, 0, 50) for row in cases.evaluation(step).rows]\n"
        "scores.write(pathlib.Path(sys.argv[2]), rows)\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path / "three.parquet")],
        env=os.environ | {"PYTHONHASHSEED": "77", "TZ": "Asia/Tokyo"},
        check=True,
    )
    assert hashlib.sha256(one).digest() == hashlib.sha256((tmp_path / "three.parquet").read_bytes()).digest()


def test_another_value_gives_other_bytes(tmp_path: Path, cases: ModuleType) -> None:
    rows = list(cases.evaluation(0).rows)
    scores.write(tmp_path / "one.parquet", rows)
    changed = ScoreRow(**{name: getattr(rows[-1], name) for name in ScoreRow.__slots__} | {"value": 1e-9})
    scores.write(tmp_path / "two.parquet", [*rows[:-1], changed])
    assert (tmp_path / "one.parquet").read_bytes() != (tmp_path / "two.parquet").read_bytes()


rows_of_any_kind = st.lists(
    st.builds(
        ScoreRow,
        step=st.integers(0, 10**6),
        prompt_id=st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
        index=st.integers(0, 1000),
        seed=st.integers(0, 2**64 - 1),
        metric=st.sampled_from(["a", "b"]),
        version=st.just("1"),
        value=st.none() | st.floats(allow_nan=False, width=32),
        slots=st.dictionaries(st.sampled_from(["x", "y"]), st.text(max_size=3), max_size=2),
    ),
    max_size=20,
    unique_by=lambda row: (row.step, row.prompt_id, row.index, row.metric),
)


@settings(max_examples=40, deadline=None)
@given(rows_of_any_kind)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, rows: list[ScoreRow]) -> None:
    path = tmp_path_factory.mktemp("rows") / "scores.parquet"
    scores.write(path, rows)
    expected = sorted(rows, key=lambda row: (row.step, row.prompt_id, row.index, row.metric))
    assert scores.read(path) == expected


def test_nan_is_undefined(tmp_path: Path) -> None:
    scores.write(tmp_path / "s.parquet", [ScoreRow(0, "p", 0, 1, "m", "1", float("nan"), {})])
    assert scores.read(tmp_path / "s.parquet")[0].value is None


def test_images_are_matched_with_their_rows(cases: ModuleType) -> None:
    evaluation, prompts = cases.evaluation(0), cases.prompt_set()
    expected = [(f"p{number:03d}", 0) for number in range(6)]
    assert scores.images_of(evaluation, prompts) == expected
    image_by_image = sorted(evaluation.rows, key=lambda row: row.prompt_id)
    again = Evaluation(0, evaluation.images, tuple(image_by_image), {}, {})
    assert scores.images_of(again, prompts) == expected
    assert scores.images_of(Evaluation(0, evaluation.images * 2, (), {}, {}), prompts) == [
        (f"p{number:03d}", index) for number in range(6) for index in (0, 1)
    ]
    with pytest.raises(ValueError, match="no match"):
        scores.images_of(Evaluation(0, evaluation.images[:4], evaluation.rows, {}, {}), prompts)
