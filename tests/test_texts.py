"""Text from the command line, a study or an experiment's file arrives as it was typed."""

from __future__ import annotations

import dataclasses
import json
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from diffusion_lab import __main__ as entry
from diffusion_lab.cli.compose import compose, compose_raw, conf_folder, expand, groups
from diffusion_lab.cli.yaml_texts import changed
from diffusion_lab.config.jobs import Generate
from diffusion_lab.config.schema import Config
from diffusion_lab.config.texts import Kind, advice, exact, kind, recorded
from diffusion_lab.data.job_texts import job_texts
from diffusion_lab.methods import METHODS
from diffusion_lab.records import UserError
from diffusion_lab.studies.definition import load
from diffusion_lab.values.quoting import always_quoted, pasted, quoted, split, unquoted

CASES = [
    "1_1_1", "2024_05_01", "3.10", "1e5", "1E5", "true", "True", "FALSE", "Null", "inf", "nan", "-inf", "0x10", "010",
    "+1", "-0", "007", ".5", "5.", "1_000", " lead", "trail ", "a  b", "tab\there", "two\nlines", "a,b", "a, b", "a=b",
    "=", "a:b", "{a}", "{a: b}", "[a]", "[a, b]", "]", "(", "f(x)", "choice(a,b)", "range(1,3)", "glob(*)", "it's",
    'say "hi"', "'", '"', "a'b\"c", "$HOME", "100 %", "%s", "~", "~x", "~/x", "a~b", "\\", "\\\\", "a\\b", "a\\,b", "C:\\x\\",
    "ünï", "名前", "😀", "א", "e\u0301", "#x", "a#b", "a;b", "a|b", "a&b", "!x", "*", "?", "<a>", "`x`", "@x", "a@b", "-x", "--x",
    "${", "$ {a}", "a${b", "null_", "None", "yes", "off", "1:30", "0o7", "1,2", ",", ",,", "/", "//", ".", "..", "",
]  # fmt: skip
TEXT_KEYS = [
    "data.identifier", "data.folder", "data.subject", "data.class_noun", "model.path", "model.revision", "prompts.path",
    "prompts.negative", "tracker.project", "tracker.run_name", "tracker.group", "job.output", "job.artefact", "job.text",
    "hydra.run.dir", "hydra.sweep.dir", "hydra.job.name", "method.token", "method.initialiser", "metrics.clip_model", "resume",
]  # fmt: skip
PARSER = OverridesParser.create()
LETTERS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20),
    st.text("'\"\\,${}[]() =:a1_.#~%é", max_size=14),
    st.sampled_from(CASES),
).filter(lambda text: text != "???")  # OmegaConf's word for a value that is missing


def arrives(word: str) -> object:
    """What the word's value is after our rewriting, Hydra's parser and OmegaConf's interpolation."""
    [written], _ = exact([word])
    assert exact([written])[0] == [written], "rewriting is harmless when repeated"
    parsed = PARSER.parse_override(written)
    assert not parsed.is_sweep_override()
    node = OmegaConf.create({"value": None})
    OmegaConf.update(node, "value", parsed.value())
    found = OmegaConf.to_container(node, resolve=True)
    assert isinstance(found, dict)
    return found["value"]


@pytest.mark.parametrize("key", TEXT_KEYS)
def test_every_case_arrives_at_every_key(key: str) -> None:
    assert kind(key) is not None
    for text in CASES:
        assert arrives(f"{key}={text}") == text, text


def test_keys_that_hold_text_are_those_of_the_schema() -> None:
    assert (kind("tracker.tags"), kind("method.targets")) == (Kind(many=True), Kind(many=True, null=True))
    assert (kind("data.class_noun"), kind("hydra.job.env_set.X")) == (Kind(null=True), Kind())
    for key in (
        "seed",
        "data.n_images",
        "method",
        "method.rank",
        "metrics.weights.x",
        "hydra.mode",
        "nothing",
        "data.x",
    ):
        assert kind(key) is None
    fields = {field.name for schema in METHODS.values() for field in dataclasses.fields(schema)}
    assert {"token", "targets"} <= fields


