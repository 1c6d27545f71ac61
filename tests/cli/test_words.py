"""Words of a command line: the flags and the jobs of a sweep are those that Hydra itself makes of them."""

from __future__ import annotations

import argparse
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffusion_lab import jobs
from diffusion_lab.cli.compose import expand
from diffusion_lab.cli.words import flags_parser, read
from diffusion_lab.config.schema import Config, as_plain_dict
from diffusion_lab.config.texts import exact, recorded
from diffusion_lab.jobs import finetune
from diffusion_lab.records import UserError
from diffusion_lab.values.jsonable import plain


def known(parser: argparse.ArgumentParser) -> set[tuple[Any, ...]]:
    return {
        (tuple(sorted(action.option_strings)), action.nargs, action.const, tuple(action.choices or ()))
        for action in parser._actions
    }


def test_the_flags_are_hydras() -> None:
    """Hydra's parser is private to it; a flag that it adds or drops fails here."""
    from hydra._internal.utils import get_args_parser

    def without_version(parser: argparse.ArgumentParser) -> set[tuple[Any, ...]]:
        return {
            flag for flag in known(parser) if flag[0] != ("--version",)
        }  # Hydra prints it while it parses

    assert without_version(flags_parser()) == without_version(get_args_parser())
    assert any(action.option_strings == ["--version"] for action in get_args_parser()._actions)


@pytest.mark.parametrize(
    "words",
    [
        ["seed=0,1", "data.subject=anna,ben", "steps.total=5"],
        ["seed=range(0,5,2)", "seed=1,2", "method=glob(*)"],
        ["+data.identifier=1_1,'a, b'", "~tracker.group", "prompts.negative=null,x"],
        ["metrics.names=[similarity],[similarity,diversity]", "seed=3", "seed=4"],
        ["seed=1", "method=glob(*,exclude=[l*])", "seed=choice(7,8)"],
    ],
)
def test_jobs_of_a_sweep_are_those_of_hydras_sweeper(words: list[str]) -> None:
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from diffusion_lab.cli.compose import _hydra

    with _hydra():
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        parsed = OverridesParser.create(hydra.config_loader).parse_overrides(exact(words, sweep=True)[0])
        [theirs] = BasicSweeper.split_arguments(parsed, None)
    assert expand(words) == [recorded(job) for job in theirs]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Config]]:
    """Folder and configuration of every run; job=finetune only leaves a record."""
    found: list[tuple[str, Config]] = []

    def run(config: Config, folder: Path) -> None:
        found.append((folder.name, config))
        record = {"status": "completed", "config": plain(as_plain_dict(config))}
        (folder / "result.json").write_text(json.dumps(record))

    module = types.ModuleType("job_of_the_test")
    module.run, module.check = run, finetune.check  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "job_of_the_test", module)
    monkeypatch.setitem(jobs.JOBS, "finetune", "job_of_the_test")
    return found


def test_an_experiment_that_is_a_sweep(
    seen: list[tuple[str, Config]], run_main: Callable[..., int], capfd: pytest.CaptureFixture[str]
) -> None:
    """hydra.sweeper.params in a file: text as it is written, the command line wins, one of its runs is resumed alone."""
    Path("mine/experiment").mkdir(parents=True)
    Path("mine/experiment/varied.yaml").write_text(
        "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n"
        "      data.identifier: 1_1_1,2_2\n      seed: 3,4\n",
        "utf-8",
    )
    words = ["--config-dir", "mine", "experiment=varied", "tracker=files", "hydra.sweep.dir=out"]
    assert run_main(*words, "seed=7") == 0
    assert [(name, config.data.identifier, config.seed) for name, config in seen] == [
        ("identifier=1_1_1", "1_1_1", 7),
        ("identifier=2_2", "2_2", 7),
    ]
    capfd.readouterr()
    assert run_main("resume=out/identifier=2_2") == 0
    assert "identifier=2_2: a finished run" in capfd.readouterr().out
    assert len(seen) == 2
    assert not Path("outputs").exists()


def test_studies_are_named_together_or_one_by_one() -> None:
    together, apart = (
        read(["--sweep", "counts,prior", "--quick", "seed=1"]),
        read(["--sweep=counts", "seed=1", "--sweep", "prior"]),
    )
    assert together.studies == apart.studies == ("counts", "prior")
    assert (together.quick, apart.quick) == (True, False)
    assert sorted(together.given) == sorted(apart.given)
    with pytest.raises(UserError, match="--sweep NAME"):
        read(["--quick"])
