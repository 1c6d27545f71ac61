"""Any one file of a run's folder lost or damaged: rebuilt from the others, or named; never fewer results in silence."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from diffusion_lab.cli.compose import compose
from diffusion_lab.config.schema import Config, as_plain_dict
from diffusion_lab.jobs import finetune, perform
from diffusion_lab.plan.defaults import fill_defaults
from diffusion_lab.records import UserError
from diffusion_lab.runs import scores
from diffusion_lab.runs.files import FileTracker
from diffusion_lab.runs.resume import folder_status
from diffusion_lab.training import checkpoint

WORDS = [
    "experiment=debug", "metrics=debug", "metrics.names=[similarity,diversity]", "steps.log_every=1", "prompts.n=2",
    "steps.batch_size=2", "model.device=cpu",
]  # fmt: skip

DAMAGES: dict[str, Callable[[Path, Path], object]] = {  # the file, and the same one of another run
    "deleted": lambda path, other: path.unlink(),
    "empty": lambda path, other: path.write_bytes(b""),
    "cut": lambda path, other: os.truncate(path, path.stat().st_size // 2),
    "garbage": lambda path, other: path.write_bytes(bytes(range(256)) * 8),
    "no UTF-8": lambda path, other: path.write_bytes(b"\xff\xfe{" + path.read_bytes()[:-1]),
    "a number": lambda path, other: path.write_bytes(b"5\n"),
    "a list": lambda path, other: path.write_bytes(b"[]\n"),
    "null": lambda path, other: path.write_bytes(b"null\n"),
    "another run's": lambda path, other: shutil.copyfile(other, path),
}


def configured(*words: str) -> Config:
    return fill_defaults(compose([*WORDS, *words]))


class Killed(BaseException):
    """What no `except` of the program expects; with `conclude` out of the way a run ends as a kill ends it."""


def make(folder: Path, *words: str, killed_at: int | None = None) -> Path:
    """A real run, or one that was killed when its evaluation at a step was about to begin."""
    from diffusion_lab.evaluation import evaluate as module

    config = configured(*words)
    (folder / ".hydra").mkdir(parents=True)
    for name in ("config", "hydra", "overrides"):
        (folder / ".hydra" / f"{name}.yaml").write_text(f"name: {name}\nseed: {config.seed}\n")
    if killed_at is None:
        assert perform(config, folder).exit_status == 0
        return folder
    real = module.evaluate

    def evaluate(
        pipe: Any, prompts: Any, references: Any, bank: Any, settings: Any, step: int, **more: Any
    ) -> Any:
        if step == killed_at:
            raise Killed
        return real(pipe, prompts, references, bank, settings, step, **more)

    def conclude(
        config: Any, run_folder: Any, findings: Any, tracker: Any, files: FileTracker, status: Any
    ) -> None:
        files.close()

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(module, "evaluate", evaluate)
        patch.setattr(finetune, "conclude", conclude)
        perform(config, folder)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished and an unfinished run, and another one, of another seed: never written to."""
    root = tmp_path_factory.mktemp("record")
    make(root / "finished")
    make(root / "unfinished", killed_at=4)
    make(root / "other", "seed=1")
    return root