@pytest.mark.parametrize(
    "text",
    ["1_1_1", "3.10", "a dog, on the moon", "it's", "[x]", "a=b: {c}", "名 前", "İ", "\u017f", "\u212a", "Ⅷ"],
)
def test_through_the_whole_composition(text: str) -> None:
    words = [f"data.identifier={text}", f"tracker.tags=[{always_quoted(text)}]", f"hydra.run.dir={text}"]
    composed = compose_raw(words)
    assert (composed.data.identifier, list(composed.tracker.tags), composed.hydra.run.dir) == (
        text,
        [text],
        text,
    )
    config = compose(words)
    assert (config.data.identifier, config.tracker.tags) == (text, [text])


@pytest.mark.parametrize("plus", ["", "+", "++"])
def test_whole_numbers_in_ranges_of_any_metric(plus: str) -> None:
    ranges = compose(
        [f"{plus}metrics.ranges={{clip_text:[0, 1],fid:[-3,+20],similarity:[0,.5]}}"]
    ).metrics.ranges
    assert ranges["clip_text"] == [0.0, 1.0]
    assert ranges["fid"] == [-3.0, 20.0]
    assert ranges["similarity"] == [0.0, 0.5]
    assert "aesthetics" in ranges, "those of the file stay"
    assert compose(["metrics.ranges={fid:[0.5,1e3]}"]).metrics.ranges["fid"] == [0.5, 1000.0]


@settings(max_examples=400, deadline=None)
@given(LETTERS)
@example("${data.subject}")
@example("\\${x}")
@example("null")
@example("'a'")
def test_the_advised_word_survives_the_shell_and_the_program(text: str) -> None:
    [word] = shlex.split(advice("tracker.run_name", text))
    assert arrives(word) == text


@settings(max_examples=300, deadline=None)
@given(st.lists(LETTERS, max_size=4))
def test_the_advised_list_survives_too(texts: list[str]) -> None:
    [word] = shlex.split(advice("tracker.tags", texts))
    assert arrives(word) == texts


@settings(max_examples=300, deadline=None)
@given(LETTERS)
def test_what_is_typed_arrives(text: str) -> None:
    if "${" not in text and unquoted(text) is None and text != "null":
        assert arrives(f"tracker.run_name={text}") == text


@settings(max_examples=200, deadline=None)
@given(st.lists(LETTERS, min_size=2, max_size=4))
def test_values_of_a_sweep_arrive(texts: list[str]) -> None:
    word = f"prompts.negative={','.join(map(always_quoted, texts))}"
    parsed = PARSER.parse_override(exact([word], sweep=True)[0][0])
    assert [arrives(f"prompts.negative={value}") for value in parsed.sweep_string_iterator()] == texts


@settings(max_examples=200, deadline=None)
@given(LETTERS)
def test_quotes_come_off_as_they_went_on(text: str) -> None:
    assert unquoted(quoted(text)) == text


def test_a_posix_shell_reads_the_advice() -> None:
    texts = [text for text in CASES if text]
    words = [advice("data.identifier", text) for text in texts]
    told = subprocess.run(
        ["sh", "-c", f"printf '%s\\0' {' '.join(words)}"], capture_output=True, text=True, check=True
    ).stdout
    assert [arrives(word) for word in told.split("\0")[:-1]] == texts
    assert pasted("resume=/a b/it's, [x]=1") == 'resume="/a b/it\'s, [x]=1"'


# --- lists, sweeps, null, interpolation ---------------------------------------------------------------


def test_elements_of_a_list_are_texts() -> None:
    tags = compose(["tracker.tags=[010, true ,1_1,null,'a, b',x (y, z), \"q\",a\\,b]"]).tracker.tags
    assert tags == ["010", "true", "1_1", "null", "a, b", "x (y, z)", "q", "a,b"]
    assert split("a, (b, c), 'd, e', f's") == ["a", "(b, c)", "'d, e'", "f's"]
    assert split(":), b") == [":)", "b"], "brackets that are not balanced are letters"


def test_values_of_a_sweep_keep_their_letters() -> None:
    jobs = expand(["data.identifier=1_1_1,2_2, 010", "model.revision=null,'null'", "seed=0,1"])
    configs = [compose(job) for job in jobs]
    assert [config.data.identifier for config in configs[::4]] == ["1_1_1", "2_2", "010"]
    assert [config.model.revision for config in configs[:4:2]] == [None, "null"]
    jobs = expand(["tracker.tags=[1_1,true],[010]", "data.identifier=choice(1e5,'a, b')"])
    assert [compose(job).tracker.tags for job in jobs] == [["1_1", "true"]] * 2 + [["010"]] * 2
    assert [compose(job).data.identifier for job in jobs[:2]] == ["1e5", "a, b"]
    [job] = expand(["job=generate", "job.text=a dog, on the moon"])
    assert compose(job).job.text == "a dog, on the moon", "a prompt is never split"


