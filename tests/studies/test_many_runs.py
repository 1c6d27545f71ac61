"""A thousand runs with planted effects: the page and the claims within the time and memory of a laptop."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from diffusion_lab.runs import samples
from diffusion_lab.runs.resume import run_id
from diffusion_lab.studies.claims import check_claims
from diffusion_lab.studies.table import read_table
from diffusion_lab.system.images import png
from tests.studies import planted

RUNS = 1000
METHODS = ("lora", "dreambooth", "textual_inversion", "hypernetwork")
COUNTS = (4, 8, 12, 14, 20)
SEEDS = 5
SECONDS = 60.0  # of processor time, so that it does not depend on what else the machine does
MEGABYTES = 2000.0
CODE = """
import re, sys, time
from pathlib import Path
from diffusion_lab.__main__ import main
assert main(["job=study", "job.runs=" + sys.argv[1]]) == 0
# Not getrusage: its peak includes that of the process which started this one.
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
print(time.process_time(), int(peak[1]) / 1024)
"""


def sheets(folder: Path) -> None:
    """A sheet of 48 pictures for each evaluation, about as large as those of the miniature (600 kB)."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for step in planted.STEPS:
        coarse = rng.normal(128, 50, (48, 16, 16, 3)).repeat(4, axis=1).repeat(4, axis=2)
        pictures = np.clip(coarse + rng.normal(0, 6, coarse.shape), 0, 255).astype(np.uint8)
        sheet = samples.sheet(list(pictures), ["a portrait of a person"] * 48, title=f"step {step}")
        (folder / f"step-{step:06d}.png").write_bytes(png(sheet))


def thousand_runs(folder: Path, truth: planted.Truth) -> None:
    """Ten subjects, five numbers of images, four methods, five seeds. Seeds of one kind share their scores and sheets."""
    sheets(folder / "sheets")
    noise = planted.Noise(0)
    for subject, n, method in itertools.product(planted.WOMEN + planted.MEN, COUNTS, METHODS):
        config = planted.configuration(subject, n, method)
        run = planted.study_run(config, truth, noise)
        first = planted.write_run(folder / "runs" / f"{subject},{n},{method},0", run, config)
        shutil.copytree(folder / "sheets", first / "samples", copy_function=os.link)
        content = json.loads((first / "result.json").read_text("utf-8"))
        for seed in range(1, SEEDS):
            copy = first.with_name(f"{subject},{n},{method},{seed}")
            shutil.copytree(first, copy, copy_function=os.link)
            content["config"]["seed"] = seed
            content["run"] = run_id(content["config"])
            (copy / "result.json").unlink()
            (copy / "result.json").write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_thousand_runs(tmp_path: Path) -> None:
    of_method = {"dreambooth": (0.15, -0.05), "textual_inversion": (-0.1, -0.2), "hypernetwork": (-0.2, 0.0)}
    truth = planted.course(women_aesthetics=0.08, men_similarity=0.06, of_method=of_method)
    thousand_runs(tmp_path, truth)
    runs = tmp_path / "runs"
    found = subprocess.run(
        [sys.executable, "-c", CODE, str(runs)], capture_output=True, text=True, check=True
    )
    page, claims_page, told = found.stdout.splitlines()
    seconds, megabytes = map(float, told.split())
    print(seconds, megabytes, Path(page).stat().st_size)
    assert seconds < SECONDS
    assert megabytes < MEGABYTES
    assert Path(page).read_text("utf-8").count('"thumbs": {"') == RUNS
    assert (runs / "_claims" / "claims.md").is_file()
    assert Path(claims_page).parent == runs / "_claims"
    table = read_table(runs)
    assert Counter(run.subject for run in table.runs).total() == RUNS
    wanted = {
        "women_aesthetics": 0.08,  # difference of two groups
        "men_similarity": 0.06,
        "dreambooth_best_on_image_similarity": 0.15,  # paired difference
        "lora_best_on_prompt_similarity": 0.05,
        "hypernetwork_worse": -0.2,
        "aesthetics_falls": slope(truth, "aesthetics"),  # mean of slopes
        "diversity_falls": slope(truth, "diversity"),
        "rule_100": 10.0,  # the recommended stop is planted at 10 n
        "stop_grows": 10.0,
        "near_linear": 1.0,
    }
    claims = {claim.id: claim for claim in check_claims(table)}
    for name, effect in wanted.items():
        low, high = claims[name].low, claims[name].high
        assert low is not None
        assert high is not None
        assert low <= effect <= high, claims[name]


def slope(truth: planted.Truth, metric: str) -> float:
    """The true change on the least-squares line, mean over numbers of images."""
    steps = np.asarray(planted.STEPS, float)
    run = {"gender": "man", "model": "", "method": "lora", "settings": {}}
    curves = [truth({**run, "n": n}, steps)[metric] for n in COUNTS]
    return float(np.mean([np.polyfit(steps, curve, 1)[0] * steps[-1] for curve in curves]))
