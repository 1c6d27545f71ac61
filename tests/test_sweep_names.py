"""Names of a sweep's folders: what varies, short, safe, none twice, and kept when the sweep grows."""

from __future__ import annotations

import json
import logging
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_lab import jobs
from diffusion_lab.__main__ import main
from diffusion_lab.cli.compose import compose, expand
from diffusion_lab.cli.sweep_jobs import settle
from diffusion_lab.cli.sweep_names import LONGEST, by_what_varies, job_folder
from diffusion_lab.config.schema import Config, as_plain_dict
from diffusion_lab.jobs import finetune
from diffusion_lab.plan.defaults import fill_defaults
from diffusion_lab.values.jsonable import plain
from diffusion_lab.values.quoting import always_quoted

TINY = ["experiment=debug"]
LONG = [
    f"prompts.negative={'very bad anatomy and ugly hands ' * 9}",
    "data.identifier=customcls",
    "method.rank=4",
]


def names(*words: str, folder: Path = Path("nowhere")) -> list[str]:
    return [job.folder for job in settle(expand(words), folder)]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["data.n_images=4,14"], ["n_images=4", "n_images=14"]),
        ([*LONG, "data.n_images=4,14", "seed=1"], ["n_images=4", "n_images=14"]),
        (["seed=0,1", "method=lora,dreambooth"],
         ["seed=0,method=lora", "seed=0,method=dreambooth", "seed=1,method=lora", "seed=1,method=dreambooth"]),
        (["prompts.batch_size=1,2", "steps.batch_size=3"], ["batch_size=1", "batch_size=2"]),
        (["prompts.seed=1,2", "seed=3,4"],
         ["prompts.seed=1,seed=3", "prompts.seed=1,seed=4", "prompts.seed=2,seed=3", "prompts.seed=2,seed=4"]),
        (["prompts.negative='a b',c", "hydra.job.chdir=true"], ["negative=a-b", "negative=c"]),
        (["metrics.names=[similarity,diversity],[aesthetics]"], ["names=similarity,diversity", "names=aesthetics"]),
        (["data.identifier=../x,/y", "seed=1"], ["identifier=..-x", "identifier=-y"]),
        (["data.identifier=Ab,aB"], ["identifier=Ab", "identifier=aB-2"]),
        (["data.identifier='é','ü'"], ["identifier=-7709b999", "identifier=-7265b9ba"]),
        (["seed=5"], ["seed=5"]),
        (["seed=5,5"], ["seed=5"]),
        (["seed=1,2", "tracker.run_name=x"], ["seed=1", "seed=2"]),
        (["method.alpha=null,4"], ["alpha=null", "alpha=4"]),
    ],
)  # fmt: skip
def test_what_varies_names_the_folder(words: list[str], expected: list[str]) -> None:
    assert names(*words) == expected


def test_a_long_value_does_not_hide_the_key_that_follows_it() -> None:
    long = [f"prompts.negative={always_quoted(c * 90)},{always_quoted(c * 90 + 'x')}" for c in "a"]
    found = names(*long, "seed=0,1")
    assert len(set(found)) == 4
    assert all(len(name) <= LONGEST for name in found)
    assert found == names(*long, "seed=0,1"), "the digest is of the name alone"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.text(max_size=60), min_size=2, max_size=2), min_size=1, max_size=6))
def test_names_are_safe_short_and_different(values: list[list[str]]) -> None:
    from diffusion_lab.cli.sweep_names import _unique

    given_words = [
        [f"{key}={always_quoted(value)}" for key, value in zip("ab", job, strict=True)] for job in values
    ]
    found = _unique(by_what_varies(given_words))
    assert len({name.casefold() for name in found}) == len(found)
    assert all(re.fullmatch(r"[A-Za-z0-9_.,=+-]{1,80}", name) and name not in (".", "..") for name in found)


def test_names_stay_when_a_sweep_grows_within_its_keys() -> None:
    small, large = names("data.n_images=4,14", "seed=0,1"), names("data.n_images=4,8,14", "seed=0,1,2")
    assert set(small) < set(large)


def test_a_run_that_is_there_keeps_its_folder(tmp_path: Path) -> None:
    """Also one that an earlier version named by its number and all of its words."""
    for name, words in {
        "n_images=4": ["data.n_images=4"],
        "1_data.n_images=2,seed=0": ["data.n_images=2"],
    }.items():
        (tmp_path / name).mkdir()
        config = plain(as_plain_dict(fill_defaults(compose([*TINY, *words]))))
        (tmp_path / name / "result.json").write_text(json.dumps({"status": "completed", "config": config}))
    assert names(*TINY, "data.n_images=4,2,1", "seed=0,1", folder=tmp_path) == [
        "n_images=4", "n_images=4,seed=1", "1_data.n_images=2,seed=0", "n_images=2,seed=1", "n_images=1,seed=0",
        "n_images=1,seed=1",
    ]  # fmt: skip
    found = names(*TINY, "data.n_images=4,2", "steps.total=7", folder=tmp_path)
    assert found == ["n_images=4,total=7", "n_images=2"], "another configuration never gets a run's folder"


def test_without_settled_names_number_and_words_have_to_do() -> None:
    assert job_folder("sweep", 2, "x=1") == "2_x=1"
    assert job_folder("sweep", 0, "x=a/b") == "0_x=a-b"


def test_names_in_a_folder_of_studies_say_what_is_trained() -> None:
    jobs = settle([["data.subject=anna", "method=lora", f"seed={seed}"] for seed in (0, 1)], Path("nowhere"))
    assert [job.folder for job in jobs] == ["seed=0", "seed=1"]
    jobs = settle(
        [["data.subject=anna", "method=lora", f"seed={seed}"] for seed in (0, 1)],
        Path("nowhere"),
        studies=True,
    )
    assert [job.folder for job in jobs] == [
        "subject=anna,method=lora,seed=0",
        "subject=anna,method=lora,seed=1",
    ]


# --- the program --------------------------------------------------------------------------------------


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[str]]:
    """Names of the folders in which a run was begun that was not there yet."""
    folders: list[str] = []

    def run(config: Config, folder: Path) -> None:
        from diffusion_lab.runs.resume import folder_status

        if folder_status(config, folder) == "empty":
            folders.append(folder.name)
            record = {"status": "completed", "config": plain(as_plain_dict(config))}
            (folder / "result.json").write_text(json.dumps(record))

    module = types.ModuleType("job_of_the_test")
    module.run, module.check = run, finetune.check  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "job_of_the_test", module)
    monkeypatch.setitem(jobs.JOBS, "finetune", "job_of_the_test")
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    handlers = root.handlers[:]
    yield folders
    root.handlers[:] = handlers


def test_a_sweep_that_grows_repeats_no_run(begun: list[str], tmp_path: Path) -> None:
    def sweep(*words: str) -> list[str]:
        begun.clear()
        assert main([*TINY, "-m", "hydra.sweep.dir=grown", *words]) == 0
        return list(begun)

    assert sweep("data.n_images=1,2") == ["n_images=1", "n_images=2"]
    assert sweep("seed=0,1", "data.n_images=2") == ["seed=1"]
    assert len(list((tmp_path / "grown").glob("*/result.json"))) == 3


def test_other_scripts_have_names_that_do_not_depend_on_the_order() -> None:
    jobs = [["data.identifier=日本"], ["data.identifier='é'"], ["data.identifier=日"]]
    names = by_what_varies(jobs)
    assert len(set(names)) == 3
    assert all(name.isascii() and name.startswith("identifier=") for name in names)
    assert by_what_varies(jobs[::-1]) == names[::-1]
