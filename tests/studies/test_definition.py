"""Study files: unions of products, a quick form, the command line taking precedence; every shipped one is sound."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffusion_lab.cli.compose import compose
from diffusion_lab.cli.compose_jobs import compose_jobs
from diffusion_lab.config.schema import as_plain_dict
from diffusion_lab.plan.defaults import fill_defaults
from diffusion_lab.records import UserError
from diffusion_lab.runs.resume import run_id
from diffusion_lab.studies.definition import QUICK, Point, Study, combined, files, in_all, listed, load

WHOLE = """\
question: "Which: this or that?"
cost: two runs
expected: nothing
charts: [dynamics, stop]
runs:
  - &shared {data.subject: anna, steps.total: [10, 20], seed: 0}
  - {<<: *shared, method: dreambooth, data.identifier: 010, steps.total: 20}
quick: {steps.total: 5, prompts.n: 2}
"""
PHOTOS = ["data.folder=photos", "data.class_noun=dog"]  # what models_full needs


def study(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text, "utf-8")
    return str(path)


def points(name: str, *, quick: bool = False, replaced: tuple[str, ...] = ()) -> list[list[str]]:
    return [list(point.overrides) for point in load(name, quick=quick, replaced=replaced).points]


def test_a_union_of_products(tmp_path: Path) -> None:
    found = load(study(tmp_path, WHOLE))
    assert (found.name, found.question, found.cost, found.expected) == (
        "mine", "Which: this or that?", "two runs", "nothing",
    )  # fmt: skip
    assert found.charts == ("dynamics", "stop")
    assert [list(point.overrides) for point in found.points] == [
        ["data.subject=anna", "steps.total=10", "seed=0"],
        ["data.subject=anna", "steps.total=20", "seed=0"],
        ["data.subject=anna", "steps.total=20", "seed=0", "method=dreambooth", "data.identifier='010'"],
    ]


def test_the_quick_form_replaces_keys_and_counts_equal_points_once(tmp_path: Path) -> None:
    path = study(tmp_path, WHOLE)
    assert load(path, quick=True).name == "mine" + QUICK
    assert points(path, quick=True) == [
        ["data.subject=anna", "steps.total=5", "seed=0", "prompts.n=2"],
        ["data.subject=anna", "steps.total=5", "seed=0", "method=dreambooth", "data.identifier='010'", "prompts.n=2"],
    ]  # fmt: skip


def test_the_command_line_takes_precedence(tmp_path: Path) -> None:
    path = study(tmp_path, WHOLE)
    found = load(path, replaced=("steps.total", "method"))
    assert [list(point.overrides) for point in combined(found, [["steps.total=7"], ["steps.total=8"]]).points] == [
        ["data.subject=anna", "seed=0", "steps.total=7"],
        ["data.subject=anna", "seed=0", "steps.total=8"],
        ["data.subject=anna", "seed=0", "data.identifier='010'", "steps.total=7"],
        ["data.subject=anna", "seed=0", "data.identifier='010'", "steps.total=8"],
    ]  # fmt: skip


def test_the_flat_format(tmp_path: Path) -> None:
    path = study(
        tmp_path,
        "# Question: what?\n# Cost: little\n# and less\ndata.subject: anna\nmethod: [lora, dreambooth]\n"
        "data.folder: a b=c\nmetrics.names: [[similarity, diversity]]\nmodel.variant: null\ndata.flip: true\n",
    )
    found = load(path)
    assert (found.question, found.cost, found.expected, found.charts) == ("what?", "little and less", "", ())
    assert points(path) == [
        ["data.subject=anna", f"method={method}", "data.folder='a b=c'", "metrics.names=[similarity,diversity]",
         "model.variant=null", "data.flip=true"]
        for method in ("lora", "dreambooth")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "has to map keys"),
        ("", "has to map keys"),
        ("a: {b: 1}", "a: {'b': 1} is neither a value"),
        ("a: []", "runs: a: the list is empty"),
        ("a: [", "cannot be read"),
        ("1: 2", "1 is no key of the configuration"),
        ("question: x", "runs is missing"),
        ("runs: 3", "runs: has to map"),
        ("runs: []", "runs: is empty"),
        ("runs: [{seed: 0}, 4]", r"runs\[1\]: has to map"),
        ("runs: {seed: 0}\nqick: {seed: 1}", "qick: no such key; .*did you mean 'quick'"),
        ("runs: {seed: 0}\nseed: 1", "belong below runs"),
        ("runs: {seed: 0}\nquestion: [a]", "question: must be a text"),
        ("runs: {seed: 0}\ncharts: stop", "charts: must be a list"),
        ("runs: {seed: 0}\ncharts: [stops]", "charts: stops: no such chart; .*did you mean 'stop'"),
        ("runs: {seed: 0}\nin_all: maybe", "in_all: must be true or false"),
        ("runs: {seed: 0}\nquick: [1]", "quick: has to map"),
    ],
)
def test_a_file_that_is_no_study(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=f"--sweep .*mine.yaml.*{message}"):
        load(study(tmp_path, text))


def test_a_study_without_a_quick_form(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="quick is missing"):
        load(study(tmp_path, "runs: {seed: 0}"), quick=True)


def test_unknown_studies_are_named() -> None:
    with pytest.raises(UserError, match=r"no such study; there are .*all; did you mean 'methods'"):
        load("method")
    with pytest.raises(UserError, match="no such file"):
        load("nowhere/mine.yaml")


def test_help_lists_a_damaged_file_without_its_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "broken.yaml").write_text("a: [")
    (tmp_path / "sweeps" / "methods.yaml").write_text("question: mine?\nruns: {seed: 0}\n")
    assert (listed()["broken"], listed()["methods"]) == ("", "mine?")


@pytest.mark.parametrize("name", list(listed()))
def test_shipped_studies_are_sound(name: str) -> None:
    found = load(name)
    assert all((found.question, found.cost, found.expected, found.charts))
    quick = load(name, quick=True)
    assert 1 < len(quick.points) <= len(found.points)
    words = PHOTOS if name not in in_all() else []
    jobs = [[*point.overrides, *words] for point in (*found.points, *quick.points)]
    composed = [config for config, _ in compose_jobs(jobs)]
    assert len({run_id(as_plain_dict(config)) for config in composed}) == len(jobs)


def test_studies_share_their_runs() -> None:
    """The grid of subjects and image counts is trained once, and other studies use its runs where they can."""
    runs = {
        name: {
            run_id(as_plain_dict(config)) for config, _ in compose_jobs([p.overrides for p in load(name).points])
        }
        for name in ("dynamics", "counts", "rules", "models", "methods", "learning_rates")
    }  # fmt: skip
    assert runs["counts"] == runs["rules"] == runs["dynamics"]
    assert len(runs["models"] & runs["dynamics"]) == 10
    assert len(runs["methods"] & runs["dynamics"]) == 2
    assert len(runs["learning_rates"] & runs["methods"]) == 5


def test_composing_many_jobs_is_composing_each() -> None:
    jobs = [point.overrides for name in ("learning_rates", "prior") for point in load(name).points][::4]
    more = [["experiment=debug", "+metrics.weights.similarity=2", "seed=3"], ["method.rank=2", "steps=debug"]]
    for job, (config, own) in zip([*jobs, *more], compose_jobs([*jobs, *more]), strict=True):
        assert config == fill_defaults(compose(job))
        assert not own
    [(_, own)] = compose_jobs([["model=sd15"]])
    assert own


def test_every_file_is_there() -> None:
    expected = {"dynamics", "counts", "models", "models_full", "methods", "learning_rates", "prior", "rules"}
    assert expected <= set(files())
    assert in_all() == sorted(expected - {"models_full"})


def test_varied_keys() -> None:
    def of(*points: str) -> Study:
        return Study("mine", "", "", "", (), tuple(Point(tuple(point.split())) for point in points))

    assert of().varied == set()
    assert of("seed=0 data.subject=anna", "seed=0 data.subject=ben").varied == {"data.subject"}
    assert of("method=lora steps.total=9", "method=dreambooth steps.total=9 +method.rate=1").varied == {
        "method",
        "method.rate",
    }