@pytest.fixture
def copied(runs: Path, tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Fresh copies of those, one after the other under the same name."""

    def copy(name: str) -> Path:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        return Path(shutil.copytree(runs / name, tmp_path / "run", copy_function=_cheap))

    handlers = logging.getLogger().handlers[:]
    yield copy
    assert logging.getLogger().handlers == handlers, "a log was left open"


def _cheap(source: str, target: str) -> str:
    """Large files are linked: the program replaces them and never writes into them."""
    if os.path.getsize(source) > 1 << 20:
        os.link(source, target)
        return target
    return str(shutil.copy2(source, target))


def damage(kind: str, folder: Path, name: str, other: Path) -> None:
    content = (folder / name).read_bytes()
    (folder / name).unlink()  # it may be linked
    (folder / name).write_bytes(content)
    DAMAGES[kind](folder / name, other / name)


def results(folder: Path) -> dict[str, Any]:
    """All that was found out, from the files: what may not become less."""
    result = json.loads((folder / "result.json").read_text())
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    curve = [(e["step"], e["values"]["train/loss"]) for e in events if e["event"] == "scalars"]
    told = [(e["step"], e["values"]) for e in events if e["event"] == "evaluation"]
    return {
        "evaluations": [(entry["step"], entry["metrics"]) for entry in result["evaluations"]],
        "rows": scores.read(folder / "scores.parquet"),
        "curve": curve,
        "told": told,
        **{name: result[name] for name in ("config", "references", "prompts", "metrics", "encoders", "run")},
    }


# --- finished -----------------------------------------------------------------------------------------

RECOMMENDED = "step-00000R"
REBUILT = (
    "result.json", "scores.parquet", "events.jsonl", "config.yaml", "prompts.json", "record.zip", "report.html",
    "samples/training.png", "artefact/pytorch_lora_weights.safetensors", "artefact/lora_kohya.safetensors",
    f"adapters/{RECOMMENDED}/pytorch_lora_weights.safetensors", f"adapters/{RECOMMENDED}/lora_kohya.safetensors",
    "adapters/step-000004/pytorch_lora_weights.safetensors",
)  # fmt: skip
NAMED = (  # no other file holds these
    "samples/step-000002.png", "adapters/step-000000/pytorch_lora_weights.safetensors",
)  # fmt: skip
UNNEEDED = (  # of a run that has nothing left to train
    "run.log", "checkpoints/step-000004/state.pt", "checkpoints/step-000004/checksum.json",
)  # fmt: skip


@pytest.mark.parametrize("name", [*REBUILT, *NAMED, *UNNEEDED])
def test_a_finished_run_with_a_damaged_file(
    runs: Path, copied: Callable[[str], Path], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    whole, other, config = runs / "finished", runs / "other", configured()
    before = results(whole)
    stop = json.loads((whole / "result.json").read_text())["recommendation"]["step"]
    name = name.replace(RECOMMENDED, f"step-{stop:06d}")
    kinds = list(DAMAGES) if name in ("result.json", "events.jsonl") else ["deleted", "cut", "another run's"]
    for kind in kinds:
        folder = copied("finished")
        if kind == "another run's" and (other / name).read_bytes() == (whole / name).read_bytes():
            continue
        damage(kind, folder, name, other)
        caplog.clear()
        assert folder_status(config, folder) == ("finished" if name in UNNEEDED else "incomplete"), kind
        outcome = perform(config, folder)
        assert outcome.exit_status == 0, (kind, outcome)
        assert results(folder) == before, kind
        assert (folder / "scores.parquet").read_bytes() == (whole / "scores.parquet").read_bytes()
        if name in NAMED:
            assert f"still missing or damaged: {name}" in caplog.text, kind
            assert "created again" not in caplog.text, kind
        if name in (*NAMED, *UNNEEDED):
            continue
        assert re.search(rf"created again: .*{re.escape(name)}", caplog.text), kind
        assert folder_status(config, folder) == "finished", kind
        assert json.loads((folder / "result.json").read_text())["status"] == "completed"
        if name.endswith(".safetensors"):
            one, two = load_file(folder / name), load_file(whole / name)
            assert one.keys() == two.keys()
            assert all((one[key] == two[key]).all() for key in one), kind
        elif name in ("config.yaml", "prompts.json", "scores.parquet", "samples/training.png"):
            assert (folder / name).read_bytes() == (whole / name).read_bytes(), kind
        else:
            assert (folder / name).stat().st_size > (whole / name).stat().st_size * 0.9
        times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
        assert perform(config, folder).exit_status == 0
        assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == times, "and then left alone"


@pytest.mark.parametrize("name", ["scores.parquet", "result.json"])
def test_without_the_second_copy_a_lost_file_is_named(copied: Callable[[str], Path], name: str) -> None:
    """What older versions have left has no second copy, and here no checkpoint either."""
    folder = copied("finished")
    (folder / "record.zip").unlink()
    (folder / name).write_bytes(b"torn")
    before = {
        path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"
    }
    outcome = perform(configured(), folder)
    assert outcome.exit_status == 2
    assert name in outcome.message
    assert "hydra.run.dir" in outcome.message
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}
    assert {path for path in before if before[path] != after[path]} <= {folder / "run.log"}


@pytest.mark.parametrize("name", [*REBUILT, *NAMED, ".hydra/overrides.yaml"])
def test_the_report_of_a_damaged_folder(
    runs: Path, copied: Callable[[str], Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page is written and says what it misses, or the file is named."""
    import plotly.offline

    from diffusion_lab.report.comparison import write_comparison
    from diffusion_lab.report.page import write_report

    monkeypatch.setattr(plotly.offline, "get_plotlyjs", lambda: "")  # five megabytes a page
    stop = json.loads((runs / "finished" / "result.json").read_text())["recommendation"]["step"]
    name = name.replace(RECOMMENDED, f"step-{stop:06d}")
    for kind in DAMAGES if name.endswith((".json", ".jsonl")) else ("deleted", "cut", "another run's"):
        folder = copied("finished")
        if kind == "another run's" and same(runs, name):
            continue
        damage(kind, folder, name, runs / "other")
        if name == "result.json" and kind != "another run's":
            with pytest.raises(UserError, match=rf"{name} cannot be read.*resume={folder}"):
                write_report(folder)
        else:
            page = write_report(folder).read_text("utf-8")
            if name not in ("result.json", "record.zip", "report.html", ".hydra/overrides.yaml"):
                assert name in page.split("Missing or damaged since")[1].split("</p>")[0], kind
        page = write_comparison(folder.parent).read_text("utf-8")
        assert ("cannot be read" in page) == (name == "result.json" and kind != "another run's"), kind


def same(runs: Path, name: str) -> bool:
    """Whether two runs that differ by their seed have the same file."""
    return (runs / "finished" / name).read_bytes() == (runs / "other" / name).read_bytes()


# --- unfinished ---------------------------------------------------------------------------------------

READ = (
    "result.json", "scores.parquet", "events.jsonl", "config.yaml", "prompts.json", "record.zip", "run.log",
    "samples/training.png", "samples/step-000002.png",
)  # fmt: skip


def taken_up(config: Config, folder: Path) -> tuple[int, FileTracker]:
    """As a run that is resumed begins: (the step of its checkpoint, its record)."""
    assert folder_status(config, folder) == "unfinished"
    newest = checkpoint.latest(folder / "checkpoints")
    assert newest is not None
    tracker = FileTracker(folder, resume_step=newest.step)
    tracker.start(as_plain_dict(config))
    tracker.close()
    return newest.step, tracker


@pytest.mark.parametrize("name", READ)
def test_an_unfinished_run_with_a_damaged_file(
    runs: Path, copied: Callable[[str], Path], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    config, before = configured(), results(runs / "unfinished")
    assert [step for step, _ in before["evaluations"]] == [0, 2]
    for kind in DAMAGES:
        folder = copied("unfinished")
        damage(kind, folder, name, runs / "other")
        caplog.clear()
        step, _ = taken_up(config, folder)
        assert step == 4
        after = results(folder)
        for part in ("evaluations", "rows", "curve", "told", "prompts", "config", "run"):
            assert after[part] == before[part], (kind, part)
        if name in ("result.json", "scores.parquet", "events.jsonl") or name == "samples/step-000002.png":
            assert name in caplog.text, kind


@pytest.mark.parametrize("name", ["scores.parquet", "result.json"])
def test_lost_evaluations_without_a_second_copy_are_refused(copied: Callable[[str], Path], name: str) -> None:
    folder = copied("unfinished")
    (folder / "record.zip").unlink()
    (folder / name).write_bytes(b"torn")
    with pytest.raises(UserError) as refused:
        taken_up(configured(), folder)
    assert name in str(refused.value)
    assert "hydra.run.dir" in str(refused.value)
    assert "checkpoints" in str(refused.value)


def test_lost_events_without_a_second_copy_lose_no_evaluation(
    runs: Path, copied: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    """What an older version has left: evaluations come from the scores, and the lost curve is spoken of."""
    folder = copied("unfinished")
    (folder / "record.zip").unlink()
    (folder / "events.jsonl").unlink()
    taken_up(configured(), folder)
    before, after = results(runs / "unfinished"), results(folder)
    assert after["told"] == before["told"]
    assert after["rows"] == before["rows"]
    assert "the training curve up to here is lost" in caplog.text


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_checkpoint_goes_back_to_the_one_before(
    runs: Path, copied: Callable[[str], Path], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("state.pt", "checksum.json"):
        folder = copied("unfinished")
        damage(kind, folder, f"checkpoints/step-000004/{name}", runs / "other")
        step, tracker = taken_up(configured(), folder)
        assert step == 2
        assert list(tracker.measured()) == [0, 2]
        assert "step-000004 is damaged" in caplog.text


def test_an_evaluation_whose_adapter_is_lost_is_made_again(copied: Callable[[str], Path]) -> None:
    folder = copied("finished")
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | {"status": "running", "cost": {}}))
    os.truncate(folder / "adapters/step-000004/pytorch_lora_weights.safetensors", 1000)
    step, tracker = taken_up(configured(), folder)
    assert step == 4
    assert list(tracker.measured()) == [0, 2]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("events.jsonl", "deleted"),
        ("scores.parquet", "cut"),
        ("result.json", "cut"),
        ("record.zip", "another run's"),
    ],
)
def test_a_resumed_run_ends_as_if_nothing_had_been_lost(
    runs: Path, copied: Callable[[str], Path], name: str, kind: str
) -> None:
    folder = copied("unfinished")
    damage(kind, folder, name, runs / "other")
    assert perform(configured(), folder).exit_status == 0
    whole = runs / "finished"
    assert results(folder) == results(whole)
    assert (folder / "scores.parquet").read_bytes() == (whole / "scores.parquet").read_bytes()
    assert folder_status(configured(), folder) == "finished"