def test_null_and_interpolation() -> None:
    config = compose(
        ["data.class_noun=null", "tracker.run_name=${data.subject}-${seed}", "tracker.group='null'"]
    )
    assert (config.data.class_noun, config.tracker.run_name, config.tracker.group) == (None, "anna-0", "null")
    assert compose(["tracker.run_name=\\${data.subject}"]).tracker.run_name == "${data.subject}"
    with pytest.raises(UserError, match=r"\$\{USD\} names no key.*ready to paste: ") as refused:
        compose(["tracker.run_name=5 ${USD}"])
    [word] = shlex.split(str(refused.value).partition("ready to paste: ")[2])
    assert compose([word]).tracker.run_name == "5 ${USD}"


def test_several_prompts_one_key_each() -> None:
    texts = ["a dog, on the moon", "it's [red]"]
    assert compose(["job=generate", *(f"job.text={text}" for text in texts)]).job.texts == texts
    with pytest.raises(UserError, match="job.text and job.texts: both name the prompts"):
        compose(["job=generate", "job.text=a", "job.texts=[b]"])


def test_prompts_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("\ufeff# mine\na dog, on the moon\r\n\n  1_1 \n\\#hashed\n", "utf-8")
    assert job_texts(Generate(output="x", texts_file=str(file))) == ["a dog, on the moon", "1_1", "#hashed"]
    file.write_text("# nothing\n", "utf-8")
    with pytest.raises(UserError, match=r"job\.texts_file=.*holds no prompt"):
        job_texts(Generate(output="x", texts_file=str(file)))
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"job\.texts_file=.*UTF-8"):
        job_texts(Generate(output="x", texts_file=str(file)))
    with pytest.raises(UserError, match=r"job\.texts_file=.*no such file"):
        job_texts(Generate(output="x", texts_file=str(tmp_path / "none")))
    assert job_texts(Generate(output="x", text="x")) == ["x"]
    assert job_texts(Generate(output="x")) == []


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("job.texts=[a dog, on the moon]", "2 prompts: 'a dog', 'on the moon'; if it is one text: job.text='a dog, on the moon'"),
        ("data.subject=anna,ben", "is taken as one text; for several values, one job each, add -m"),
        ("job.texts=[a dog,a cat]", ""),
        ("job.texts=['a dog', 'a cat']", ""),
        ("tracker.tags=[a, b]", ""),
        ("prompts.negative=blurry, ugly", ""),
        ("data.folder=a,b", ""),
    ],
)  # fmt: skip
def test_a_suspicious_comma_is_told(word: str, told: str) -> None:
    _, notes = exact([word])
    assert bool(notes) == bool(told)
    assert told in "".join(notes)
    _, notes = exact(["prompts.negative=blurry, ugly"], sweep=True)
    assert "prompts.negative='\"blurry, ugly\"'" in notes[0]


def test_a_list_without_brackets_is_refused_with_what_to_paste() -> None:
    with pytest.raises(UserError, match="must be a list") as refused:
        exact(["job.texts=a dog, it's"])
    told = str(refused.value).partition("ready to paste: ")[2]
    one, _, other = told.partition(", or ")
    assert compose(["job=generate", *shlex.split(one)]).job.texts == ["a dog, it's"]
    assert compose(["job=generate", *shlex.split(other)]).job.text == "a dog, it's"


# --- files --------------------------------------------------------------------------------------------


def test_studies_keep_the_letters_of_their_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "data.identifier: [1_1_1, 010, yes, 'it''s, x']\ntracker.run_name: 1e5\ntracker.tags: [[2024-05-01, no]]\n"
        "data.class_noun: null\ndata.n_images: 1_4\n", "utf-8",
    )  # fmt: skip
    configs = [compose(point.overrides) for point in load(str(file)).points]
    assert [config.data.identifier for config in configs] == ["1_1_1", "010", "yes", "it's, x"]
    assert {config.tracker.run_name for config in configs} == {"1e5"}
    assert configs[0].tracker.tags == ["2024-05-01", "no"]
    assert (configs[0].data.class_noun, configs[0].data.n_images) == (None, 14)


