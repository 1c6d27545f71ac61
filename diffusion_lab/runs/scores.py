"""scores.parquet: one row per image and metric, sorted; the same content gives the same bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_lab.records import Evaluation, PromptSet, ScoreRow
from diffusion_lab.system import atomic

if TYPE_CHECKING:
    import pyarrow as pa


def table(rows: Iterable[ScoreRow]) -> pa.Table:
    """Columns step, prompt_id, index, seed, metric, version, value (null: undefined), then `slot:NAME`.

    Sorted by step, prompt, index and metric; slots are in alphabetical order, null if a prompt lacks one.
    """
    import pyarrow as pa

    ordered = sorted(rows, key=lambda row: (row.step, row.prompt_id, row.index, row.metric))
    columns: dict[str, tuple[list[Any], pa.DataType]] = {
        "step": ([row.step for row in ordered], pa.int64()),
        "prompt_id": ([row.prompt_id for row in ordered], pa.string()),
        "index": ([row.index for row in ordered], pa.int32()),
        "seed": ([row.seed for row in ordered], pa.uint64()),  # a generator's seed has up to 64 bits
        "metric": ([row.metric for row in ordered], pa.string()),
        "version": ([row.version for row in ordered], pa.string()),
        "value": ([_defined(row.value) for row in ordered], pa.float64()),
    }
    for slot in sorted({slot for row in ordered for slot in row.slots}):
        columns[f"slot:{slot}"] = ([row.slots.get(slot) for row in ordered], pa.string())
    return pa.table({name: pa.array(values, type=kind) for name, (values, kind) in columns.items()})


def _defined(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


def parquet_bytes(rows: Iterable[ScoreRow]) -> bytes:
    """The file's content. It does not depend on when or where it was made."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(
        table(rows), sink, compression="zstd", compression_level=3, version="2.6", row_group_size=1 << 17
    )
    content: bytes = sink.getvalue().to_pybytes()
    return content


def write(path: Path, rows: Iterable[ScoreRow]) -> None:
    """Writes `rows` atomically, see `parquet_bytes`."""
    atomic.write_bytes(path, parquet_bytes(rows))


def decoded(content: bytes) -> list[ScoreRow]:
    """The rows in a file's `content`. Raises ValueError if it is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return _rows(pq.read_table(pa.BufferReader(content)))
    except Exception as error:  # ArrowInvalid, OSError, KeyError, TypeError: the file is damaged
        raise ValueError(" ".join(str(error).split())[:100] or type(error).__name__) from error


def read(path: Path) -> list[ScoreRow]:
    """The rows passed to `write`, in the file's order, undefined values as None."""
    import pyarrow.parquet as pq

    return _rows(pq.read_table(path))


def _rows(found: pa.Table) -> list[ScoreRow]:
    rows = []
    for record in found.to_pylist():
        slots = {
            name.removeprefix("slot:"): text
            for name, text in record.items()
            if name.startswith("slot:") and text is not None
        }
        plain = {name: value for name, value in record.items() if not name.startswith("slot:")}
        rows.append(ScoreRow(**plain, slots=slots))
    return rows


def images_of(evaluation: Evaluation, prompts: PromptSet) -> list[tuple[str, int]]:
    """(prompt id, index) of every image, in the images' order.

    Rows are ordered by metric or by image, in both cases with the images in order. If no metric has rows,
    images are ordered by prompt.
    """
    seen = list(dict.fromkeys((row.prompt_id, row.index) for row in evaluation.rows))
    if len(seen) == len(evaluation.images):
        return seen
    each, left = divmod(len(evaluation.images), max(len(prompts), 1))
    if left or seen:
        raise ValueError(
            f"{len(evaluation.images)} images, {len(prompts)} prompts, {len(seen)} scored images: no match"
        )
    return [(prompt.id, index) for prompt in prompts for index in range(each)]


def by_image(rows: Iterable[ScoreRow]) -> dict[tuple[str, int], dict[str, float | None]]:
    """Scores of each image by metric, None if undefined."""
    found: dict[tuple[str, int], dict[str, float | None]] = {}
    for row in rows:
        found.setdefault((row.prompt_id, row.index), {})[row.metric] = _defined(row.value)
    return found
