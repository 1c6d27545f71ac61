"""A disk, a quota or the memory that is full in the middle of a run, and a folder that is removed under it.

The system itself refuses: from a chosen file on, the process may write no file beyond some bytes
(RLIMIT_FSIZE) or have no more memory (RLIMIT_AS). Whatever the moment: one line, exit status 2, no half file
under a final name, and the same command ends as the uninterrupted run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("resource")
ROOT = Path(__file__).parents[1]
WORDS = [
    "experiment=debug", "metrics=debug", "steps.total=2", "steps.every=1", "prompts.n=2", "tracker.progress=off",
    "metrics.names=[diversity]",
]  # fmt: skip
DREAMBOOTH = ["method=dreambooth", "method.prior_images=2"]
# From which file on, and its how-manieth opening: every kind of file that a run writes, and every way to write.
MOMENTS = {
    "checkpoint": ("state.pt", 2),
    "adapter": ("lora_kohya.safetensors", 1),
    "artefact": ("pytorch_lora_weights.safetensors", 4),
    "report": ("report.html", 1),
}
OTHERS = {
    "networks": ("diffusion_pytorch_model.safetensors", 1),
    "class_pictures": ("00001.png", 1),
}
RESUMED = ("checkpoint", "artefact", "report", "networks")
REMOVED = {"adapter": MOMENTS["adapter"], "events": ("events.jsonl", 3)}
MEMORY = {"scores": ("scores.parquet", 1)}

HARNESS = """
import contextlib, json, os, resource, shutil, sys, traceback
from pathlib import Path
import torch
torch.set_num_threads(1)
import diffusion_lab, importlib, pkgutil, scipy.stats, pyarrow.parquet, plotly.graph_objects, accelerate
import diffusers, peft
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer
for module in pkgutil.walk_packages(diffusion_lab.__path__, "diffusion_lab."):
    if "__main__" not in module.name:
        importlib.import_module(module.name)
from diffusion_lab.__main__ import main

real_open, opened = os.open, 0

def disturb(kind, folder):
    if kind == "disk":
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
    elif kind == "removed":
        shutil.rmtree(folder)
    elif kind == "memory":
        used = next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmSize")) * 1024
        resource.setrlimit(resource.RLIMIT_AS, (used, resource.RLIM_INFINITY))

def run(words, folder, kind, name, number, log):
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    def opening(path, *rest, **more):
        global opened
        # A file by its own name, or written beside its place under a name that begins with a dot.
        if str(path).rsplit("/", 1)[-1].lstrip(".").startswith(name):
            opened += 1
            if opened == number:
                disturb(kind, folder)
        return real_open(path, *rest, **more)
    reader, writer = os.pipe()
    if os.fork():  # this one runs; its child reads what it says, which may be more than a pipe holds
        os.close(reader)
        os.dup2(writer, 1), os.dup2(writer, 2)
        os.environ["DIFFUSION_LAB_CACHE"] = f"{folder}.cache"
        if kind:
            os.open = opening
        status = 99
        try:
            status = main([*words, f"hydra.run.dir={folder}"])
        except BaseException:
            with contextlib.suppress(BaseException):
                traceback.print_exc()
        with contextlib.suppress(BaseException):
            sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)
    os.close(writer)
    with open(reader) as told:
        Path(log).write_text(told.read())
    os._exit(0)

for case in json.loads(sys.argv[1]):
    print(json.dumps([case["name"], run(*case["arguments"])]), flush=True)
