"""Studies under sweeps/: written out as overrides, the command line winning; every shipped one is sound."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffusion_lab.cli.compose import compose, expand
from diffusion_lab.cli.sweep_files import folders, listed, words
from diffusion_lab.plan.defaults import fill_defaults
from diffusion_lab.records import UserError


def study(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text, "utf-8")
    return str(path)


def test_lists_are_varied_and_values_fixed(tmp_path: Path) -> None:
    path = study(
        tmp_path,
        "# Question: what?\ndata.subject: anna\nmethod: [lora, dreambooth]\nsteps.total: [10, 20]\n"
        "data.folder: a b=c\nmetrics.names: [[similarity, diversity]]\nmodel.variant: null\ndata.flip: true\n",
    )
    written = words(path, [])
    assert written == [
        "--multirun", "tracker.group=mine", "data.subject=anna", "method=lora,dreambooth", "steps.total=10,20",
        "data.folder='a b=c'", "metrics.names=[similarity,diversity]", "model.variant=null", "data.flip=true",
    ]  # fmt: skip
    jobs = expand([word for word in written[1:] if not word.startswith("data.flip")])
    assert len(jobs) == 4
    assert jobs[0][-4:-1] == ["steps.total=10", "data.folder='a b=c'", "metrics.names=[similarity,diversity]"]


def test_the_command_line_wins(tmp_path: Path) -> None:
    path = study(tmp_path, "seed: [0, 1, 2]\nmethod: lora\n")
    assert words(path, ["seed=7", "tracker.group=other"]) == [
        "--multirun",
        "method=lora",
        "seed=7",
        "tracker.group=other",
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[1, 2]", "has to map"),
        ("", "has to map"),
        ("a: {b: 1}", "neither a value"),
        ("a: []", "the list is empty"),
        ("a: [", "cannot be read"),
    ],
)
def test_a_file_that_is_no_study(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        words(study(tmp_path, text), [])


def test_unknown_studies_are_named() -> None:
    with pytest.raises(UserError, match=r"no such study; there are .*did you mean 'methods'"):
        words("method", [])
    with pytest.raises(UserError, match="no such file"):
        words("nowhere/mine.yaml", [])


@pytest.mark.parametrize("name", list(listed()))
def test_shipped_studies_are_sound(name: str) -> None:
    jobs = expand(words(name, [])[1:])
    assert len(jobs) > 1
    for job in jobs:
        fill_defaults(compose(job))
    [file] = [folder / f"{name}.yaml" for folder in folders()[:1]]
    text = file.read_text("utf-8")
    assert all(f"# {part}: " in text for part in ("Question", "Cost", "Expected"))
