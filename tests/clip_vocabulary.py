"""CLIP's own tokenizer, from the list of merges that open_clip brings: 49,408 entries, what full-size models have."""

from __future__ import annotations

import functools
import gzip
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

MERGES = 49152 - 256 - 2


@functools.cache
def vocabulary() -> tuple[dict[str, int], tuple[tuple[str, str], ...]]:
    """Numbers by entry, and the merges."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    found = find_spec("open_clip")
    assert found is not None
    assert found.origin is not None
    packed = (Path(found.origin).parent / "bpe_simple_vocab_16e6.txt.gz").read_bytes()
    lines = gzip.decompress(packed).decode().split("\n")[1 : MERGES + 1]
    merges = tuple((a, b) for a, b in map(str.split, lines))
    letters = list(bytes_to_unicode().values())
    entries = [*letters, *(f"{one}</w>" for one in letters), *map("".join, merges)]
    return {e: i for i, e in enumerate([*entries, "<|startoftext|>", "<|endoftext|>"])}, merges


def clip_tokenizer() -> Any:
    """A fresh `CLIPTokenizer`."""
    from transformers import CLIPTokenizer

    numbers, merges = vocabulary()
    return CLIPTokenizer(vocab=dict(numbers), merges=list(merges), model_max_length=77)


def write_clip_files(folder: Path) -> None:
    """vocab.json and merges.txt alone, as Stable Diffusion 1.5's own folder has them."""
    numbers, merges = vocabulary()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(numbers), "utf-8")
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")