"""


def outcomes(
    root: Path, cases: dict[str, tuple[list[str], Path, str | None, str, int]]
) -> dict[str, tuple[int, str]]:
    """(exit status, what was said) of every case, one after the other out of one process."""
    wanted = [
        {"name": name, "arguments": [words, str(folder), kind, file, number, str(root / f"{name}.txt")]}
        for name, (words, folder, kind, file, number) in cases.items()
    ]
    done = subprocess.run(
        [sys.executable, "-c", HARNESS, json.dumps(wanted)], capture_output=True, text=True, cwd=ROOT,
        env={
            **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
        },
        timeout=1800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    statuses = dict(json.loads(line) for line in done.stdout.splitlines())
    return {name: (status, (root / f"{name}.txt").read_text()) for name, status in statuses.items()}


Outcomes = tuple[Path, dict[str, tuple[int, str]]]


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """The uninterrupted runs, and each moment of a full disk with the same command again."""
    root = tmp_path_factory.mktemp("full")
    cases: dict[str, tuple[list[str], Path, str | None, str, int]] = {}
    for moments, words, whole in ((MOMENTS, WORDS, "lora"), (OTHERS, [*WORDS, *DREAMBOOTH], "dreambooth")):
        for name, (file, number) in moments.items():
            cases[name] = (words, root / name, "disk", file, number)
            if name in RESUMED:
                cases[f"{name}_again"] = (words, root / name, None, "", 0)
        cases[whole] = (words, root / whole, None, "", 0)
    return root, outcomes(root, cases)


def one_clear_line(told: str) -> None:
    assert "Traceback" not in told, told
    assert "Logging error" not in told, told
    errors = [line for line in told.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, told
    assert "hydra.run.dir=FOLDER" in errors[0] or "ulimit" in errors[0], told


def nothing_half(folder: Path) -> None:
    """All files under a final name can be read."""
    import pyarrow.parquet as pq
    from PIL import Image
    from safetensors.torch import load_file

    from diffusion_lab.training import checkpoint

    for path in folder.rglob("*"):
        if path.name.startswith("."):
            continue
        if path.suffix == ".safetensors":
            load_file(path)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".parquet":
            pq.read_table(path)
        elif path.suffix == ".png":
            Image.open(path).load()
        elif path.name == checkpoint.STATE:
            checkpoint.read(path.parent)
        elif path.name == "events.jsonl":
            [json.loads(line) for line in path.read_text().splitlines()]


def files(folder: Path) -> dict[str, bytes]:
    parts = ("artefact", "adapters", "samples", "scores.parquet", "prompts.json")
    found = [
        path for part in parts for path in [folder / part, *(folder / part).rglob("*")] if path.is_file()
    ]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.mark.parametrize("moment", [*MOMENTS, *OTHERS])
def test_a_full_disk_is_one_line(full: Outcomes, moment: str) -> None:
    root, ended = full
    status, told = ended[moment]
    assert status == 2, told
    one_clear_line(told)
    nothing_half(root / moment)


@pytest.mark.parametrize("moment", RESUMED)
def test_with_room_again_it_ends_as_the_uninterrupted_run(full: Outcomes, moment: str) -> None:
    root, ended = full
    status, told = ended[f"{moment}_again"]
    assert status == 0, told
    whole = "lora" if moment in MOMENTS else "dreambooth"
    assert json.loads((root / moment / "result.json").read_text())["status"] == "completed"
    assert (root / moment / "report.html").is_file()
    ours, theirs = files(root / moment), files(root / whole)
    assert len(theirs) >= 6
    assert ours == theirs


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    root = tmp_path_factory.mktemp("disturbed")
    cases: dict[str, tuple[list[str], Path, str | None, str, int]] = {}
    for name in REMOVED:
        cases[f"removed_{name}"] = (WORDS, root / f"removed_{name}", "removed", *REMOVED[name])
    for name in MEMORY:
        cases[f"memory_{name}"] = (WORDS, root / f"memory_{name}", "memory", *MEMORY[name])
        cases[f"memory_{name}_again"] = (WORDS, root / f"memory_{name}", None, "", 0)
    return root, outcomes(root, cases)


@pytest.mark.parametrize("moment", REMOVED)
def test_a_folder_that_is_removed_is_not_made_again(disturbed: Outcomes, moment: str) -> None:
    root, ended = disturbed
    status, told = ended[f"removed_{moment}"]
    assert status == 2, told
    one_clear_line(told)
    assert "was removed or moved" in told
    assert not (root / f"removed_{moment}").exists()


@pytest.mark.parametrize("moment", MEMORY)
def test_memory_that_is_full_is_one_line(disturbed: Outcomes, moment: str) -> None:
    root, ended = disturbed
    status, told = ended[f"memory_{moment}"]
    assert status == 2, told
    one_clear_line(told)
    assert "memory is full" in told
    nothing_half(root / f"memory_{moment}")
    status, told = ended[f"memory_{moment}_again"]
    assert status == 0, told
