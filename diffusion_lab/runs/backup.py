"""record.zip: a second copy of the record, so that no single lost or damaged file takes results with it.

Written atomically at every checkpoint, at every evaluation and when the record is closed. The archive has a
checksum for each of its members.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion_lab.system import atomic

NAME = "record.zip"
RESULT, SCORES, EVENTS = "result.json", "scores.parquet", "events.jsonl"
CONFIG, PROMPTS, BASE = "config.yaml", "prompts.json", "base_features.safetensors"
MEMBERS = (RESULT, SCORES, EVENTS, CONFIG, PROMPTS, BASE)


def write(folder: Path, members: Mapping[str, bytes]) -> None:
    """Writes the archive with these members. The same content gives the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in sorted(members.items()):
            entry = zipfile.ZipInfo(name)  # dated 1980
            packed = zipfile.ZIP_STORED if name.endswith(".parquet") else zipfile.ZIP_DEFLATED
            archive.writestr(entry, content, compress_type=packed)
    atomic.write_bytes(folder / NAME, buffer.getvalue())


def read(folder: Path) -> dict[str, bytes]:
    """The intact members; empty if the archive does not exist or is damaged."""
    found: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(folder / NAME) as archive:
            for name in MEMBERS:
                try:
                    found[name] = archive.read(name)  # checks the member's checksum
                except Exception:  # the type depends on the damage
                    continue
    except Exception:  # OSError, BadZipFile, and whatever a damaged directory raises
        return {}
    return found


def read_result(folder: Path) -> dict[str, Any] | None:
    """The archive's result.json, or None if it has none."""
    content = read(folder).get(RESULT)
    try:
        result = None if content is None else json.loads(content)
    except ValueError:
        return None
    return result if isinstance(result, dict) else None
