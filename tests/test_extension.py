"""A run that is extended to more steps equals the longer run from its start; what cannot be extended is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from diffusion_lab.cli.compose import compose
from diffusion_lab.config.schema import Config, as_plain_dict
from diffusion_lab.jobs import perform
from diffusion_lab.jobs.ending import SoFar, also_asking
from diffusion_lab.plan.defaults import fill_defaults
from diffusion_lab.records import UserError
from diffusion_lab.runs.resume import folder_status, run_id
from diffusion_lab.values.jsonable import plain

TINY = [
    "experiment=debug", "metrics=debug", "metrics.names=[diversity]", "steps.every=2", "prompts.n=2", "tracker=files",
    "steps.batch_size=3", "steps.log_every=1", "model.device=cpu", "tracker.progress=off",
]  # fmt: skip
# Words that both runs have, and the steps.total of the shorter run; the longer one has 6.
CASES: dict[str, tuple[list[str], int]] = {
    "lora": (["method.dropout=0.2", "data.flip=true", "steps.gradient_accumulation=2"], 4),
    "prodigy": (
        ["steps.optimizer=prodigy", "steps.lr_scheduler=constant_with_warmup", "steps.lr_warmup=5"],
        2,
    ),
    "dreambooth": (["method=dreambooth", "method.prior_images=2", "method.ema=true"], 4),
    "textual_inversion": (["method=textual_inversion", "method.vectors=2"], 4),
    "hypernetwork": (["method=hypernetwork", "method.dropout=0.2"], 4),
    # The shorter run evaluates and logs at step 5, the longer one does not: it goes on from step 4.
    "unaligned": (["steps.log_every=2", "steps.checkpoint_every=1", "steps.keep_checkpoints=2"], 5),
}


def configured(*words: str) -> Config:
    return fill_defaults(compose([*TINY, *words]))


def made(folder: Path, *words: str, status: int = 0) -> dict[str, Any]:
    """The record of the run in the folder after running the words there."""
    outcome = perform(configured(*words), folder)
    assert outcome.exit_status == status, outcome.error
    return recorded(folder)


def recorded(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


def curves(folder: Path) -> list[tuple[Any, ...]]:
    """Training and evaluation curves in the order of the record, without what a clock says."""
    found = []
    for line in (folder / "events.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["event"] in ("scalars", "evaluation"):
            timed = ("train/images_per_second", "train/peak_memory_gib")
            found.append((event["step"], {k: v for k, v in event["values"].items() if k not in timed}))
    return found


def assert_same_run(one: Path, other: Path) -> None:
    """Scores, curves and measures to the bit; adapters, artefact and samples byte by byte."""
    assert (one / "scores.parquet").read_bytes() == (other / "scores.parquet").read_bytes()
    assert curves(one) == curves(other)
    first, second = recorded(one), recorded(other)
    for name in ("status", "run", "config", "recommendation", "references", "steps_done", "ended"):
        assert first[name] == second[name], name
    for a, b in zip(first["evaluations"], second["evaluations"], strict=True):
        assert (a["step"], a["metrics"]) == (b["step"], b["metrics"])
    for folder in ("artefact", "adapters", "samples"):
        files = sorted(path.relative_to(one) for path in (one / folder).rglob("*"))
        assert files == sorted(path.relative_to(other) for path in (other / folder).rglob("*"))
        for name in files:
            if (one / name).is_file():
                assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished LoRA run of 4 steps; copy it before use."""
    folder = tmp_path_factory.mktemp("short") / "run"
    made(folder, "steps.total=4")
    return folder


@pytest.fixture
def run(short: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(short, tmp_path / "run"))


@pytest.mark.parametrize("case", CASES)
def test_an_extended_run_equals_the_longer_run_from_its_start(case: str, tmp_path: Path) -> None:
    words, total = CASES[case]
    before = made(tmp_path / "extended", *words, f"steps.total={total}")
    assert folder_status(configured(*words, "steps.total=6"), tmp_path / "extended") == "extended"
    after = made(tmp_path / "extended", *words, "steps.total=6")
    made(tmp_path / "whole", *words, "steps.total=6")
    assert_same_run(tmp_path / "whole", tmp_path / "extended")
    assert folder_status(configured(*words, "steps.total=6"), tmp_path / "extended") == "finished"
    [entry] = after["extended"]
    assert (entry["run"], entry["total"]) == (before["run"], total)
    assert after["run"] == run_id(after["config"]) != before["run"]
    assert max(entry["step"] for entry in after["evaluations"]) == 6


