"""A study whose sweep is killed at random moments and started again: `killed_sweeps.py LAUNCHER KILLS FOLDER`.

A kill is a SIGKILL to the sweep alone, whose jobs go on for as long as their launcher lets them, or to all of its
processes.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

STUDY = """\
question: How do the metrics move?
charts: [dynamics, stop]
runs:
  experiment: debug
  metrics: debug
  metrics.names: [[diversity, clip_text]]
  prompts.n: 3
  data.subject: [anna, ben]
  data.n_images: [2, 3]
  model.device: cpu
"""
LAUNCHERS = {
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit_local": ["hydra/launcher=submitit_local"],
}
# What differs between two runs of the same configuration: times, memory and digests of files that contain them.
TIMES = re.compile(r"second|memory|MiB|bytes|started|finished|duration", re.IGNORECASE)


def begin(folder: Path, launcher: str) -> subprocess.Popen[bytes]:
    """The sweep, in a session of its own."""
    (folder / "killed.yaml").write_text(STUDY)
    words = ["--sweep", "killed.yaml", "hydra.sweep.dir=runs", "tracker.progress=off", *LAUNCHERS[launcher]]
    return subprocess.Popen(
        [sys.executable, "-m", "diffusion_lab", *words],
        cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=(folder / "stderr.txt").open("ab"),
    )  # fmt: skip


def kill(sweep: subprocess.Popen[bytes], *, everything: bool) -> None:
    if everything:
        for pid in descendants(sweep.pid):
            with_pid(pid)
    with_pid(sweep.pid)
    sweep.wait()


def with_pid(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    import psutil

    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def uninterrupted(folder: Path, launcher: str) -> tuple[dict[str, Any], float]:
    """Returns its outcome and the seconds that it took."""
    folder.mkdir(parents=True)
    begun = time.monotonic()
    status = begin(folder, launcher).wait()
    seconds = time.monotonic() - begun
    assert status == 0, (folder / "stderr.txt").read_text()[-3000:]
    expected = outcome(folder)
    assert len(expected) > 4
    assert expected["page"]
    return expected, seconds


def killed(folder: Path, launcher: str, draw: random.Random, longest: float) -> int:
    """Kills the sweep until it ends before a kill; returns how many kills met a running sweep."""
    folder.mkdir(parents=True)
    for met in itertools.count():
        sweep = begin(folder, launcher)
        try:
            status = sweep.wait(draw.uniform(0.5, longest))
        except subprocess.TimeoutExpired:
            kill(sweep, everything=draw.random() < 0.5)
            continue
        assert status == 0, (folder / "stderr.txt").read_text()[-3000:]
        return met
    raise AssertionError


def outcome(folder: Path) -> dict[str, Any]:
    """What the study left, without times."""
    runs = folder / "runs"
    found: dict[str, Any] = {
        path.parent.name: path.read_bytes() for path in sorted(runs.glob("*/scores.parquet"))
    }
    for path in sorted((runs / "_killed" / "tables").glob("*.csv")):
        with path.open(newline="") as file:
            found[path.name] = [
                {key: cell for key, cell in row.items() if not TIMES.search(key)}
                for row in csv.DictReader(file)
            ]
    page = (runs / "_killed" / "index.html").read_text("utf-8")
    found["page"] = [*numbers_of_page(page)]
    found["text"] = TEXT.sub(" ", SCRIPTS.sub(" ", page)).split()
    return found


SCRIPTS = re.compile(r"<script.*?</script>|<style.*?</style>", re.DOTALL)
TEXT = re.compile(r"<[^>]+>")


def numbers_of_page(page: str) -> Iterator[Any]:
    """The page's data without costs."""
    for block in re.findall(r'<script[^>]*type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL):
        yield without_times(json.loads(block))


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: without_times(part)
            for key, part in value.items()
            if not TIMES.search(key) and key not in ("costs", "cost")
        }
    return [without_times(part) for part in value] if isinstance(value, list) else value


def same(folder: Path, launcher: str, kills: int, expected: dict[str, Any], seconds: float) -> int:
    """Kills sweeps `kills` times in all, compares each with `expected`, and returns their number.

    `expected`, `seconds`: what an uninterrupted sweep left, through any launcher, and how long it took.
    """
    draw, sweeps = random.Random(0), 0
    while kills > 0:
        sweeps += 1
        place = folder / f"killed-{sweeps}"
        kills -= killed(place, launcher, draw, 0.9 * seconds)
        found = outcome(place)
        assert found.keys() == expected.keys()
        for name in expected:
            assert found[name] == expected[name], name
    return sweeps


if __name__ == "__main__":
    launcher, kills, where = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    begun = time.monotonic()
    sweeps = same(where, launcher, kills, *uninterrupted(where / "uninterrupted", launcher))
    print(
        f"{launcher}: {kills} kills of running sweeps, {sweeps} sweeps; each page equals that of the uninterrupted sweep"
    )
    print(f"{time.monotonic() - begun:.0f} s")