def test_experiments_keep_the_letters_of_their_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, text in {
        "data/mine.yaml": "source: miniature\nsubject: anna\nidentifier: 010\n",
        "experiment/mine.yaml": "# @package _global_\ndefaults:\n  - override /data: mine\ntracker:\n  tags: [1_1, yes]\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, "utf-8")
    searched = f"hydra.searchpath=[file://{tmp_path}]"
    config = compose([searched, "experiment=mine"])
    assert (config.data.identifier, config.tracker.tags) == ("010", ["1_1", "yes"])
    assert compose([searched, "data=mine", "data.identifier=zzz"]).data.identifier == "zzz"
    assert entry.main([searched, "-m", "data=mine", "seed=0,1", "--dry-run"]) == 2
    told = capfd.readouterr().err
    assert "data.identifier" in told
    assert "mine.yaml" in told
    assert entry.main([searched, "data=mine", "--dry-run"]) == 0
    assert "'010 woman'" in capfd.readouterr().out


def test_the_packages_own_files_are_read_as_written() -> None:
    files = [
        (group, conf_folder() / group / f"{option}.yaml")
        for group, options in groups().items()
        for option in options
    ]
    assert len(files) > 20
    assert {str(file): found for group, file in files if (found := changed(file, group))} == {}


def test_recorded_words_keep_the_meaning_they_had() -> None:
    """Hydra has read them: what an earlier version wrote as 1_1_1 trained 111."""
    before = [
        "data.identifier=1_1_1",
        "tracker.tags=[a,1_0]",
        "seed=1",
        "data.class_noun=null",
        "model.path='a b'",
    ]
    assert recorded(before) == [
        "data.identifier='111'", "tracker.tags=[a,'10']", "seed=1", "data.class_noun=null", "model.path='a b'",
    ]  # fmt: skip
    now = exact(["data.identifier=1_1_1", "tracker.run_name=a, b"])[0]
    assert [arrives(word) for word in recorded(now)] == ["1_1_1", "a, b"]


# --- the program --------------------------------------------------------------------------------------


def test_cfg_and_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import yaml

    monkeypatch.chdir(tmp_path)
    assert entry.main(["--cfg", "job", "data.identifier=1_1_1", "prompts.negative=a, b"]) == 0
    shown = yaml.safe_load(capfd.readouterr().out)
    assert (shown["data"]["identifier"], shown["prompts"]["negative"]) == ("1_1_1", "a, b")
    for name in ("2024_05_01", "3.10", "1e5", "true", "a b, [c]=d", "null", "010"):
        assert entry.main([f"hydra.run.dir={name}", "--dry-run"]) == 0
        table = "".join(capfd.readouterr().out.split("disk", 1)[1].split())  # the table folds long paths
        assert f"/{name}".replace(" ", "") in table


def test_bytes_that_are_no_text_are_refused(capfd: pytest.CaptureFixture[str]) -> None:
    assert entry.main(["data.folder=caf\udce9"]) == 2
    assert "data.folder=caf" in capfd.readouterr().err


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], list[dict[str, object]]]:
    """Runs write what they got into their folder; returns what the runs so far got."""
    import sys
    import types

    from diffusion_lab import jobs
    from diffusion_lab.config.schema import as_plain_dict
    from diffusion_lab.jobs import finetune

    def run(config: Config, folder: Path) -> None:
        (folder / "got.json").write_text(json.dumps(as_plain_dict(config)))
        (folder / "result.json").write_text('{"status": "completed", "config": {}}')

    module = types.ModuleType("job_of_the_test")
    module.run, module.check = run, finetune.check  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "job_of_the_test", module)
    monkeypatch.setitem(jobs.JOBS, "finetune", "job_of_the_test")
    monkeypatch.chdir(tmp_path)
    return lambda: [json.loads(path.read_text()) for path in sorted(tmp_path.rglob("got.json"))]


def test_folders_have_the_names_that_were_typed(
    seen: Callable[[], list[dict[str, object]]], tmp_path: Path
) -> None:
    names = ["2024_05_01", "3.10", "true", "${seed}_x", "it's [c]=d, e"]
    for name in names:
        assert entry.main(["experiment=debug", "data.identifier=1_1_1", f"hydra.run.dir={name}"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names[:3], "0_x", names[4]])
    assert {str(got["data"]["identifier"]) for got in seen()} == {"1_1_1"}  # type: ignore[index]


