"""Deterministic safetensors files: the same tensors always give the same bytes.

The library orders the metadata differently in each process, and reports a full disk with an error type of its
own. The format is simple (https://github.com/huggingface/safetensors#format): the header's length in 8 bytes,
little endian; the header as JSON, padded with spaces to a multiple of 8; the tensors without gaps. The
tensors are in the library's order: wide dtypes first, so that all are aligned, then by name.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion_lab.system import atomic

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# In the library's order, narrow dtypes first.
NAMES = {
    "bool": "BOOL", "uint8": "U8", "int8": "I8", "int16": "I16", "uint16": "U16", "float16": "F16",
    "bfloat16": "BF16", "int32": "I32", "uint32": "U32", "float32": "F32", "float64": "F64", "int64": "I64",
    "uint64": "U64",
}  # fmt: skip


def write(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> str:
    """Writes `tensors`, from any device, to `path` atomically; returns the file's SHA-256 in hexadecimal.

    `dtype`: the format for floating point tensors. The file does not depend on the order of the two mappings.
    Tensors are copied to the CPU one at a time. Raises UserError like `atomic.write_bytes`.
    """
    return atomic.write_pieces(path, _pieces(tensors, metadata, dtype))


def _pieces(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None, dtype: torch.dtype | None
) -> Iterator[bytes | memoryview]:
    import torch

    def format_of(value: Tensor) -> torch.dtype:
        return dtype if dtype is not None and value.is_floating_point() else value.dtype

    order = list(NAMES)
    formats = {name: str(format_of(value)).removeprefix("torch.") for name, value in tensors.items()}
    unknown = sorted(set(formats.values()) - NAMES.keys())
    if unknown:
        raise ValueError(f"tensors of {', '.join(unknown)} cannot be written")
    names = sorted(tensors, key=lambda name: (-order.index(formats[name]), name))
    header: dict[str, object] = {}
    if metadata is not None:
        header["__metadata__"] = {str(key): str(metadata[key]) for key in sorted(metadata)}
    end = 0
    for name in names:
        value = tensors[name]
        start, end = end, end + math.prod(value.shape) * format_of(value).itemsize
        header[name] = {
            "dtype": NAMES[formats[name]], "shape": list(value.shape), "data_offsets": [start, end],
        }  # fmt: skip
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for name in names:
        value = tensors[name].detach().to("cpu", format_of(tensors[name])).contiguous()
        if value.numel():
            yield value.reshape(-1).view(torch.uint8).numpy().data
