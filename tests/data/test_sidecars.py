"""What lies beside pictures: every convention as a table of cases, for training and for `job=score` alike."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from diffusion_lab.cli.compose import compose
from diffusion_lab.config.schema import Data
from diffusion_lab.data.captions import read_captions
from diffusion_lab.data.image_prompts import find_prompts
from diffusion_lab.data.pictures import list_pictures
from diffusion_lab.data.sidecar_files import MOST_BYTES
from diffusion_lab.data.sidecars import Sidecars
from diffusion_lab.data.subjects import load_subject, passed_over, training_captions
from diffusion_lab.jobs import check
from diffusion_lab.plan.defaults import fill_defaults
from diffusion_lab.records import UserError

NFC, NFD = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))


def lay(folder: Path, files: dict[str, str | bytes | None]) -> Path:
    """Files by name: None for a picture, else the content."""
    folder.mkdir(exist_ok=True)
    for number, (name, content) in enumerate(files.items()):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        if content is None:
            Image.effect_noise((64, 64), 10.0 + number).save(path)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


CSV = "file_name,text\n0.png,of the table\n"
JSONL = '{"file_name": "0.png", "text": "of the lines"}\n'
# The files beside 0.png; what its caption is.
READ: dict[str, tuple[dict[str, str | bytes | None], str]] = {
    "stem.txt": ({"0.txt": "one"}, "one"),
    "stem.caption": ({"0.caption": "one"}, "one"),
    "whole name .txt": ({"0.png.txt": "one"}, "one"),
    "whole name .caption": ({"0.png.caption": "one"}, "one"),
    "suffix in capitals": ({"0.TXT": "one"}, "one"),
    "whole name in capitals": ({"0.PNG.Txt": "one"}, "one"),
    "metadata.csv": ({"metadata.csv": CSV}, "of the table"),
    "metadata.jsonl": ({"metadata.jsonl": JSONL}, "of the lines"),
    "column prompt": ({"metadata.csv": "file_name,prompt\n0.png,one\n"}, "one"),
    "column caption": ({"metadata.jsonl": '{"file_name": "./0.png", "caption": "one"}'}, "one"),
    "name in capitals in the table": ({"metadata.csv": "file_name,text\n0.PNG,one\n"}, "one"),
    "mark of UTF-8": ({"0.txt": b"\xef\xbb\xbfone"}, "one"),
    "UTF-16 of Windows": ({"0.txt": "a d\u00f6g\r\n".encode("utf-16")}, "a d\u00f6g"),
    "UTF-16, big end first": ({"0.txt": b"\xfe\xff" + "one".encode("utf-16-be")}, "one"),
    "CSV in UTF-16": ({"metadata.csv": CSV.encode("utf-16")}, "of the table"),
    "lines of Windows": ({"0.txt": "one\r\ntwo\r\n"}, "one two"),
    "lines of old Macs": ({"0.txt": "one\rtwo"}, "one two"),
    "the same twice": ({"0.txt": "one", "0.TXT": "one\n"}, "one"),
    # Their order.
    "a table before a text": ({"metadata.csv": CSV, "0.txt": "one"}, "of the table"),
    "CSV before JSON lines": ({"metadata.csv": CSV, "metadata.jsonl": JSONL}, "of the table"),
    "the whole name before the stem": ({"0.png.caption": "one", "0.txt": "two"}, "one"),
    ".txt before .caption": ({"0.caption": "two", "0.txt": "one"}, "one"),
    "a text where the table has none": ({"metadata.csv": "file_name,text\n0.png,\n", "0.txt": "one"}, "one"),
    "a text where the table has no row": ({"metadata.csv": "file_name,text\n1.png,two\n", "0.txt": "one"}, "one"),
    # Two pictures of a stem.
    "two pictures, one text": ({"0.jpg": None, "0.png.txt": "one", "0.txt": "two"}, "one"),
    "two pictures, the other has its own": ({"0.jpg": None, "0.jpg.txt": "two", "0.txt": "one"}, "one"),
    "two pictures, the other has a row": ({"0.jpg": None, "metadata.csv": "file_name,text\n0.jpg,two\n", "0.txt": "one"}, "one"),
}  # fmt: skip


@pytest.mark.parametrize("case", READ)
def test_captions_are_found(tmp_path: Path, case: str) -> None:
    files, expected = READ[case]
    folder = lay(tmp_path / "dog", {"0.png": None, **files})
    pictures = list_pictures(folder)
    picture = folder / "0.png"
    (said,) = read_captions([picture], pictures, "always")
    assert said is not None
    assert said.text == expected
    told = find_prompts(pictures, folder)[pictures.index(picture)]
    assert " ".join(str(told.text).split()) == expected
    assert read_captions([picture], pictures, "never") == [None]


@pytest.mark.parametrize(("picture", "text"), [(NFC, NFD), (NFD, NFC)])
def test_unicode_forms(tmp_path: Path, picture: str, text: str) -> None:
    folder = lay(tmp_path / "dog", {f"{picture}.png": None, f"{text}.txt": "one"})
    assert [
        said.text for said in read_captions(list_pictures(folder), list_pictures(folder), "always") if said
    ] == ["one"]
    lay(folder, {"metadata.jsonl": f'{{"file_name": "{text}.png", "text": "row"}}'})
    assert find_prompts(list_pictures(folder), folder)[0].text == "row"


def test_capitals_that_tell_pictures_apart(tmp_path: Path) -> None:
    folder = lay(tmp_path / "dog", {"a.png": None, "A.png": None, "a.txt": "small"})
    pictures = list_pictures(folder)
    found = dict(zip([p.name for p in pictures], read_captions(pictures, pictures, "auto"), strict=True))
    assert found["a.png"] is not None
    assert found["a.png"].text == "small"
    assert found["A.png"] is None


REFUSED: dict[str, tuple[dict[str, str | bytes | None], str]] = {
    "two pictures of a stem": ({"0.jpg": None, "0.txt": "x"}, r"0\.txt could be the text of 0\.jpg and of 0\.png"),
    "two texts that differ": ({"0.txt": "x", "0.TXT": "y"}, r"0\.TXT and .*0\.txt refer to one picture and differ"),
    "Latin 1": ({"0.txt": "ein Mädchen".encode("latin-1")}, r"0\.txt: cannot be read as a caption"),
    "no text at all": ({"0.caption": bytes(range(256))}, r"0\.caption: cannot be read as a caption"),
    "cut UTF-16": ({"0.txt": b"\xff\xfea\0b"}, r"0\.txt: cannot be read as a caption"),
    "too long": ({"0.txt": "a" * (MOST_BYTES + 1)}, r"0\.txt: has 65,537 bytes, and a caption at most 65,536"),
    "a cut table": ({"metadata.jsonl": '{"file_name": "0.p'}, r"metadata\.jsonl cannot be used"),
    "a row without its text": ({"metadata.jsonl": JSONL + '{"file_name": "1.png"}'}, "in every row"),
    "a comma without quotes": ({"metadata.csv": "file_name,text\n0.png,a dog, running\n"}, "line 2 has more cells .* quotes"),
    "several texts": ({"metadata.jsonl": '{"file_name": "0.png", "text": ["a", "b"]}'}, r"text of 0\.png is no text: \["),
    "a number": ({"metadata.jsonl": '{"file_name": "0.png", "caption": 5}'}, r"caption of 0\.png is no text: 5"),
    "brackets without an end": ({"metadata.jsonl": "[" * 200_000}, r"metadata\.jsonl cannot be used"),
    "two rows that differ": ({"metadata.csv": CSV + "0.png,other\n"}, r"two rows for 0\.png"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_in_doubt_or_damaged_is_named(tmp_path: Path, case: str) -> None:
    files, words = REFUSED[case]
    folder = lay(tmp_path / "dog", {"0.png": None, **files})
    pictures = list_pictures(folder)
    with pytest.raises(UserError, match=words):
        read_captions([folder / "0.png"], pictures, "auto")
    with pytest.raises(UserError, match=words):
        find_prompts(pictures, folder)


def test_an_empty_text(tmp_path: Path) -> None:
    folder = lay(tmp_path / "dog", {"0.png": None, "0.png.caption": " \n"})
    with pytest.raises(UserError, match=r"0\.png\.caption: is empty"):
        read_captions([folder / "0.png"], [folder / "0.png"], "auto")


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    folder = lay(tmp_path / "dog", {"0.png": None})
    with open(folder / "0.txt", "wb") as file:
        file.truncate(50_000_000_000)  # a hole: reading it would take minutes
    with pytest.raises(UserError, match="50,000,000,000 bytes"):
        read_captions([folder / "0.png"], [folder / "0.png"], "auto")


# What is not read; what is said of it ("" for nothing).
PASSED_OVER: dict[str, tuple[dict[str, str | bytes | None], str]] = {
    "all is read": ({"0.txt": "x"}, ""),
    "no caption at all": ({}, ""),
    "what systems leave": ({".DS_Store": "x", "Thumbs.db": "x", "desktop.ini": "x", "README.md": "x"}, ""),
    "the noun": ({"class_noun.txt": "dog"}, ""),
    "a text without a picture": ({"7.txt": "x", "8.caption": "x"}, "7.txt, 8.caption: no picture has this name"),
    "many of them": ({f"{n}.txt": "x" for n in range(1, 6)}, "1.txt, 2.txt, 3.txt and 2 more: no picture"),
    "a row without a picture": ({"metadata.csv": CSV + "7.png,x\n"}, "metadata.csv has 7.png, and no picture"),
    "another table": ({"tags.csv": "0.png,dog"}, "tags.csv: metadata.csv or metadata.jsonl is the only table"),
    "two tables": ({"metadata.csv": CSV, "metadata.jsonl": JSONL}, "metadata.jsonl: metadata.csv is the only table"),
    "kohya's JSON": ({"meta_cap.json": "{}"}, "meta_cap.json: metadata.csv or metadata.jsonl is the only table"),
    "labels": ({"metadata.csv": "file_name,label\n0.png,3\n"}, "metadata.csv: it needs the columns file_name and text"),
    "caches": ({"0.npz": b"x", "0_sd.npz": b"x"}, "0.npz, 0_sd.npz: another tool's cache"),
    "masks": ({"0-masklabel.png": None}, "0-masklabel.png: masks are not used"),
    "two captions": ({"0.txt": "x", "0.caption": "y"}, "more than one caption of 0.png: the first is used (metadata.csv"),
    "captions in a sub-folder": (
        {"captions/0.txt": "x", "old/0.png.caption": "x"}, "captions/, old/: captions in subfolders; put them beside",
    ),
    "rows of pictures in folders": (
        {"metadata.jsonl": '{"file_name": "train/0.png", "text": "x"}'}, "metadata.jsonl has train/0.png, and no picture",
    ),
    "a table in capitals": ({"Metadata.JSONL": JSONL}, "Metadata.JSONL: metadata.csv or metadata.jsonl is the only"),
    "folders": ({"10_sks dog/1.png": None, "notes/a.txt": "x"}, "10_sks dog/: pictures in subfolders"),
}  # fmt: skip


@pytest.mark.parametrize("case", PASSED_OVER)
def test_what_is_not_read_is_said(tmp_path: Path, case: str) -> None:
    files, expected = PASSED_OVER[case]
    folder = lay(tmp_path / "dog", {"0.png": None, **files})
    said = passed_over(folder)
    assert len(said) == bool(expected)
    assert expected in "".join(said)
    assert [p.name for p in list_pictures(folder)] == ["0.png"]


def test_without_captions_their_files_do_not_matter(tmp_path: Path) -> None:
    folder = lay(tmp_path / "dog", {"0.png": None, "metadata.jsonl": "{", "7.txt": "x", "0.npz": b"x"})
    with pytest.raises(UserError, match=r"metadata\.jsonl cannot be used .*set data\.captions=never"):
        passed_over(folder)
    assert passed_over(folder, captions="never") == [
        f"data.folder: not read in {folder}: 0.npz: another tool's cache"
    ]
    assert read_captions([folder / "0.png"], [folder / "0.png"], "never") == [None]


def test_a_masks_own_picture_may_be_missing(tmp_path: Path) -> None:
    folder = lay(tmp_path / "dog", {"0-masklabel.png": None, "1.png": None})
    assert [path.name for path in list_pictures(folder)] == ["0-masklabel.png", "1.png"]


def test_kohyas_names_of_folders(tmp_path: Path) -> None:
    folder = lay(tmp_path / "10_sks dog", {"0.png": None})
    (said,) = passed_over(folder)
    assert "10 repeats of 'sks dog'" in said


def test_the_plan_says_it_and_the_run_uses_it(tmp_path: Path) -> None:
    files: dict[str, str | bytes | None] = {f"{n}.png": None for n in range(4)}
    rows = "".join(f'{{"file_name": "{n}.png", "text": "customcls {n}"}}\n' for n in range(4))
    folder = lay(tmp_path / "dog", {**files, "metadata.jsonl": rows, "old.txt": "x"})
    words = ["data=folder", f"data.folder={folder}", "data.class_noun=dog", "data.n_images=3", "prompts.n=4"]
    config = fill_defaults(compose(words))
    warnings = check(config, tmp_path / "run").warnings
    assert sum("not read in" in line and "old.txt" in line for line in warnings) == 1
    subject = load_subject(config.data)
    assert {p.caption for p in subject.train} == {f"customcls {p.path.stem}" for p in subject.train}
    assert set(training_captions(config.data).values()) == {p.caption for p in subject.train}
    with pytest.raises(
        UserError, match=r"the caption .*metadata\.jsonl \(0\.png\) has \d+ tokens|\(\d\.png\)"
    ):
        lay(folder, {"metadata.jsonl": rows.replace("customcls", "customcls " * 90)})
        check(config, tmp_path / "run")
    never = Data(source="folder", folder=str(folder), class_noun="dog", n_images=3, captions="never")
    assert {p.caption for p in load_subject(never).train} == {None}


def test_ten_thousand_pictures_take_a_moment(tmp_path: Path) -> None:
    """Every picture has its text: the time grows with their number, not with its square."""
    import time

    folder = tmp_path / "many"
    folder.mkdir()
    for n in range(3000):
        (folder / f"{n}.png").touch()
        (folder / f"{n}.txt").write_text("x")
    pictures = [folder / f"{n}.png" for n in range(3000)]
    started = time.perf_counter()
    beside = Sidecars(folder, pictures)
    assert all(beside.of(path) for path in pictures)
    assert beside.unread() == []
    assert time.perf_counter() - started < 3
