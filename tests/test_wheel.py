"""A wheel of the project, installed elsewhere, carries the configuration and the weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_main_job_runs_from_an_installed_wheel(tmp_path: Path) -> None:
    def pip(*words: str) -> None:
        command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr

    pip("wheel", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT))
    wheel = next(tmp_path.glob("diffusion_lab-*.whl"))
    names = zipfile.ZipFile(wheel).namelist()
    assert "diffusion_lab/conf/config.yaml" in names
    assert "diffusion_lab/miniature/weights/sd/model_index.json" in names
    assert not any(name.startswith(("tests/", "outputs/")) for name in names)

    pip("install", "--no-deps", "--target", str(tmp_path / "site"), str(wheel))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    script = "import diffusion_lab, sys; from diffusion_lab.__main__ import main; print(diffusion_lab.__file__); sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", script, "experiment=debug", "hydra.run.dir=run"],
        cwd=elsewhere,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert str(tmp_path / "site") in done.stdout
    assert json.loads((elsewhere / "run" / "result.json").read_text())["status"] == "completed"
    assert (elsewhere / "run" / "report.html").exists()
