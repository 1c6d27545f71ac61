"""hydra/sweeper=optuna: the search space, real small sweeps that are continued, and pruning by planted scores."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from diffusion_lab.cli import optuna_space, optuna_trials
from diffusion_lab.cli.compose import compose, compose_raw, register
from diffusion_lab.records import Pruned, UserError
from diffusion_lab.studies.record import study_folder

optuna = pytest.importorskip("optuna")
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution  # noqa: E402

WORDS = [
    "-m", "experiment=debug", "metrics=debug", "metrics.names=[diversity]", "steps.total=2", "steps.every=1", "prompts.n=2",
    "steps.batch_size=1", "model.device=cpu", "hydra/sweeper=optuna",
]  # fmt: skip


# --- the search space -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("method.rank=4,8", CategoricalDistribution(["4", "8"])),
        ("method=choice(lora,dreambooth)", CategoricalDistribution(["lora", "dreambooth"])),
        ("metrics.names=[diversity],[similarity]", CategoricalDistribution(["[diversity]", "[similarity]"])),
        ("method.rank=range(2,9,2)", IntDistribution(2, 8, step=2)),  # the end is not included, as in Hydra
        ("method.rank=range(9,2,-3)", IntDistribution(3, 9, step=3)),
        ("method.prior_weight=range(0,1,0.25)", FloatDistribution(0.0, 0.75, step=0.25)),
        ("method.rank=int(interval(1,16))", IntDistribution(1, 16)),
        ("method.prior_weight=interval(0.0,1)", FloatDistribution(0.0, 1.0)),
        ("method.learning_rate=tag(log,interval(1e-5,1e-3))", FloatDistribution(1e-5, 1e-3, log=True)),
        ("method.rank=tag(log,int(interval(1,64)))", IntDistribution(1, 64, log=True)),
    ],
)
def test_hydras_grammar_as_distributions(word: str, expected: Any) -> None:
    space, fixed = optuna_space.parsed([word, "seed=3"])
    assert space == {word.partition("=")[0]: expected}
    assert fixed == {"seed": "3"}


def test_every_value_of_the_space_composes() -> None:
    space, fixed = optuna_space.parsed(
        ["method=lora", "method.learning_rate=tag(log,interval(1e-6,1e-2))", "method.rank=int(interval(1,64))",
         "metrics.names=[diversity],[similarity]", "data.identifier='a b',010"]
    )  # fmt: skip
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(5):
        params = study.ask(space).params
        config = compose(optuna_space.overrides(params, fixed))
        assert config.method.learning_rate == params["method.learning_rate"]  # type: ignore[attr-defined]
        assert config.method.rank == params["method.rank"]  # type: ignore[attr-defined]
        assert f"[{','.join(config.metrics.names)}]" == params["metrics.names"]
        assert config.data.identifier in ("a b", "010")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["seed=1"], "no key has several values"),
        (["method.rank=range(1,1)"], "has no value"),
        (["method.learning_rate=tag(log,interval(0,1.0))"], "low"),
    ],
)
def test_spaces_that_cannot_be_searched(words: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        optuna_space.parsed(words)


def test_scores_of_different_runs_need_fixed_ranges() -> None:
    config = compose(["metrics=debug", "metrics.names=[similarity,diversity]"])
    optuna_trials.check(config)
    del config.metrics.ranges["diversity"]
    with pytest.raises(UserError, match=r"metrics\.ranges\.diversity is not set"):
        optuna_trials.check(config)
    config.metrics.weights = {"similarity": 1.0}
    optuna_trials.check(config)


def test_without_optuna_the_extra_is_named(
    run_main: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "optuna" else real(name))
    assert run_main(*WORDS, "seed=0,1") == 2
    assert "pip install 'diffusion-lab[optuna]'" in capfd.readouterr().err


# --- real sweeps ----------------------------------------------------------------------------------------


def trained_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    from diffusion_lab.training import loop

    trained: list[int] = []
    real = loop.training_step

    def step(state: object, steps: object) -> tuple[float, float]:
        trained.append(1)
        return real(state, steps)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "training_step", step)
    return trained


@pytest.mark.slow
def test_a_study_finds_the_best_run_and_is_continued(
    run_main: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    trained = trained_steps(monkeypatch)
    sweep = tmp_path / "sweep"
    words = [
        *WORDS,
        f"hydra.sweep.dir={sweep}",
        "method.learning_rate=tag(log,interval(1e-5,1e-2))",
        "method.rank=2,4",
    ]
    assert run_main(*words, "hydra.sweeper.n_trials=2", "hydra.sweeper.study=first") == 0
    folder = sweep / "_first"
    rows = list(csv.DictReader((folder / "trials.csv").open()))
    assert [row["state"] for row in rows] == ["complete", "complete"]
    runs = {path.parent.name: json.loads(path.read_text()) for path in sweep.glob("*/result.json")}
    for row in rows:
        result = runs[row["run"]]
        stop = result["recommendation"]
        [score] = [entry["score"] for entry in stop["scores"] if entry["step"] == stop["step"]]
        assert float(row["score"]) == score
        assert result["config"]["method"]["learning_rate"] == float(row["method.learning_rate"])
        assert result["config"]["method"]["rank"] == int(row["method.rank"])
    best = json.loads((folder / "best.json").read_text())
    assert best["score"] == max(float(row["score"]) for row in rows)
    page = (folder / "index.html").read_text()
    assert "Plotly.newPlot" in page
    assert best["run"] in page
    # The same command again runs nothing; a larger number adds trials.
    assert len(trained) == 4
    assert run_main(*words, "hydra.sweeper.n_trials=2", "hydra.sweeper.study=first") == 0
    assert len(trained) == 4
    assert run_main(*words, "hydra.sweeper.n_trials=3", "hydra.sweeper.study=first") == 0
    assert len(trained) == 6
    assert len({row["method.learning_rate"] for row in csv.DictReader((folder / "trials.csv").open())}) == 3
    # Other fixed values would mix scores of different settings.
    capfd.readouterr()
    assert run_main(*words, "steps.batch_size=2", "hydra.sweeper.study=first") == 2
    assert "steps.batch_size was 1, is 2" in capfd.readouterr().err


@pytest.mark.slow
def test_a_killed_sweep_goes_on_with_its_trial(
    run_main: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusion_lab.training import loop

    trained = trained_steps(monkeypatch)
    counted = loop.training_step

    def killed(state: object, steps: object) -> tuple[float, float]:
        if len(trained) == 3:  # in the second trial, after its first step
            raise KeyboardInterrupt
        return counted(state, steps)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "training_step", killed)
    sweep = tmp_path / "sweep"
    words = [*WORDS, f"hydra.sweep.dir={sweep}", "method.rank=2,3,4,5", "hydra.sweeper.n_trials=2"]
    assert run_main(*words) == 130
    before = list(csv.DictReader((sweep / "_optuna" / "trials.csv").open()))
    assert [row["state"] for row in before] == ["complete", "running"]
    monkeypatch.setattr(loop, "training_step", counted)
    assert run_main(*words) == 0
    rows = list(csv.DictReader((sweep / "_optuna" / "trials.csv").open()))
    assert [row["state"] for row in rows] == ["complete"] * 2
    assert rows[1]["method.rank"] == before[1]["method.rank"]
    different = len({row["method.rank"] for row in rows})
    assert len(trained) == 2 * different, "the interrupted run was resumed, and no run was trained twice"
    assert len(list(sweep.glob("*/result.json"))) == different


# --- pruning --------------------------------------------------------------------------------------------


def settings(**changed: Any) -> Any:
    register()
    shipped = compose_raw(["hydra/sweeper=optuna"]).hydra.sweeper
    return OmegaConf.merge(shipped, {"prune_after_trials": 2, **changed})


def so_far(scores: dict[int, float], last: int) -> Any:
    """A run after the evaluations in `scores`, in place of one that trained."""
    steps = [SimpleNamespace(step=step, score=score) for step, score in scores.items()]
    planned = SimpleNamespace(evaluations=(0, 10, 20, last))
    return SimpleNamespace(
        recommendation=SimpleNamespace(scores=steps), findings=SimpleNamespace(planned=planned), step=max(scores)
    )  # fmt: skip


def play(tmp_path: Path, runs: list[list[float]], **changed: Any) -> list[int]:
    """Trials whose runs would score as planted at steps 0, 10, 20, 30; returns the last step of each."""
    from diffusion_lab.jobs import ending

    kept = settings(**changed)
    folder = study_folder(tmp_path, kept.study)
    folder.mkdir()
    study = optuna.create_study(
        study_name=kept.study, storage=optuna_trials.storage(folder), direction="maximize"
    )  # fmt: skip
    ended = []
    for number, values in enumerate(runs):
        trial = study.ask({"x": FloatDistribution(0, 1)})
        hydra = OmegaConf.create(
            {"sweeper": kept, "sweep": {"dir": str(tmp_path)}, "job": {"num": number}}
        )  # as in the run's process
        seen: dict[int, float] = {}
        with optuna_trials.reporting(hydra):
            [(_, rule)] = ending._rules
            try:
                for step, value in zip((0, 10, 20, 30), values, strict=True):
                    seen[step] = value
                    assert rule(so_far(seen, 30)) is None
                study.tell(trial, max(values))
            except Pruned as stopped:
                said = str(stopped)
                assert f"after step {max(seen)}" in said
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        assert study.trials[number].intermediate_values == seen
        ended.append(max(seen))
    return ended


GOOD, BAD = [0.1, 0.5, 0.6, 0.6], [0.1, 0.2, 0.2, 0.9]


def test_a_run_below_the_median_is_ended(tmp_path: Path) -> None:
    assert play(tmp_path, [GOOD, GOOD, BAD, GOOD]) == [30, 30, 10, 30]


def test_the_first_runs_are_never_ended(tmp_path: Path) -> None:
    assert play(tmp_path, [GOOD, GOOD, BAD, BAD], prune_after_trials=3) == [30, 30, 30, 10]


def test_no_run_is_ended_before_its_time_or_without_pruning(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert play(tmp_path / "a", [GOOD, GOOD, BAD], prune_after_steps=15) == [30, 30, 20]
    assert play(tmp_path / "b", [GOOD, GOOD, BAD], prune=False) == [30, 30, 30]


def test_the_last_evaluation_ends_no_run(tmp_path: Path) -> None:
    worst_at_the_end = [0.1, 0.5, 0.6, 0.6]
    assert play(tmp_path, [[0.1, 0.5, 0.6, 0.9], [0.1, 0.5, 0.6, 0.9], worst_at_the_end]) == [30, 30, 30]


@pytest.mark.slow
def test_a_pruned_run_is_no_failure_and_can_be_resumed(
    run_main: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second run is planted as bad; what the sweeper and the run do about it is real."""
    from optuna.trial import Trial

    monkeypatch.setattr(
        Trial, "should_prune", lambda self: self.number == 1 and 1 in self.storage.get_trial(self._trial_id).intermediate_values
    )  # fmt: skip
    sweep = tmp_path / "sweep"
    words = [
        *WORDS,
        f"hydra.sweep.dir={sweep}",
        "method.rank=int(interval(1,64))",
        "hydra.sweeper.n_trials=2",
    ]
    assert run_main(*words) == 0
    rows = list(csv.DictReader((sweep / "_optuna" / "trials.csv").open()))
    assert [(row["state"], row["last_step"]) for row in rows] == [("complete", "2"), ("pruned", "1")]
    result = json.loads((sweep / rows[1]["run"] / "result.json").read_text())
    assert result["status"] == "interrupted"
    assert "below the median" in result["error"]
    assert run_main(f"resume={sweep / rows[1]['run']}") == 0
    result = json.loads((sweep / rows[1]["run"] / "result.json").read_text())
    assert (result["status"], result["steps_done"]) == ("completed", 2)
