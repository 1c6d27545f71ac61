"""What stands in a run folder, and a run that is killed, stopped or changed on its way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from diffusion_lab.cli.compose import compose
from diffusion_lab.config.schema import as_plain_dict
from diffusion_lab.jobs.assist import build
from diffusion_lab.plan.defaults import fill_defaults
from diffusion_lab.records import PromptSet, Subject, UserError
from diffusion_lab.runs.resume import describe_differences, folder_status, locked
from diffusion_lab.runs.resume_folder import expand_resume
from diffusion_lab.system.folders import clear_leftovers
from diffusion_lab.training import checkpoint
from diffusion_lab.values.jsonable import plain

ROOT = Path(__file__).parents[1]
TINY = ["experiment=debug", "metrics=debug", "steps.log_every=1", "steps.checkpoint_every=1"]


def record(folder: Path, status: str, *words: str) -> None:
    config = plain(as_plain_dict(fill_defaults(compose([*TINY, *words]))))
    folder.mkdir(exist_ok=True)
    (folder / "result.json").write_text(json.dumps({"schema": 1, "status": status, "config": config}))


# --- what stands there --------------------------------------------------------------------------------


def test_an_unfinished_run_goes_on_and_a_finished_one_is_left_alone(tmp_path: Path) -> None:
    config = fill_defaults(compose(TINY))
    assert folder_status(config, tmp_path / "nothing") == "empty"
    for status in ("running", "interrupted", "failed"):
        record(tmp_path, status)
        assert folder_status(config, tmp_path) == "unfinished"
    for status in ("completed", "diverged"):
        record(tmp_path, status)
        assert folder_status(config, tmp_path) == "incomplete", "it has no report"
    (tmp_path / "result.json").write_text('{"status": "failed", "error": "UserError: x", "traceback": ""}')
    assert folder_status(config, tmp_path) == "empty"


def test_must_and_never(tmp_path: Path) -> None:
    must, never = (fill_defaults(compose([*TINY, f"resume={wish}"])) for wish in ("must", "never"))
    assert folder_status(never, tmp_path) == "empty"
    with pytest.raises(UserError, match=r"resume=must: .*holds no run.*resume=FOLDER"):
        folder_status(must, tmp_path)
    record(tmp_path, "running")
    assert folder_status(must, tmp_path) == "unfinished"
    with pytest.raises(UserError, match=r"recorded there already.*hydra\.run\.dir"):
        folder_status(never, tmp_path)
    with pytest.raises(UserError, match="resume=perhaps: must be one of auto, never, must"):
        compose([*TINY, "resume=perhaps"])


def test_another_configuration_is_refused_by_its_keys(tmp_path: Path) -> None:
    record(tmp_path, "running", "method.rank=4", "tracker.project=a")
    same = fill_defaults(compose([*TINY, "method.rank=4", "tracker.project=b", "steps.keep_checkpoints=5"]))
    assert folder_status(same, tmp_path) == "unfinished"
    other = fill_defaults(compose([*TINY, "steps.total=9", "data.subject=ben"]))
    with pytest.raises(UserError) as refused:
        folder_status(other, tmp_path)
    told = str(refused.value)
    for words in ("steps.total was 4, is 9", "data.subject was anna, is ben", "method.rank was 4, is 8"):
        assert words in told
    assert "tracker" not in told
    assert describe_differences({"a": {"b": [1]}}, {"a": {"b": (1,)}, "c": None}) == [
        "c was not there, is None"
    ]


def test_a_checkpoint_of_another_configuration_is_refused(
    tiny_sd_folder: Path, tiny_subject: Subject, load_plain_pipe: Any, tmp_path: Path
) -> None:
    """Copied from another run's folder: same model, same pictures, same shapes."""
    prompts = PromptSet("none", (), "", "0")
    given = ["model=folder", f"model.path={tiny_sd_folder}", "model.device=cpu", "method.rank=4"]

    def state(*words: str, found: Any = None) -> Any:
        config = fill_defaults(compose([*TINY, *given, *words]))
        return build(config, load_plain_pipe(tiny_sd_folder), tiny_subject, prompts, found)

    checkpoint.write(checkpoint.capture(state()), tmp_path)
    state("steps.keep_checkpoints=5", "resume=must", "tracker.project=b", found=checkpoint.latest(tmp_path))
    with pytest.raises(UserError, match=r"changed since: its configuration; start again"):
        state("method.learning_rate=1e-5", found=checkpoint.latest(tmp_path))


def test_a_record_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('{"status": ')
    with pytest.raises(UserError, match=r"cannot be read.*hydra\.run\.dir"):
        folder_status(fill_defaults(compose(TINY)), tmp_path)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with (
        locked(tmp_path),
        pytest.raises(UserError, match="another process is at work"),
        locked(tmp_path),
    ):
        pass
    with locked(tmp_path):
        pass


