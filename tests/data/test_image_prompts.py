"""Prompts of images, from every place where tools leave them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from diffusion_lab.data.image_prompts import (
    ImagePrompt,
    clip_text,
    comfy_text,
    find_prompts,
    parse_parameters,
)
from diffusion_lab.records import UserError

PARAMETERS = (
    "a photo of sks dog, <lora:rex:0.8>\nin (deep:1.3) snow\n"
    "Negative prompt: blurry, Steps: none\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1234567890, Size: 64x64"
)
GRAPH = {
    "3": {"class_type": "KSampler", "inputs": {"seed": 5, "positive": ["6", 0], "negative": ["7", 0]}},
    "6": {"class_type": "ConditioningCombine", "inputs": {"conditioning": ["8", 0]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "ugly", "clip": ["4", 1]}},
    "8": {"class_type": "CLIPTextEncode", "inputs": {"text": "a dog on a beach", "clip": ["4", 1]}},
}


def image(path: Path, **texts: str) -> Path:
    info = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


def test_each_place_and_their_order(tmp_path: Path) -> None:
    paths = [
        image(tmp_path / "0.png", parameters=PARAMETERS),
        image(tmp_path / "1.png", prompt=json.dumps(GRAPH)),
        image(tmp_path / "2.png", parameters=PARAMETERS),  # the text file beside it comes first
        image(tmp_path / "3.png"),
        tmp_path / "4.jpg",
    ]
    (tmp_path / "2.txt").write_text("a dog asleep\n")
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + PARAMETERS.encode("utf-16-be")
    Image.new("RGB", (8, 8)).save(paths[4], exif=exif)
    told = find_prompts(paths, tmp_path)
    assert [one.text for one in told] == [
        "a photo of sks dog, <lora:rex:0.8>\nin (deep:1.3) snow",
        "a dog on a beach",
        "a dog asleep",
        None,
        told[0].text,
    ]
    assert [one.seed for one in told] == [1234567890, 0, 0, 0, 1234567890]
    assert [one.source for one in told] == ["parameters", "ComfyUI's graph", "text file", "", "parameters"]


def test_tables_come_first_and_give_slots(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = [image(tmp_path / "a.png", parameters=PARAMETERS), image(tmp_path / "b.png", parameters="other")]
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "one", "place": "snow"}\n\n')
    assert find_prompts(paths, tmp_path) == [
        ImagePrompt("one", None, {"place": "snow"}, 0, "metadata.jsonl"),
        ImagePrompt("other", source="parameters"),
    ]
    (tmp_path / "metadata.csv").write_text('file_name,text,edit\na.png,"two, three",\nc.png,x,y\n')
    assert find_prompts(paths, tmp_path)[0] == ImagePrompt(
        "two, three", None, {"edit": ""}, 0, "metadata.csv"
    )
    assert "1 rows name no picture there, such as c.png" in caplog.text


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.csv", b"file,text\na.png,x\n"),
        ("metadata.csv", b"file_name,place\na.png,x\n"),
        ("metadata.csv", b"file_name,text\na.png,\xff\n"),
        ("metadata.jsonl", b"[1]\n"),
        ("metadata.jsonl", b"{\n"),
    ],
)
def test_bad_tables_are_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"job\.images: .*{name} cannot be used"):
        find_prompts([image(tmp_path / "a.png")], tmp_path)


def test_images_of_a_run_of_ours(tmp_path: Path) -> None:
    prompt = {
        "id": "p001",
        "text": "a photo of customcls dog",
        "plain": "a photo of a dog",
        "slots": {"x": "y"},
    }
    (tmp_path / "prompts.json").write_text(json.dumps({"prompts": [prompt]}))
    folder = tmp_path / "samples" / "step-000010"
    folder.mkdir(parents=True)
    known, unknown = find_prompts([image(folder / "p001-0.png"), image(folder / "p002-0.png")], folder)
    assert known == ImagePrompt("a photo of customcls dog", "a photo of a dog", {"x": "y"}, 0, "prompts.json")
    assert unknown == ImagePrompt()


def test_damaged_metadata_say_nothing(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    odd = image(tmp_path / "odd.png", prompt='{"3": {"inputs": {"positive": ["3", 0]}}, "x": 1}')
    assert find_prompts([tmp_path / "broken.png", odd], tmp_path) == [ImagePrompt(), ImagePrompt()]
    assert comfy_text("[]") is None
    assert comfy_text('{"3": {"inputs": {"positive": ["3", 0]}}}') is None  # leads round in a circle
    assert parse_parameters("Negative prompt: x\nSteps: 1, Seed: 2") is None


def test_what_clip_is_asked() -> None:
    assert clip_text("a photo of sks dog, <lora:rex:0.8>\nin (deep:1.3) snow", "sks", "dog") == (
        "a photo of a dog, in deep snow"
    )
    assert clip_text("a photo of customcls owl", "customcls", "owl") == "a photo of an owl"
    assert clip_text("a red Customcls dog", "customcls", "dog") == "a red dog"
    assert clip_text("", "customcls", "dog") == ""
    assert clip_text("a {weird} prompt (in brackets)", "customcls", "dog") == "a {weird} prompt (in brackets)"
