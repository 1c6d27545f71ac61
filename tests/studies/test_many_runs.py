"""A thousand runs, read and judged within the time and memory of a laptop."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from diffusion_lab.runs.resume import run_id
from tests.studies import planted

RUNS = 1000
SECONDS = 35.0  # of one core
MEGABYTES = 1200.0
CODE = """
import resource, sys, time
from pathlib import Path
from diffusion_lab.studies.answers import answer
from diffusion_lab.studies.claims_text import claims_markdown
from diffusion_lab.studies.table import read_table
table = read_table(Path(sys.argv[1]))
answer("counts", table)
claims_markdown(table)
print(len(table.runs), time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.mark.slow
def test_a_thousand_runs(tmp_path: Path) -> None:
    noise, left = planted.Noise(0), RUNS
    kinds = [
        (s, n, m) for s in planted.WOMEN + planted.MEN for n in (4, 8, 14, 20) for m in ("lora", "dreambooth")
    ]
    for i, (subject, n, method) in enumerate(kinds):
        seeds = -(-left // (len(kinds) - i))
        left -= seeds
        config = planted.configuration(subject, n, method)
        run = planted.study_run(config, planted.usual, noise)
        first = planted.write_run(tmp_path / f"{subject},{n},{method},0", run, config, missing=0.1)
        content = json.loads((first / "result.json").read_text("utf-8"))
        for seed in range(1, seeds):  # further seeds have the same scores
            folder = tmp_path / f"{subject},{n},{method},{seed}"
            shutil.copytree(first, folder)
            content["config"]["seed"] = seed
            content["run"] = run_id(content["config"])
            (folder / "result.json").write_text(json.dumps(content), encoding="utf-8")
    found = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path)], capture_output=True, text=True, check=True
    ).stdout
    runs, seconds, megabytes = map(float, found.split())
    print(found)
    assert runs == RUNS
    assert seconds < SECONDS
    assert megabytes < MEGABYTES
