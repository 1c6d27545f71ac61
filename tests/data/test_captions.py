"""Captions beside the pictures: found, refused, and each with its own picture in the batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from diffusion_lab.cli.compose import compose
from diffusion_lab.config.schema import Data
from diffusion_lab.data.captions import read_caption
from diffusion_lab.data.subjects import load_subject, training_captions
from diffusion_lab.jobs import check
from diffusion_lab.methods.lora import Lora
from diffusion_lab.plan.defaults import fill_defaults
from diffusion_lab.records import UserError
from diffusion_lab.training.loop import training_step


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "dog"
    place.mkdir()
    for n in range(6):
        Image.new("RGB", (64, 64), (40 * n, 90, 200 - 30 * n)).save(place / f"{n}.png")
        if n % 2 == 0:
            (place / f"{n}.txt").write_text(f" a customcls dog\nnumber {n} ", encoding="utf-8-sig")
    (place / "class_noun.txt").write_text("dog")
    return place


def data(folder: Path, **values) -> Data:
    return Data(source="folder", subject="", folder=str(folder), n_images=5, n_heldout=1, **values)


def test_each_picture_has_its_own_and_subsets_stay_as_they_were(folder: Path) -> None:
    with_captions, without = (load_subject(data(folder, captions=c)) for c in ("auto", "never"))
    expected = {f"{n}.png": f"a customcls dog number {n}" if n % 2 == 0 else None for n in range(6)}
    assert {p.path.name: p.caption for p in with_captions.train} == {
        p.path.name: expected[p.path.name] for p in without.train
    }
    assert [p.path for p in with_captions.train] == [p.path for p in without.train]
    assert [p.path for p in with_captions.heldout] == [p.path for p in without.heldout]
    assert {p.caption for p in (*without.train, *with_captions.heldout)} == {None}
    found = training_captions(data(folder))
    assert {file.stem for file in found} == {p.path.stem for p in with_captions.train if p.caption}


def test_files_that_are_no_captions(folder: Path) -> None:
    assert read_caption(folder / "class_noun.png") is None
    file = next(iter(training_captions(data(folder))))
    file.write_bytes(b"\xff\xfe\x00d")
    with pytest.raises(UserError, match=rf"{file}: cannot be read as a caption"):
        load_subject(data(folder))
    file.write_text("  \n")
    with pytest.raises(UserError, match=rf"{file}: is empty"):
        load_subject(data(folder))
    load_subject(data(folder, captions="never"))
    file.unlink()
    with pytest.raises(UserError, match=r"captions=always: .* pictures have none: \d\.txt is missing"):
        load_subject(data(folder, captions="always"))
    with pytest.raises(UserError, match="did you mean 'always'"):
        data(folder, captions="alway")
    with pytest.raises(UserError, match="the miniature's people have no captions"):
        Data(captions="always")


def test_plan_warns_of_captions_without_the_identifier_and_refuses_long_ones(folder: Path) -> None:
    words = [
        "data=folder", f"data.folder={folder}", "data.n_images=5", "data.n_heldout=1", "prompts.n=4"
    ]  # fmt: skip

    def plan():
        return check(fill_defaults(compose(words)), folder.parent / "run")

    assert not any("captions" in warning for warning in plan().warnings)
    for n in range(6):
        (folder / f"{n}.txt").write_text("a dog")
    assert any("5 of 5 captions do not say customcls" in warning for warning in plan().warnings)
    for n in range(6):
        (folder / f"{n}.txt").write_text("customcls " + "dog " * 90)
    with pytest.raises(UserError, match=rf"the caption {folder}/\d\.txt has \d+ tokens"):
        plan()


@pytest.mark.parametrize("text_encoder", [False, True])
def test_batch_pairs_pictures_with_their_captions(make_state, folder: Path, text_encoder: bool) -> None:
    subject = load_subject(data(folder))
    method = Lora(rank=2, text_encoder=text_encoder)
    state = make_state(subject=subject, method=method, batch_size=5)
    batch = state.next_batch(5)
    numbers = state.sampler.__class__(n=5, seed=0).take(5)
    decode = state.pipe.tokenizer.batch_decode
    texts = [t.replace(" ", "") for t in decode(batch.tokens["tokenizer"], skip_special_tokens=True)]
    said = [(subject.train[i].caption or subject.instance_prompt).replace(" ", "") for i in numbers]
    assert texts == said
    assert len(set(texts)) > 2
    if text_encoder:
        assert batch.conditioning is None
    else:
        with torch.no_grad():
            for row, ids in zip(batch.conditioning["hidden"], batch.tokens["tokenizer"], strict=True):
                assert torch.equal(row, state.pipe.text_encoder(ids[None])[0][0])
    from diffusion_lab.config.schema import Steps

    training_step(state, Steps(batch_size=2))


def test_too_long_a_caption_is_named_with_its_file(make_state, folder: Path) -> None:
    for n in range(6):
        (folder / f"{n}.txt").write_text("customcls " + "dog " * 90)
    with pytest.raises(UserError, match=rf"has \d+ tokens, the model reads 77; shorten {folder}/\d\.txt"):
        make_state(subject=load_subject(data(folder)))
