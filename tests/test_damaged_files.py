"""Every file from outside that is cut, empty, of another shape or no file at all is named; our own caches are made anew.

A table over all JSON and safetensors files of a model's folder, of adapters and embeddings, of checkpoints and caches.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusion_lab.__main__ import main
from diffusion_lab.artefacts.artefact import apply, recognise
from diffusion_lab.config.schema import Memory, Model, Prompts
from diffusion_lab.methods.dreambooth import DreamBooth
from diffusion_lab.methods.hypernetwork import Hypernetwork
from diffusion_lab.methods.lora import Lora
from diffusion_lab.methods.textual_inversion import TextualInversion
from diffusion_lab.models.load import load_pipeline
from diffusion_lab.records import UserError


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


def replaced(content: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(content)

    return write


def folder_in_its_place(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "something").write_text("else")


DAMAGES: dict[str, Callable[[Path], None]] = {
    "cut": cut,
    "empty": replaced(b""),
    "[]": replaced(b"[]"),
    "null": replaced(b"null"),
    "7": replaced(b"7"),
    "garbage": replaced(bytes(range(256)) * 40),
    "deep": replaced(b"[" * 200_000),
    "a folder": folder_in_its_place,
}
damages = pytest.mark.parametrize("damage", DAMAGES)


@contextmanager
def damaged(path: Path, damage: str) -> Iterator[None]:
    """The file as it was before, afterwards."""
    content = path.read_bytes()
    DAMAGES[damage](path)
    try:
        yield
    finally:
        if path.is_dir():
            shutil.rmtree(path)
        path.write_bytes(content)


def files_of(folder: Path) -> list[Path]:
    found = [*folder.rglob("*.json"), *folder.rglob("*.safetensors")]
    assert found
    return sorted(found)


# --- a model's folder -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model_folder(tiny_sd_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(tiny_sd_folder, tmp_path_factory.mktemp("damaged") / "sd"))


def load(folder: Path) -> Any:
    return load_pipeline(Model(path=str(folder), device="cpu"), torch.device("cpu"))


@damages
def test_every_file_of_a_models_folder(model_folder: Path, damage: str) -> None:
    for path in files_of(model_folder):
        name = path.name if path.parent == model_folder else f"{path.parent.name}/{path.name}"
        with (
            damaged(path, damage),
            pytest.raises(UserError, match=r"^model\.path=.*" + name.replace(".", r"\.")),
        ):
            load(model_folder)


@pytest.mark.parametrize("config", ["unet/config.json", "vae/config.json", "text_encoder/config.json"])
@pytest.mark.parametrize(
    "content", ["{}", '{"sample_size": "many"}', '{"block_out_channels": [7, 9], "hidden_size": 5}']
)
def test_configs_that_are_objects_and_say_nothing_of_use(
    model_folder: Path, config: str, content: str
) -> None:
    path = model_folder / config
    before = path.read_bytes()
    path.write_text(content)
    try:
        with pytest.raises(UserError, match=r"^model\.path="):
            load(model_folder)
    finally:
        path.write_bytes(before)


@damages
def test_vocabulary_and_merges(model_folder: Path, tmp_path: Path, damage: str) -> None:
    """A tokenizer in two files, as older models have it; half a list of merges would change every prompt."""
    folder = Path(shutil.copytree(model_folder, tmp_path / "sd"))
    model = json.loads((folder / "tokenizer" / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer" / "tokenizer.json").unlink()
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    (folder / "tokenizer" / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    assert load(folder).tokenizer("a photo").input_ids == load(model_folder).tokenizer("a photo").input_ids
    for name in ("vocab.json", "merges.txt"):
        with (
            damaged(folder / "tokenizer" / name, damage),
            pytest.raises(UserError, match=rf"tokenizer/{name}"),
        ):
            load(folder)


@pytest.fixture
def sharded(model_folder: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(model_folder, tmp_path / "sharded"))
    whole = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(whole)
    table = {
        key: f"diffusion_pytorch_model-0000{1 + n % 2}-of-00002.safetensors" for n, key in enumerate(weights)
    }
    for shard in set(table.values()):
        part = {key: weights[key] for key, file in table.items() if file == shard}
        save_file(part, folder / "unet" / shard, metadata={"format": "pt"})
    whole.unlink()
    size = sum(value.nbytes for value in weights.values())
    index = {"metadata": {"total_size": size}, "weight_map": table}
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    load(folder)
    return folder


def test_shards(sharded: Path) -> None:
    unet = sharded / "unet"
    index = unet / "diffusion_pytorch_model.safetensors.index.json"
    for path in (index, *sorted(unet.glob("*.safetensors"))):
        for damage in DAMAGES:
            with damaged(path, damage), pytest.raises(UserError, match=rf"unet/{path.name}"):
                load(sharded)
    table = json.loads(index.read_text())
    first = next(iter(table["weight_map"]))
    shutil.copy(unet / "diffusion_pytorch_model-00001-of-00002.safetensors", sharded / "outside.safetensors")
    for file, told in (
        ("../outside.safetensors", "no file of its own folder"), (str(sharded / "outside.safetensors"), "own folder"),
        ("..", "no file of its own folder"), ("gone.safetensors", r"unet/gone\.safetensors is missing"),
    ):  # fmt: skip
        changed = {**table, "weight_map": {**table["weight_map"], first: file}}
        index.write_text(json.dumps(changed))
        with pytest.raises(UserError, match=told):
            load(sharded)
    for changed in ({}, {"weight_map": []}, {"weight_map": {}}, {"weight_map": {first: 7}}):
        index.write_text(json.dumps(changed))
        with pytest.raises(UserError, match=r"index\.json has no weight_map"):
            load(sharded)


# --- adapters and embeddings --------------------------------------------------------------------------------

METHODS = {
    "lora": Lora(rank=2, targets=["to_q"]),
    "loha": Lora(variant="loha", rank=2, targets=["to_q"]),
    "embedding": TextualInversion(token="customcls", initialiser="dog"),
    "hypernetwork": Hypernetwork(),
    "dreambooth": DreamBooth(prior_weight=0.0, text_encoder=True),
}


@pytest.mark.parametrize("method", METHODS)
def test_every_file_of_an_artefact(make_state, tiny_pipe: Any, tmp_path: Path, method: str) -> None:
    state = make_state(method=METHODS[method])
    if method == "dreambooth":  # else nothing has changed, and there is nothing to load
        with torch.no_grad():
            for network in (state.pipe.unet, state.pipe.text_encoder):
                next(network.parameters()).add_(1.0)
    state.save(tmp_path)
    pieces = recognise(tmp_path)
    for path in files_of(tmp_path):
        if path.name == "config.json":  # of a network that is there: not read
            continue
        target = tmp_path if path.name in ("dreambooth.json", "adapter_config.json") else path
        if method == "dreambooth" and target == path:
            target = tmp_path
        for damage in DAMAGES:
            with damaged(path, damage), pytest.raises(UserError, match=r"job\.artefact.*" + path.stem):
                for piece in recognise(target) if path.exists() else pieces:
                    apply(tiny_pipe, piece, 0.0)


def test_the_program_ends_with_status_2(
    model_folder: Path, make_state, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = make_state(method=METHODS["lora"])
    state.save(tmp_path / "lora")
    words = [
        "job=generate",
        f"job.artefact={tmp_path / 'lora'}",
        f"job.output={tmp_path / 'images'}",
        "model.device=cpu",
    ]
    cut(tmp_path / "lora" / "pytorch_lora_weights.safetensors")
    assert main([*words, "--dry-run"]) == 2
    assert "pytorch_lora_weights.safetensors: the file is damaged" in capsys.readouterr().err
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "generated.json").write_text("[]")
    state.save(tmp_path / "lora")
    assert main([*words, f"model.path={model_folder}", "job.texts=[a photo]"]) == 2
    assert "generated.json holds a list where an object is needed" in capsys.readouterr().err
    folder = Path(shutil.copytree(model_folder, tmp_path / "sd"))
    cut(folder / "unet" / "config.json")
    assert (
        main(["model=folder", f"model.path={folder}", "--dry-run", f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    )
    assert "unet/config.json is damaged" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# --- checkpoints ------------------------------------------------------------------------------------------


@damages
def test_checkpoints_are_passed_over_by_name(
    make_state, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    from diffusion_lab.training import checkpoint

    folder = checkpoint.write(checkpoint.capture(make_state(method=METHODS["lora"])), tmp_path)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    assert len(files) >= 2
    for path in files:
        caplog.clear()
        with damaged(path, damage):
            assert checkpoint.latest(tmp_path) is None
        assert str(folder) in caplog.text
    assert checkpoint.latest(tmp_path) is not None


# --- caches of our own -----------------------------------------------------------------------------------


@damages
def test_pictures_of_the_class_are_drawn_again(
    tiny_pipe: Any, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    from diffusion_lab.training.class_pictures import class_pictures

    settings = Prompts(sampling_steps=1, batch_size=2)

    def pictures() -> list[bytes]:
        found = class_pictures(tiny_pipe, "dog", 3, settings, resolution=64, seed=0, cache=tmp_path)
        return [picture.pixels.tobytes() for picture in found]

    before = pictures()
    path = next(tmp_path.rglob("00001.png"))
    DAMAGES[damage](path)
    assert pictures() == before
    if damage != "a folder":
        assert "00001.png" in caplog.text
    assert pictures() == before


def test_drawn_subjects_are_drawn_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from diffusion_lab.config.schema import Data
    from diffusion_lab.data.subjects import load_subject

    data = Data(subject="anna", n_images=2, n_heldout=1)
    before = load_subject(data, tmp_path)
    for name, damage in (("03.png", "cut"), ("00.png", "a folder"), ("class_noun.txt", "empty")):
        caplog.clear()
        DAMAGES[damage](next(tmp_path.rglob(f"anna/{name}")))
        after = load_subject(data, tmp_path)
        assert [p.sha256 for p in after.train] == [p.sha256 for p in before.train]
        assert after.class_noun == before.class_noun
        assert "anna is damaged and is generated again" in caplog.text


@damages
def test_latents_are_encoded_again(
    make_state, session_cache: Path, tmp_path: Path, monkeypatch: Any, damage: str, caplog: Any
) -> None:
    monkeypatch.setenv("DIFFUSION_LAB_CACHE", str(tmp_path))

    def drawn() -> torch.Tensor:
        state = make_state(method=METHODS["lora"], memory=Memory(cache="disk"))
        return state.latents.sample([0, 1], torch.Generator().manual_seed(0))

    before = drawn()
    path = files_of_kind(tmp_path, "*.safetensors")[0]
    DAMAGES[damage](path)
    assert torch.equal(drawn(), before)
    assert f"{path} is damaged and is created again" in caplog.text


def files_of_kind(folder: Path, pattern: str) -> list[Path]:
    found = sorted(folder.rglob(pattern))
    assert found
    return found


@damages
def test_features_are_kept_anew(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    from diffusion_lab.evaluation.encoders.cache import FeatureCache

    def rows(cache: FeatureCache) -> Any:
        found = cache.rows("one", [b"a", b"b"], lambda numbers: torch.tensor([[n, 1.0] for n in numbers]))
        return found.tolist()

    path = tmp_path / "features.sqlite"
    assert rows(FeatureCache(path)) == [[0, 1], [1, 1]]
    DAMAGES[damage](path)
    assert rows(FeatureCache(path)) == [[0, 1], [1, 1]]
    fresh = FeatureCache(path)
    assert rows(fresh) == [[0, 1], [1, 1]]
    assert (fresh.hits, fresh.misses) == (2, 0), "they were kept again"
    if damage not in (
        "empty",
        "7",
        "cut",
    ):  # SQLite takes the first two for empty databases, and may read a cut one
        assert "cannot be used and is rebuilt" in caplog.text


@pytest.mark.parametrize("blob", [b"", b"123", np.zeros(5, "<f4").tobytes(), None])
def test_rows_of_another_size_are_made_anew(tmp_path: Path, blob: bytes | None) -> None:
    import sqlite3

    from diffusion_lab.evaluation.encoders.cache import FeatureCache

    path = tmp_path / "features.sqlite"

    def rows() -> Any:
        return (
            FeatureCache(path)
            .rows("one", [b"a", b"b", b"c"], lambda numbers: torch.ones(len(numbers), 2))
            .tolist()
        )

    rows()
    with sqlite3.connect(path) as base:
        base.execute("UPDATE features SET value = ? WHERE key = ?", (blob, b"b"))
        base.execute("DELETE FROM features WHERE key = ?", (b"c",))
    assert rows() == [[1, 1]] * 3


def test_another_programs_database_is_replaced(tmp_path: Path) -> None:
    import sqlite3

    from diffusion_lab.evaluation.encoders.cache import FeatureCache

    path = tmp_path / "features.sqlite"
    with sqlite3.connect(path) as base:
        base.execute("CREATE TABLE features (a TEXT)")
    for _ in range(2):
        cache = FeatureCache(path)
        assert cache.rows("one", [b"a"], lambda numbers: torch.ones(len(numbers), 2)).tolist() == [[1, 1]]
    assert cache.hits == 1


@damages
def test_the_second_miniature_is_put_together_again(
    tmp_path: Path, monkeypatch: Any, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    from diffusion_lab.miniature.shipped import shipped_folder

    monkeypatch.setenv("DIFFUSION_LAB_CACHE", str(tmp_path))
    folder = shipped_folder("miniature_v")
    path = folder / "unet" / "config.json"
    before = path.read_bytes()
    DAMAGES[damage](path)
    assert shipped_folder("miniature_v") == folder
    assert path.read_bytes() == before
    assert "is damaged and is put together again" in caplog.text


@damages
@pytest.mark.parametrize("method", METHODS)
def test_what_a_method_loads_itself(make_state, tmp_path: Path, method: str, damage: str) -> None:
    """`method.load(pipe, folder)`, which reports print for what plain diffusers does not read."""
    state = make_state(method=METHODS[method])
    if method == "dreambooth":
        with torch.no_grad():
            next(state.pipe.unet.parameters()).add_(1.0)
    state.save(tmp_path)
    state.method.load(state.pipe, tmp_path)
    twins = ("lora_kohya.safetensors", "learned_embeds_a1111.safetensors", "config.json")
    for path in files_of(tmp_path):
        if path.name not in twins:
            with damaged(path, damage), pytest.raises(UserError, match=path.stem):
                state.method.load(state.pipe, tmp_path)


@damages
def test_every_file_of_an_encoders_folder(tmp_path: Path, damage: str) -> None:
    """A real CLIP of toy size, as transformers saves it."""
    from transformers import CLIPConfig, CLIPModel

    from diffusion_lab.evaluation.encoders.clip_transformers import TransformersClip

    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**small, "vocab_size": 99}, vision_config={**small, "image_size": 16, "patch_size": 8}
    )
    CLIPModel(config).save_pretrained(tmp_path)
    for path in files_of(tmp_path):
        with damaged(path, damage), pytest.raises(UserError, match=rf"metrics\.clip_model=.*{path.name}"):
            TransformersClip.load(str(tmp_path))
