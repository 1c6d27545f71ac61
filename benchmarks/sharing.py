"""Measures how much time a run saves with the results that other runs have stored (docs/running.md).

    python -m benchmarks.sharing [--prompts 48] [--rounds 2] [KEY=VALUE ...]

Each round makes a run without sharing, a first run with an empty cache, a second run of the same subject, and
a first run of another subject of the same class, one after the other, so that other load on the machine slows
all. Ratios are of the median seconds of the evaluation at step 0 and of the start (loading the model and
encoders, encoding the photos). The exit status is 1 if the scores of the same subject differ in any bit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

KINDS = {  # name -> subject, size limit in GB
    "without": ("anna", "0"),
    "empty cache": ("anna", "4"),
    "second run": ("anna", "4"),
    "other subject": ("bea", "4"),
}


def run(
    folder: Path, cache: Path, subject: str, limit: str, words: list[str]
) -> tuple[dict[str, float], str]:
    """Seconds of the parts of a run, and SHA-256 of its scores."""
    settings = [f"data.subject={subject}", f"hydra.run.dir={folder}", "tracker=files", "tracker.progress=off"]
    subprocess.run(
        [sys.executable, "-m", "diffusion_lab", *words, *settings],
        env={**os.environ, "DIFFUSION_LAB_CACHE": str(cache), "DIFFUSION_LAB_SHARED_GB": limit},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    result = json.loads((folder / "result.json").read_text("utf-8"))
    first, last = result["evaluations"][0], result["evaluations"][-1]
    seconds = {
        "start": result["cost"]["start"]["seconds"],
        "evaluation at step 0": sum(first["seconds"].values()),
        "a later evaluation": sum(last["seconds"].values()),
    }
    return seconds, hashlib.sha256((folder / "scores.parquet").read_bytes()).hexdigest()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("words", nargs="*", default=[], help="further KEY=VALUE of the run")
    options = parser.parse_args(arguments)
    words = [
        "method=lora", "data.n_images=14", f"prompts.n={options.prompts}", "steps.total=2", "steps.every=2",
        *options.words,
    ]  # fmt: skip
    times: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    scores: set[str] = set()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        quick = [*words, "prompts.n=2", "prompts.sampling_steps=2"]
        run(root / "warm-up", root / "shipped", "anna", "0", quick)  # fills what is not measured
        for number in range(options.rounds):
            cache = root / f"cache-{number}"
            shutil.copytree(root / "shipped", cache)
            for kind, (subject, limit) in KINDS.items():
                used = root / "shipped" if kind == "without" else cache
                seconds, digest = run(root / f"{kind} {number}", used, subject, limit, words)
                times[kind].append(seconds)
                if subject == "anna":
                    scores.add(digest)
    base = {part: statistics.median(one[part] for one in times["without"]) for part in times["without"][0]}
    for kind, found in times.items():
        for part, reference in base.items():
            middle = statistics.median(one[part] for one in found)
            print(f"{kind:14} {part:22} {middle:8.2f} s  {middle / reference:6.3f}")
    print("scores are the same to the bit" if len(scores) == 1 else "SCORES DIFFER")
    return 0 if len(scores) == 1 else 1


if __name__ == "__main__":
    sys.exit(main())