def test_leftovers_of_a_kill_are_cleared(tmp_path: Path) -> None:
    (tmp_path / "steps" / ".step-000004.77.tmp").mkdir(parents=True)
    (tmp_path / "steps" / ".step-000004.77.tmp" / "state.pt").write_text("half")
    (tmp_path / ".result.json.77.tmp").write_text("half")
    (tmp_path / ".artefact.77.old").mkdir()  # killed between its two renamings
    (tmp_path / ".artefact.77.old" / "weights").write_text("whole")
    (tmp_path / ".hydra").mkdir()
    clear_leftovers(tmp_path)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        ".hydra", "artefact", "artefact/weights", "steps",
    ]  # fmt: skip


def test_resume_folder_stands_for_the_words_of_that_run(tmp_path: Path) -> None:
    notes = tmp_path / "it's" / ".hydra"
    notes.mkdir(parents=True)
    (notes / "overrides.yaml").write_text("- data.n_images=4\n- resume=auto\n")
    hydra = {"overrides": {"hydra": ["hydra.run.dir=x", "hydra.mode=RUN", "hydra.searchpath=[file:///a]"]}}
    (notes / "hydra.yaml").write_text(json.dumps({"hydra": hydra}))
    words = expand_resume([f"resume={notes.parent}", "tracker=files"])
    assert words[:3] == ["hydra.searchpath=[file:///a]", "data.n_images=4", "tracker=files"]
    assert words[3:] == [f"hydra.run.dir='{tmp_path}/it\\'s'", "resume=must"]
    assert expand_resume(["resume=must", "seed=1"]) == ["resume=must", "seed=1"]
    with pytest.raises(UserError, match="resume=atuo: must be one of auto, never, must, or the folder"):
        expand_resume(["resume=atuo"])


@pytest.mark.parametrize("name", ["overrides.yaml", "hydra.yaml"])
@pytest.mark.parametrize(
    "content", ["", "7", "a: b", "hydra: 7", "hydra: {overrides: []}", "[" * 5000, "{", "\ud800"]
)
def test_notes_of_another_shape_are_named(tmp_path: Path, name: str, content: str) -> None:
    notes = tmp_path / "run" / ".hydra"
    notes.mkdir(parents=True)
    (notes / "overrides.yaml").write_text("[]")
    (notes / "hydra.yaml").write_text("hydra: {overrides: {hydra: []}}")
    (notes / name).write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(
        UserError, match=rf"{name}: cannot be read .* again with hydra\.run\.dir=.*run instead"
    ):
        expand_resume([f"resume={notes.parent}"])


# --- real processes -----------------------------------------------------------------------------------

KILLER = """
import json, os, random, signal, sys, time, traceback
from pathlib import Path
import torch
torch.set_num_threads(1)
from diffusion_lab.cli.compose import compose
from diffusion_lab.plan.defaults import fill_defaults
from diffusion_lab.jobs import load, perform
import diffusion_lab, importlib, pkgutil, scipy.stats
import diffusers, peft, pyarrow.parquet, facenet_pytorch, plotly.graph_objects, accelerate
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer
for module in pkgutil.walk_packages(diffusion_lab.__path__, "diffusion_lab."):
    if "__main__" not in module.name:
        importlib.import_module(module.name)
load("finetune")
root, runs = Path(sys.argv[1]), json.loads(sys.argv[2])
draw = random.Random(root.name)

def begin(name):
    '''The job in a process of its own, without the seconds that imports take.'''
    pid = os.fork()
    if pid == 0:
        try:
            outcome = perform(config, folder / name)
            os._exit(outcome.exit_status)
        except BaseException:
            traceback.print_exc()
        os._exit(99)
    return pid

def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

for name, (words, kills) in runs.items():
    folder, killed, config = root / name, 0, fill_defaults(compose(words))
    if sys.argv[3] == "whole":
        assert ended(begin("whole")) == 0, name
        continue
    events = folder / "killed" / "events.jsonl"
    while True:
        pid = begin("killed")
        lines = events.read_bytes().count(b"\\n") if events.exists() else 0
        if killed < kills:  # once it has told of so much more, and then at a random moment
            wanted = lines + draw.randrange(1, 5)
            while os.waitpid(pid, os.WNOHANG) == (0, 0):
                if events.exists() and events.read_bytes().count(b"\\n") >= wanted:
                    time.sleep(draw.random() * 0.3)
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                    killed += 1
                    break
                time.sleep(0.01)
            else:
                break
        else:
            assert ended(pid) == 0, name
            break
    (folder / "killed.txt").write_text(str(killed))
"""
SHORT = [
    "steps.total=3", "steps.every=3", "steps.batch_size=3", "prompts.n=2", "steps.lr_scheduler=cosine",
    "metrics.names=[diversity]",
]  # fmt: skip
# Of every method a run that ends, and the same killed so many times: words, times.
KILLED: dict[str, tuple[list[str], int]] = {
    "lora": (["method.dropout=0.2", *SHORT[:-1], "steps.total=6", "steps.every=2"], 2),
    "dreambooth": (["method=dreambooth", "method.prior_images=2", "method.ema=true", *SHORT], 1),
    "textual_inversion": (["method=textual_inversion", "method.vectors=2", *SHORT], 1),
    "pivotal": (["method=pivotal", "method.text_encoder=true", *SHORT], 1),
    "hypernetwork": (["method=hypernetwork", "method.dropout=0.2", *SHORT], 1),
}


