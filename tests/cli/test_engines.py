"""The same small sweep through every launcher, the options for them, and one GPU for each process."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffusion_lab.cli import engines
from diffusion_lab.cli.compose import compose_raw
from diffusion_lab.system import gpus

WORDS = [
    "-m", "experiment=debug", "metrics=debug", "metrics.names=[diversity]", "steps.total=2", "steps.every=1", "prompts.n=2",
    "steps.batch_size=1", "model.device=cpu", "seed=0,1",
]  # fmt: skip
LAUNCHERS = {
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit_local": ["hydra/launcher=submitit_local"],
    "ray": ["hydra/launcher=ray_cpus", "hydra.launcher.ray.init.num_cpus=2"],
}
NEEDED = {"submitit_local": "submitit", "ray": "ray", "joblib": "joblib"}


def command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "diffusion_lab", *WORDS, f"hydra.sweep.dir={folder}", *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip


def scores(folder: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in sorted(folder.glob("*/scores.parquet"))}


@pytest.fixture(scope="module")
def basic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("basic") / "sweep"
    done = command(folder)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("launcher", list(LAUNCHERS))
def test_the_same_scores_through_every_launcher(launcher: str, basic: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec(NEEDED[launcher]) is None:
        pytest.skip(f"{NEEDED[launcher]} is not installed (it has no wheel for every platform)")
    done = command(tmp_path / "sweep", *LAUNCHERS[launcher])
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(scores(basic)) == 2
    assert scores(tmp_path / "sweep") == scores(basic)
    assert (tmp_path / "sweep" / "comparison.html").is_file()


@pytest.mark.slow
def test_a_job_that_a_cluster_stops_is_started_again_and_resumed(basic: Path, tmp_path: Path) -> None:
    """The signal before a time limit or a preemption. submitit's local executor requeues as SLURM does."""
    pytest.importorskip("submitit")
    folder = tmp_path / "sweep"
    words = [*WORDS[:-1], "seed=0", f"hydra.sweep.dir={folder}", *LAUNCHERS["submitit_local"]]
    sweep = subprocess.Popen(
        [sys.executable, "-m", "diffusion_lab", *words], env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    job = first(lambda: folder.glob(".submitit/*/*_submitted.pkl")).parent.name
    run = first(lambda: folder.glob("*/checkpoints/step-000001")).parents[1]
    os.kill(child_of(int(job)), signal.SIGUSR2)
    stopped = first(lambda: (file for file in [run / "result.json"] if json.loads(file.read_text())["error"]))
    assert json.loads(stopped.read_text())["error"].startswith("stopped before the cluster's time limit")
    said = sweep.communicate(timeout=300)[1]
    assert sweep.returncode == 0, said
    assert "1 of 1 jobs completed, 0 failed" in said
    [log] = folder.glob(".submitit/*/*_0_log.err")
    assert "resuming the run" in log.read_text()
    assert json.loads((run / "result.json").read_text())["status"] == "completed"
    assert (run / "scores.parquet").read_bytes() == scores(basic)["seed=0"]


def first(paths: object, seconds: float = 90.0) -> Path:
    """The first path of a glob, as soon as there is one."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for path in paths():  # type: ignore[operator]
            return Path(path)
        time.sleep(0.05)
    raise AssertionError("nothing came")


def child_of(parent: int) -> int:
    """The process that submitit's controller has started."""
    return int(Path(f"/proc/{parent}/task/{parent}/children").read_text().split()[0])


@pytest.mark.parametrize(
    ("option", "extra"), [("submitit_local", "submitit"), ("slurm", "submitit"), ("ray", "ray"), ("ray_gpus", "ray")]
)  # fmt: skip
def test_an_extra_that_is_not_installed_is_named(
    option: str,
    extra: str,
    monkeypatch: pytest.MonkeyPatch,
    run_main: object,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins

    Plugins.instance()  # has loaded what is there
    launchers = ConfigStore.instance().repo["hydra"]["launcher"]
    for name in [name for name in launchers if name.startswith(("submitit", "ray"))]:
        monkeypatch.delitem(launchers, name)
    assert run_main("-m", "experiment=debug", "seed=0,1", f"hydra/launcher={option}") == 2  # type: ignore[operator]
    assert f"pip install 'diffusion-lab[{extra}]'" in capfd.readouterr().err


def test_options_for_clusters_ask_for_one_gpu_a_run() -> None:
    pytest.importorskip("submitit")
    slurm = compose_raw(["hydra/launcher=slurm", "hydra.launcher.partition=gpu"]).hydra.launcher
    assert (slurm.gpus_per_node, slurm.tasks_per_node, slurm.nodes) == (1, 1, 1)
    assert slurm.max_num_timeout > 0, "a run that reaches the time limit is started again"
    if importlib.util.find_spec("ray") is not None:
        assert compose_raw(["hydra/launcher=ray_gpus"]).hydra.launcher.ray.remote.num_gpus == 1


# --- GPUs -----------------------------------------------------------------------------------------------

TAKER = """
import sys
from pathlib import Path
from diffusion_lab.system import gpus
print(gpus.take_one(wait=sys.argv[2] == "wait", folder=Path(sys.argv[1])), flush=True)
import os; print(os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
sys.stdin.read()
"""


class Taker:
    """A process that takes a GPU and keeps it until it is ended."""

    def __init__(self, folder: Path, wait: str = "share", visible: str = "4,7,GPU-a/b") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", TAKER, str(folder), wait], env={**os.environ, "CUDA_VISIBLE_DEVICES": visible},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def took(self) -> str:
        assert self.process.stdout is not None
        name, shown = (self.process.stdout.readline().strip() for _ in range(2))
        assert name == shown
        return name

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def takers(tmp_path: Path) -> Iterator[list[Taker]]:
    made: list[Taker] = []
    yield made
    for taker in made:
        taker.end()


def test_every_process_has_its_own_gpu(takers: list[Taker], tmp_path: Path) -> None:
    for _ in range(3):
        takers.append(Taker(tmp_path))
    assert sorted(taker.took() for taker in takers) == ["4", "7", "GPU-a/b"]
    takers.append(Taker(tmp_path))
    assert takers[-1].took() in ("4", "7", "GPU-a/b"), "more processes than GPUs share them"
    for taker in takers:
        taker.end()
    takers.append(Taker(tmp_path, visible="7"))
    with pytest.raises(AssertionError):  # None: one GPU is visible, so there is nothing to choose
        takers[-1].took()


def test_a_process_waits_until_a_gpu_is_free(takers: list[Taker], tmp_path: Path) -> None:
    takers.extend([Taker(tmp_path, "wait", "0"), Taker(tmp_path, "wait", "0")])
    until = time.monotonic() + 20
    import select

    ready: list[object] = []
    while not ready and time.monotonic() < until:
        ready = select.select([taker.process.stdout for taker in takers], [], [], 1)[0]
    [owner] = [taker for taker in takers if taker.process.stdout in ready]
    [other] = [taker for taker in takers if taker is not owner]
    assert owner.took() == "0"
    assert not select.select([other.process.stdout], [], [], 1)[0]
    owner.end()
    assert other.took() == "0"


def test_only_launchers_that_assign_no_gpu_take_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from omegaconf import OmegaConf

    asked: list[bool] = []
    monkeypatch.setattr(gpus, "take_one", lambda *, wait: asked.append(wait))
    for option in ("basic", "joblib", "submitit_local", "submitit_slurm"):
        if option.startswith("submitit"):
            pytest.importorskip("submitit")
        engines.prepare(
            OmegaConf.create({"launcher": compose_raw([f"hydra/launcher={option}"]).hydra.launcher})
        )
    assert asked == [False, True], "joblib shares, submitit_local waits; SLURM assigns GPUs itself"


def test_as_many_processes_as_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,2,3")
    assert compose_raw(["hydra/launcher=gpus"]).hydra.launcher.n_jobs == 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert compose_raw(["hydra/launcher=gpus"]).hydra.launcher.n_jobs == 1