def test_an_extension_that_is_killed_at_once_goes_on(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first new checkpoint: the folder has the new settings and the old checkpoints."""
    from diffusion_lab.jobs import finetune

    def killed(*given: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(finetune, "adapt_extended", killed)
        with pytest.raises(KeyboardInterrupt):
            perform(configured("steps.total=6"), run)
    assert recorded(run)["config"]["steps"]["total"] == 6
    assert folder_status(configured("steps.total=6"), run) == "unfinished"
    made(run, "steps.total=6")
    made(tmp_path / "whole", "steps.total=6")
    assert_same_run(tmp_path / "whole", run)
    assert [entry["total"] for entry in recorded(run)["extended"]] == [4]


@pytest.mark.parametrize("written", ["events.jsonl", "result.json", "config.yaml"])
def test_an_extension_that_is_killed_while_the_record_is_rewritten(
    run: Path, written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusion_lab.system import atomic

    real = atomic.write_bytes

    def write(path: Path, content: bytes, **more: Any) -> Any:
        found = real(path, content, **more)
        if path.name == written:
            raise KeyboardInterrupt
        return found

    with monkeypatch.context() as patched:
        patched.setattr(atomic, "write_bytes", write)
        with pytest.raises(KeyboardInterrupt):
            perform(configured("steps.total=6"), run)
    result = made(run, "steps.total=6")
    assert [entry["step"] for entry in result["evaluations"]] == [0, 2, 4, 6]
    assert [entry["total"] for entry in result["extended"]] == [4]


def test_an_unfinished_run_is_extended_and_one_extended_twice(run: Path) -> None:
    shutil.rmtree(run / "artefact")
    assert [entry["total"] for entry in made(run, "steps.total=6")["extended"]] == [4]
    shutil.rmtree(run / "adapters" / "step-000006")  # restored from its checkpoint, of the same configuration
    result = made(run, "steps.total=8")
    assert [entry["total"] for entry in result["extended"]] == [4, 6]
    assert [entry["step"] for entry in result["evaluations"]] == [0, 2, 4, 6, 8]


def test_an_adapter_of_the_shorter_run_is_restored_from_its_checkpoint(run: Path) -> None:
    made(run, "steps.total=6", "steps.keep_checkpoints=9")
    place = run / "adapters" / "step-000004"
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    (place / "pytorch_lora_weights.safetensors").unlink()
    made(run, "steps.total=6", "steps.keep_checkpoints=9")
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before


REFUSED: dict[str, tuple[list[str], list[str], str]] = {
    "rates": (
        ["steps.lr_scheduler=cosine"], [],
        r"steps\.total=6: .*steps\.total=4.*rates of steps\.lr_scheduler=cosine depend.*hydra\.run\.dir=FOLDER",
    ),
    "phases": (["method=pivotal"], [], r"steps\.total=6: .*method\.switch is a fraction.*hydra\.run\.dir=FOLDER"),
    "cadence": ([], ["steps.every=3"], r"evaluations every 3 steps.*every 2; set steps\.every=2"),
}  # fmt: skip


def record(folder: Path, status: str, *words: str, **more: Any) -> None:
    """A record as an earlier run leaves it, with checkpoints at its evaluations."""
    config = plain(as_plain_dict(configured(*words)))
    folder.mkdir(exist_ok=True)
    result = {"schema": 1, "status": status, "config": config, **more}
    (folder / "result.json").write_text(json.dumps(result))
    for step in (2, config["steps"]["total"]):
        (folder / "checkpoints" / f"step-{step:06d}").mkdir(parents=True, exist_ok=True)


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("status", ["completed", "interrupted"])
def test_what_depends_on_the_number_of_steps_is_refused(case: str, status: str, tmp_path: Path) -> None:
    words, more, message = REFUSED[case]
    record(tmp_path, status, *words, "steps.total=4")
    with pytest.raises(UserError, match=message):
        folder_status(configured(*words, *more, "steps.total=6"), tmp_path)


def test_an_extension_needs_a_checkpoint(tmp_path: Path) -> None:
    record(tmp_path, "completed", "steps.total=4")
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(UserError, match=r"steps\.total=6: .*no checkpoint.*hydra\.run\.dir=FOLDER"):
        folder_status(configured("steps.total=6"), tmp_path)
    record(tmp_path, "completed", "steps.total=5")
    shutil.rmtree(tmp_path / "checkpoints" / "step-000002")
    with pytest.raises(UserError, match=r"last step, 5, is no multiple of steps\.every"):
        folder_status(configured("steps.total=6"), tmp_path)
    record(tmp_path, "interrupted", "steps.total=5")
    assert folder_status(configured("steps.total=6"), tmp_path) == "extended", "it begins again"


def test_adapters_that_were_removed_for_an_extra_evaluation(tmp_path: Path) -> None:
    words = ["method=dreambooth", "steps.total=5"]
    record(tmp_path, "completed", *words, evaluations=[{"step": 5, "metrics": {}}])
    with pytest.raises(UserError, match=r"evaluated at its last step, 5, .*keep_adapters.*hydra\.run\.dir"):
        folder_status(configured("method=dreambooth", "steps.total=6"), tmp_path)
    record(tmp_path, "interrupted", *words, evaluations=[{"step": 2, "metrics": {}}])
    assert folder_status(configured("method=dreambooth", "steps.total=6"), tmp_path) == "extended"


def test_damaged_checkpoints_are_named(run: Path) -> None:
    for state in (run / "checkpoints").rglob("state.pt"):
        state.write_bytes(b"damaged")
    outcome = perform(configured("steps.total=6"), run)
    assert outcome.exit_status == 2
    assert "all of its checkpoints are damaged" in str(outcome.error)
    assert recorded(run)["config"]["steps"]["total"] == 4


@pytest.mark.parametrize("words", [["steps.total=3"], ["steps.total=6", "seed=1"], ["steps.stop=auto"]])
def test_other_changes_are_refused_as_before(words: list[str], tmp_path: Path) -> None:
    record(tmp_path, "completed", "steps.total=4")
    with pytest.raises(UserError, match="begun with another configuration"):
        folder_status(configured("steps.total=4", *words), tmp_path)


def test_a_diverged_run_stays_diverged(tmp_path: Path) -> None:
    record(tmp_path, "diverged", "steps.total=4")
    assert folder_status(configured("steps.total=6"), tmp_path) == "diverged"


# --- runs that end early ------------------------------------------------------------------------------


def worse(so_far: SoFar) -> str | None:
    return "It became worse." if so_far.step == 4 else None


def test_a_run_that_is_ended_says_why_everywhere(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    asked: list[int] = []
    scores: list[float | None] = []

    def rule(so_far: SoFar) -> str | None:
        asked.append(so_far.step)
        assert so_far.recommendation is not None
        scores.append(so_far.recommendation.scores[-1].score)
        return worse(so_far)

    with also_asking("pruned", rule):
        result = made(folder, "steps.total=8")
    assert asked == [0, 2, 4]
    assert all(isinstance(score, float) for score in scores)
    assert result["status"] == "completed"
    assert result["ended"] == {"step": 4, "kind": "pruned", "reason": "It became worse."}
    assert (result["steps_done"], result["config"]["steps"]["total"]) == (4, 8)
    assert (folder / "artefact").is_dir()
    page = (folder / "report.html").read_text()
    assert "The run ended early, at step 4 of 8. It became worse." in page
    # It was not its configuration that ended it: without the rule, it is trained to its end.
    assert folder_status(configured("steps.total=8"), folder) == "unfinished"
    result = made(folder, "steps.total=8")
    assert (result["ended"], result["steps_done"]) == (None, 8)
    assert "ended early" not in (folder / "report.html").read_text()
    made(tmp_path / "whole", "steps.total=8")
    assert_same_run(tmp_path / "whole", folder)


def test_a_rule_is_asked_at_the_last_evaluation_but_cannot_end_it(tmp_path: Path) -> None:
    asked: list[int] = []

    def rule(so_far: SoFar) -> str | None:
        asked.append(so_far.step)
        return worse(so_far)

    with also_asking("pruned", rule):
        assert made(tmp_path, "steps.total=4")["ended"] is None
    assert asked == [0, 2, 4]
    assert folder_status(configured("steps.total=4"), tmp_path) == "finished"


@pytest.fixture
def _settles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the recommended stop settled at step 4 if all evaluations up to there are known."""
    from diffusion_lab.analysis import settled as module

    def settled(summaries: Any, *given: object, **named: Any) -> Any:
        assert named["references"]
        if sorted(summaries) != [0, 2, 4] or not all(step in named["paired"] for step in summaries):
            return None
        return module.Settled(2, {4: (0.1, 0.2)}, named["level"], 2)

    monkeypatch.setattr(module, "settled", settled)


@pytest.mark.usefixtures("_settles")
def test_stop_auto_ends_a_run_and_it_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["steps.stop=auto", "steps.total=8"]
    folder = tmp_path / "run"
    result = made(folder, *words)
    assert result["ended"] == {
        "step": 4, "kind": "settled",
        "reason": "The recommended stop, step 2, is settled: the newest evaluation has a lower weighted score by more than"
        " the paired 95 % interval, corrected for the choice among 2 steps (by 0.100 to 0.200 at step 4).",
    }  # fmt: skip
    assert folder_status(configured(*words), folder) == "finished"
    (folder / "report.html").unlink()
    assert folder_status(configured(*words), folder) == "incomplete"
    assert made(folder, *words)["ended"] == result["ended"]
    assert folder_status(configured(*words), folder) == "finished"
    # More steps change nothing, and are refused; without the rule, the run goes on.
    with pytest.raises(
        UserError, match=r"ended at step 4 because its recommended stop.*set steps\.stop=total"
    ):
        folder_status(configured("steps.stop=auto", "steps.total=10"), folder)
    extended = Path(shutil.copytree(folder, tmp_path / "extended"))
    made(folder, "steps.stop=total", "steps.total=8")
    made(tmp_path / "whole", "steps.total=8")
    assert_same_run(tmp_path / "whole", folder)
    assert made(extended, "steps.stop=total", "steps.total=10")["steps_done"] == 10


@pytest.mark.usefixtures("_settles")
def test_a_run_killed_between_evaluation_and_decision_ends_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusion_lab.jobs import ending

    words = ["steps.stop=auto", "steps.total=8"]
    real = ending.ended

    def killed(so_far: SoFar) -> Any:
        if so_far.step == 4:
            raise KeyboardInterrupt
        return real(so_far)

    with monkeypatch.context() as patched:
        patched.setattr(ending, "ended", killed)
        with pytest.raises(KeyboardInterrupt):
            perform(configured(*words), tmp_path / "killed")
    assert [entry["step"] for entry in recorded(tmp_path / "killed")["evaluations"]] == [0, 2, 4]
    made(tmp_path / "killed", *words)
    made(tmp_path / "whole", *words)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.usefixtures("_settles")
def test_a_run_killed_after_its_decision_is_concluded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusion_lab.jobs import conclude

    words = ["steps.stop=auto", "steps.total=8"]

    def killed(*given: object, **named: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(conclude, "_place_artefact", killed)
        with pytest.raises(KeyboardInterrupt):
            perform(configured(*words), tmp_path / "killed")
    result = recorded(tmp_path / "killed")
    assert (result["status"], result["ended"]["step"]) == ("interrupted", 4)
    assert folder_status(configured(*words), tmp_path / "killed") == "incomplete", "nothing is left to train"
    made(tmp_path / "killed", *words)
    made(tmp_path / "whole", *words)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_the_new_keys_do_not_change_the_ids_of_earlier_records() -> None:
    config = plain(as_plain_dict(configured("steps.total=4")))
    older = json.loads(json.dumps(config))
    for key in ("stop", "stop_evaluations", "stop_level"):
        del older["steps"][key]
    assert run_id(older) == run_id(config)
    auto = plain(as_plain_dict(configured("steps.total=4", "steps.stop=auto")))
    assert run_id(auto) != run_id(config)


# --- sweeps -------------------------------------------------------------------------------------------


def test_a_point_of_a_sweep_with_more_steps_extends_a_copy(run: Path, tmp_path: Path) -> None:
    from diffusion_lab.runs.extended_sweep import already_begun
    from diffusion_lab.runs.resume import locked
    from diffusion_lab.runs.shorter_run import MARK, copy_shorter_run

    def content() -> dict[Path, bytes]:
        return {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != ".lock"}

    config, before = configured("steps.total=6"), content()
    new = tmp_path / "1_new"
    (new / ".hydra").mkdir(parents=True)
    (new / MARK).touch()  # of a copy that was interrupted
    (new / "scores.parquet").touch()
    with locked(new):  # by another process that copies
        assert copy_shorter_run(as_plain_dict(config), new, [run]) is None
    assert already_begun(config, new) == new
    assert folder_status(config, new) == "extended"
    result = made(new, "steps.total=6")
    assert [entry["total"] for entry in result["extended"]] == [4]
    made(tmp_path / "elsewhere" / "whole", "steps.total=6")
    assert_same_run(tmp_path / "elsewhere" / "whole", new)
    assert content() == before, "the shorter run is as it was"
    other = tmp_path / "2_other"
    for words in (
        ["steps.total=6", "seed=1"],
        ["steps.total=6", "steps.lr_scheduler=cosine"],
        ["steps.total=3"],
    ):
        other.mkdir()
        assert already_begun(configured(*words), other) == other
        assert list(other.iterdir()) == [], words
        other.rmdir()


def test_resume_with_a_folder_and_more_steps(run_main: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert run_main(*TINY, "steps.total=2", f"hydra.run.dir={folder}") == 0
    assert run_main(f"resume={folder}", "steps.total=4") == 0
    result = recorded(folder)
    assert [entry["total"] for entry in result["extended"]] == [2]
    assert [entry["step"] for entry in result["evaluations"]] == [0, 2, 4]
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert run_main(f"resume={folder}") == 0
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before, (
        "a finished run of 4 steps"
    )