def curves(folder: Path) -> list[tuple[Any, ...]]:
    """Training and evaluation curves in the order of the record, without what a clock says."""
    found = []
    for line in (folder / "events.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "scalars":
            names = ("train/loss", "train/learning_rate", "train/grad_norm")
            found.append((event["step"], *(event["values"][name] for name in names)))
        elif event["event"] == "evaluation":
            found.append((event["step"], event["values"]))
    return found


def assert_same_run(one: Path, other: Path) -> None:
    """Scores, curves, measures and recommendation to the bit; prompts, adapters, artefact and samples byte by byte."""
    assert (one / "scores.parquet").read_bytes() == (other / "scores.parquet").read_bytes()
    assert curves(one) == curves(other)
    first, second = (json.loads((folder / "result.json").read_text()) for folder in (one, other))
    for result in (first, second):
        assert result["status"] == "completed"
    for name in ("recommendation", "references", "steps_done", "encoders"):
        assert first[name] == second[name], name
    for a, b in zip(first["evaluations"], second["evaluations"], strict=True):
        assert (a["step"], a["metrics"]) == (b["step"], b["metrics"])
    assert (one / "prompts.json").read_bytes() == (other / "prompts.json").read_bytes()
    for folder, least in (("artefact", 1), ("adapters", 2), ("samples", 3)):
        files = sorted(path.relative_to(one) for path in (one / folder).rglob("*"))
        assert files == sorted(path.relative_to(other) for path in (other / folder).rglob("*"))
        assert len(files) >= least
        for name in files:
            if (one / name).is_file():
                assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of `KILLED`, one after the other out of one process: imports take longest."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork")
    root = tmp_path_factory.mktemp("killed")
    wanted = json.dumps({name: [[*TINY, *words], kills] for name, (words, kills) in KILLED.items()})
    for seed, part in (("1", "whole"), ("2", "killed")):  # sets and hashes have another order in each process
        done = subprocess.run(
            [sys.executable, "-c", KILLER, str(root), wanted, part], capture_output=True, text=True, cwd=ROOT,
            env={
                **os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed,
                "DIFFUSION_LAB_CACHE": str(root / "cache"),
            },
            timeout=1800, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
    return root


@pytest.mark.parametrize("method", KILLED)
def test_killed_at_random_moments_and_gone_on_with(runs: Path, method: str) -> None:
    whole, killed = runs / method / "whole", runs / method / "killed"
    assert int((runs / method / "killed.txt").read_text()) >= 1
    assert_same_run(whole, killed)
    events = [json.loads(line) for line in (killed / "events.jsonl").read_text().splitlines()]
    assert {"resume", "finish"} <= {event["event"] for event in events}
    steps = {kind: [e["step"] for e in events if e["event"] == kind] for kind in ("scalars", "evaluation")}
    last = 6 if method == "lora" else 3
    assert steps["scalars"] == [*range(1, last + 1)]
    assert sorted(steps["evaluation"]) == ([0, 2, 4, 6] if method == "lora" else [0, 3])
    left = sorted(path.name for path in (killed / "checkpoints").iterdir())
    assert 2 <= len(left) <= 3, left
    assert left[-2:] == [f"step-{last - 1:06d}", f"step-{last:06d}"]
    assert (killed / "adapters" / f"step-{last:06d}").is_dir(), "the last one is there beside the best"


@pytest.fixture
def _logging() -> Iterator[None]:
    """What Hydra sets up does not outlive the test."""
    import logging

    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("_logging")
def test_sigterm_ends_cleanly_and_resume_folder_goes_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from diffusion_lab.__main__ import main

    folder = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "diffusion_lab", *TINY, "steps.total=6", f"hydra.run.dir={folder}"],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 600
    while not (folder / "samples" / "step-000002.png").exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    told, _ = process.communicate(timeout=600)
    assert process.returncode == 143, told
    assert told.splitlines()[-1] == "stopped by SIGTERM"
    assert f"to resume it: python -m diffusion_lab resume={folder}" in told
    result = json.loads((folder / "result.json").read_text())
    assert (result["status"], result["error"]) == ("interrupted", "stopped by SIGTERM")
    assert result["evaluations"]
    assert (folder / "report.html").exists()

    assert main([f"resume={folder}", "seed=9"]) == 2
    assert "seed was 0, is 9" in capfd.readouterr().err
    newest = sorted((folder / "checkpoints").iterdir())[-1]
    (newest / "state.pt").write_bytes(b"torn")
    assert main([f"resume={folder}"]) == 0
    log = (folder / "run.log").read_text()
    assert f"{newest} is damaged" in log
    assert "resuming the run in" in log
    result = json.loads((folder / "result.json").read_text())
    assert (result["status"], result["error"]) == ("completed", None)
    assert [entry["step"] for entry in result["evaluations"]] == [0, 2, 4, 6]
    assert sorted(step for step, *_ in curves(folder)) == sorted([*range(1, 7), 0, 2, 4, 6])
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert main([f"resume={folder}"]) == 0
    assert "left alone" in capfd.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