def test_a_sweep_hands_on_the_letters(seen: Callable[[], list[dict[str, object]]]) -> None:
    assert entry.main(["experiment=debug", "-m", "data.identifier=1_1_1,2_2", "hydra.sweep.dir=3.10"]) == 0
    assert Path("3.10").is_dir()
    assert sorted(str(got["data"]["identifier"]) for got in seen()) == ["1_1_1", "2_2"]  # type: ignore[index]


# --- a group written as a table, functions of a sweep, folders ----------------------------------------


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("data={identifier:1_1_1}", ["data.identifier='1_1_1'"]),
        ("data={identifier: 1e5, n_images: 4}", ["data.identifier='1e5'", "data.n_images=4"]),
        ("++tracker={tags:[1_0, true], 'project': 3.10}", ["++tracker.tags=['1_0','true']", "++tracker.project='3.10'"]),
        ("method={initialiser: 010}", ["method.initialiser='010'"]),
        ("metrics={weights: {similarity: 2}}", ["metrics.weights={similarity: 2}"]),
        ("data={}", []),
        ("metrics.weights={similarity: 2}", ["metrics.weights={similarity: 2}"]),
    ],
)  # fmt: skip
def test_a_group_written_as_a_table_keeps_its_texts(word: str, expected: list[str]) -> None:
    for sweep in (False, True):
        assert exact([word], sweep=sweep)[0] == expected
        assert exact(expected, sweep=sweep)[0] == expected


@pytest.mark.parametrize(
    "word",
    ["data={identifier:1_1},{identifier:2_2}", "data={identifier}", "data={identifier: 'a, b'}", "data={a:b"],
)
def test_a_table_that_cannot_be_written_out_is_refused(word: str) -> None:
    with pytest.raises(UserError, match=r"a word for each key, data\.KEY=VALUE"):
        exact([word], sweep=True)


@pytest.mark.parametrize(
    "value", ["shuffle(1e5,2_0)", "sort(010,b)", "tag(t,1_1)", "sort('1_0',a,reverse=true)"]
)
def test_functions_that_would_change_a_text_are_refused(value: str) -> None:
    with pytest.raises(UserError, match="write the values out"):
        exact([f"data.identifier={value}"], sweep=True)
    harmless = "data.identifier=sort(b,a,reverse=true)"
    assert exact([harmless], sweep=True)[0] == [harmless]


def test_a_sweep_without_a_job_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for value in ("data.identifier=glob(*)", "method=glob(no_such_*)", "seed=range(3,3)"):
        assert entry.main(["-m", "experiment=debug", value]) == 2
        assert f"error: {value}: has no value" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_named_like_a_reference_is_refused_before_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for word in ("hydra.run.dir=${x", "hydra.run.dir=\\${seed}", "hydra.sweep.dir=\\${seed}"):
        several = ["-m", "seed=0,1"] if "sweep" in word else []
        assert entry.main(["experiment=debug", word, *several]) == 2
        assert f"{word.partition('=')[0]} " in (said := capfd.readouterr().err)
        assert "cannot be used here" in said
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "${x").mkdir()
    monkeypatch.chdir(tmp_path / "${x")
    assert entry.main(["--dry-run"]) == 2
    assert "the working folder" in capfd.readouterr().err


def test_one_run_is_resumed_and_not_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    notes = tmp_path / "run" / ".hydra"
    notes.mkdir(parents=True)
    (notes / "overrides.yaml").write_text("- experiment=debug\n")
    (notes / "hydra.yaml").write_text("hydra: {overrides: {hydra: []}}\n")
    (tmp_path / "run" / "config.yaml").write_text("seed: 0\n")
    assert entry.main(["-m", "resume=run", "seed=0,1"]) == 2
    assert "resume=FOLDER resumes one run" in capfd.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_plus_before_a_key_that_is_there(capfd: pytest.CaptureFixture[str]) -> None:
    assert entry.main(["+data.identifier=1_1_1", "--dry-run"]) == 2
    assert "data.identifier: the key is there already; write it without the plus" in capfd.readouterr().err
