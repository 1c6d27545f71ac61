"""What a run needs from elsewhere: listed with sizes before, fetched before anything slow, one clear line where it fails."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from PIL import Image

from diffusion_lab.cli.compose import compose
from diffusion_lab.config.schema import Config, Metrics, Model
from diffusion_lab.evaluation.encoders import clip_tags, published
from diffusion_lab.evaluation.encoders.weights import why_not_published
from diffusion_lab.families import FAMILIES
from diffusion_lab.jobs import check
from diffusion_lab.models import hub
from diffusion_lab.models.place import model_folder
from diffusion_lab.plan import downloads
from diffusion_lab.plan.defaults import fill_defaults
from diffusion_lab.plan.fetch import fetch
from diffusion_lab.records import UserError
from tests.models.hub_server import Hub, serving

TINY = "someone/tiny-diffusion"


def point(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """As if the process had begun with HF_ENDPOINT: the library reads it once."""
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches, and a hub that may be asked."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("DIFFUSION_LAB_CACHE", str(tmp_path / "own"))
    return tmp_path


@pytest.fixture
def tiny_hub(caches: Path, tiny_sd_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving({TINY: tiny_sd_folder}) as running:
        point(monkeypatch, running.endpoint)
        yield running


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "me"
    folder.mkdir()
    for number in range(4):
        noise = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def full(pictures: Path) -> Callable[..., Config]:
    data = ["data=folder", f"data.folder={pictures}", "data.class_noun=man", "data.n_images=2"]
    return lambda *words: fill_defaults(compose(["experiment=full", *data, *words]))


# --- the list -------------------------------------------------------------------------------------------


def test_the_plan_lists_every_file_its_size_and_whether_it_is_there(
    full: Callable[..., Config], caches: Path, tmp_path: Path
) -> None:
    plan = check(full(), tmp_path / "run")
    names = {file.name for file in plan.downloads}
    assert {
        "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors", "tokenizer/vocab.json", "open_clip_model.safetensors",
        "20180402-114759-vggface2.pt", published.HEAD_FILE,
    } <= names  # fmt: skip
    told = "\n".join(value for _, value in plan.rows)
    assert all(name in told for name in names)
    assert f"{len(names)} of {len(names)} files, 6.1 GB to fetch" in told
    assert all(file.size for file in plan.downloads), "the named models' sizes are known"
    assert "there:" not in told
    face = next(file for file in plan.downloads if "vggface2" in file.name)
    face.target.parent.mkdir(parents=True)
    face.target.write_bytes(b"x" * 5_000_000)
    told = "\n".join(value for _, value in check(full(), tmp_path / "run").rows)
    assert f"there: {face.name}, 5.0 MB" in told
    assert not (tmp_path / "run").exists()


# what asks for files -> what must, and what must not, be among them
NEEDS = {
    "metrics.names=[face_rate]": ((), ("vggface2", "clip", "linearMSE")),
    "metrics.names=[similarity]": (("vggface2",), ("clip", "linearMSE")),
    "metrics.names=[diversity]": (("open_clip",), ("vggface2", "linearMSE")),
    "metrics.names=[aesthetics]": (("open_clip", "linearMSE"), ("vggface2",)),
    "metrics.names=[aesthetics] metrics.aesthetics_weights=null": (
        (),
        ("vggface2", "open_clip", "linearMSE"),
    ),
    "metrics.names=[fid]": (("pt_inception",), ("open_clip", "vggface2")),
    "metrics.names=[dino]": (("model.safetensors",), ("open_clip",)),
    "metrics.names=[similarity] metrics.face_weights=casia-webface": (("casia-webface",), ("vggface2",)),
    "metrics.names=[clip_text] metrics.clip_model=openai/clip-vit-base-patch32": (
        ("merges.txt",),
        ("open_clip",),
    ),
    "metrics.names=[clip_text] metrics.clip_model=ViT-H-14 metrics.clip_weights=laion2b_s32b_b79k": (
        ("open_clip",),
        ("vggface2",),
    ),
    "metrics=miniature": ((), ("open_clip", "vggface2", "linearMSE")),
}


@pytest.mark.parametrize("words", NEEDS)
def test_only_what_the_metrics_need(full: Callable[..., Config], caches: Path, words: str) -> None:
    there, absent = NEEDS[words]
    names = [file.name for file in downloads.of_metrics(full(*words.split(" ")).metrics)]
    for name in there:
        assert any(name in found for found in names)
    for name in absent:
        assert not any(name in found for found in names)


def test_the_lists_hold_what_the_installed_libraries_would_fetch() -> None:
    """Addresses and tags are read from their sources or equal to them."""
    import open_clip
    from open_clip.pretrained import _PRETRAINED

    spec = find_spec("facenet_pytorch")
    assert spec is not None
    assert spec.origin is not None
    source = (Path(spec.origin).parent / "models" / "inception_resnet_v1.py").read_text()
    for name, _, _ in downloads.FACE_FILES.values():
        assert f"'{downloads.FACE_RELEASE}{name}'" in source
    assert set(clip_tags.models()) == set(open_clip.list_models())
    for model, tags in _PRETRAINED.items():
        assert clip_tags.tags()[model] == {tag: entry["hf_hub"] for tag, entry in tags.items()}


def test_a_cached_hub_model_is_a_folder_that_is_checked_and_asks_nobody(
    tiny_hub: Hub, full: Callable[..., Config], tmp_path: Path
) -> None:
    config = full(f"model.path={TINY}", "metrics=miniature")
    assert model_folder(config.model) is None
    fetch(config)
    folder = model_folder(config.model)
    assert folder is not None
    assert (folder / "unet" / "diffusion_pytorch_model.safetensors").is_file()
    asked = len(tiny_hub.asked)
    files = downloads.wanted(config)
    assert files
    assert all(file.path is not None for file in files)
    assert dict(downloads.rows(files))["downloads"] == f"none: all {len(files)} files are there"
    fetch(config)
    import torch

    from diffusion_lab.models.load import load_pipeline

    pipe = load_pipeline(config.model, torch.device("cpu"))
    assert pipe.unet.config.sample_size == 16
    assert len(tiny_hub.asked) == asked, "nobody is asked for what is there"
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    assert model_folder(config.model) is None
    fetch(config)
    assert model_folder(config.model) is not None


@pytest.mark.parametrize(
    ("names", "options", "expected"),
    [
        (["unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.bin"], {}, 1),
        (["unet/diffusion_pytorch_model.fp16.safetensors"], {}, 1),  # the only ones there are
        (["unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.safetensors"],
         {"variant": "fp16"}, 1),
        (["unet/diffusion_pytorch_model-00001-of-00002.safetensors", "unet/diffusion_pytorch_model.bin",
          "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
          "unet/diffusion_pytorch_model.safetensors.index.json"], {}, 3),
        (["unet/diffusion_pytorch_model.bin"], {"allow_pickle": True}, 1),
        (["unet/diffusion_pytorch_model.bin"], {}, 0),
        (["unet/diffusion_pytorch_model.non_ema.safetensors"], {}, 0),
    ],
)  # fmt: skip
def test_which_weights_of_a_repository_are_fetched(
    names: list[str], options: dict[str, object], expected: int
) -> None:
    others = [
        "model_index.json", "unet/config.json", "tokenizer/vocab.json", "README.md", "v1-5-pruned.ckpt",
        "safety_checker/model.safetensors", "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model.fp16.safetensors",
    ]  # fmt: skip
    model = Model(path="owner/name", **options)  # type: ignore[arg-type]
    if not expected:
        with pytest.raises(UserError, match=r"model\.path=owner/name.*unet/.*model\.allow_pickle"):
            hub.model_files({*names, *others}, model, FAMILIES["sd"])
        return
    chosen = hub.model_files({*names, *others}, model, FAMILIES["sd"])
    assert len([name for name in chosen if name.startswith("unet/") and "config" not in name]) == expected
    assert not {"README.md", "v1-5-pruned.ckpt", "safety_checker/model.safetensors"} & set(chosen)
    assert hub.model_files({*names, *others}, model, FAMILIES["sd"], parts=()) == sorted(
        name for name in others if name.endswith(".json")
    )


# --- fetching -------------------------------------------------------------------------------------------


def other_file(endpoint: str, content: bytes, target: Path, sha256: str | None = None) -> downloads.Wanted:
    digest = hashlib.sha256(content).hexdigest() if sha256 is None else sha256
    return downloads.Wanted(
        key="metrics.face_weights=vggface2", name="face.pt", by_hand="fetch it by hand", sha256=digest,
        url=f"{endpoint}/{TINY}/resolve/main/face.pt", target=target / "face.pt",
    )  # fmt: skip


@pytest.fixture
def face_server(caches: Path, tmp_path: Path) -> Iterator[Hub]:
    files = tmp_path / "files"
    files.mkdir()
    (files / "face.pt").write_bytes(b"weights" * 1000)
    with serving({TINY: files}) as running:
        yield running


def test_a_file_from_elsewhere_is_whole_or_not_there(face_server: Hub, caches: Path) -> None:
    content = b"weights" * 1000
    file = other_file(face_server.endpoint, content, caches / "place")
    fetch(fill_defaults(compose()), [file])
    assert file.target.read_bytes() == content
    assert os.listdir(file.target.parent) == ["face.pt"]
    file.target.unlink()
    wrong = dataclasses.replace(file, sha256="0" * 64)
    with pytest.raises(UserError, match=r"face\.pt.*SHA-256.*not used.*by hand|By hand: fetch it by hand"):
        fetch(fill_defaults(compose()), [wrong])
    assert os.listdir(file.target.parent) == [], "neither the file nor a part of it"
    prefix = dataclasses.replace(file, sha256=file.sha256[:8])
    fetch(fill_defaults(compose()), [prefix])
    assert file.target.is_file()


def test_without_a_published_checksum_the_first_one_counts(face_server: Hub, caches: Path) -> None:
    file = other_file(face_server.endpoint, b"", caches / "place", sha256="")
    config = fill_defaults(compose())
    fetch(config, [file])
    noted = json.loads((caches / "own" / "downloads.json").read_text())
    assert noted == {file.url: hashlib.sha256(b"weights" * 1000).hexdigest()}
    file.target.unlink()
    fetch(config, [file])
    file.target.unlink()
    (face_server.repos[TINY] / "face.pt").write_bytes(b"another")
    with pytest.raises(UserError, match="exchanged file"):
        fetch(config, [file])


def refused_endpoint() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"  # closed again: nobody listens


def silent_endpoint() -> tuple[str, socket.socket]:
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(8)  # takes connections and never says a word
    return f"http://127.0.0.1:{listening.getsockname()[1]}", listening


@pytest.mark.parametrize("kind", ["refused", "silent", "offline", "no such repository", "a web page"])
def test_without_the_hub_one_clear_line_at_once(
    full: Callable[..., Config], tiny_hub: Hub, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "PATIENCE", 2.0)
    monkeypatch.setattr(hub.ask, "__defaults__", (2.0,))
    held = None
    if kind == "refused":
        point(monkeypatch, refused_endpoint())
    elif kind == "silent":
        endpoint, held = silent_endpoint()
        point(monkeypatch, endpoint)
    elif kind == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif kind == "a web page":
        point(monkeypatch, f"{tiny_hub.endpoint}/no/hub")
    path = "someone/else" if kind in ("no such repository", "a web page") else TINY
    config = full(f"model.path={path}")
    started = time.monotonic()
    with pytest.raises(UserError) as caught:
        fetch(config)
    assert time.monotonic() - started < 8
    told = str(caught.value)
    assert "\n" not in told
    assert told.startswith(f"model.path={path}: ")
    assert "unet/diffusion_pytorch_model.safetensors" in told
    assert f"from {path} on the hub" in told
    assert "set model.path to it" in told, "what to do by hand"
    for word in ("20180402-114759-vggface2.pt", "timesler/facenet-pytorch", "open_clip_model.safetensors"):
        assert word in told, "the other missing files too"
    reasons = {
        "refused": ["Connection refused"], "silent": ["no answer", "timed out"], "offline": ["HF_HUB_OFFLINE"],
        "no such repository": ["no such repository"], "a web page": ["no such repository"],
    }  # fmt: skip
    assert any(reason in told for reason in reasons[kind])
    if held is not None:
        held.close()


def test_each_missing_encoder_says_its_file_where_from_and_where_to(
    full: Callable[..., Config], caches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point(monkeypatch, refused_endpoint())
    monkeypatch.setattr(downloads, "FACE_RELEASE", f"{refused_endpoint()}/")
    monkeypatch.setattr(published, "INCEPTION_RELEASE", f"{refused_endpoint()}/")
    for names, file, place in (
        ("similarity", "20180402-114759-vggface2.pt", f"put it into {caches / 'torch' / 'checkpoints'}"),
        ("diversity", "open_clip_model.safetensors", "set metrics.clip_weights to the file"),
        (
            "fid",
            "pt_inception-2015-12-05-6726825d.pth",
            f"put it into {caches / 'torch' / 'hub' / 'checkpoints'}",
        ),
        ("dino", "model.safetensors", "set metrics.dino_model to it"),
    ):
        config = full(f"metrics.names=[{names}]")
        config.model.path = "miniature"
        with pytest.raises(UserError) as caught:
            fetch(config)
        assert file in str(caught.value)
        assert place in str(caught.value)


def test_a_run_refused_leaves_no_folder_and_takes_seconds(pictures: Path, tmp_path: Path) -> None:
    """The whole program, with an endpoint that nobody listens on."""
    environment = {
        **os.environ, "HF_ENDPOINT": refused_endpoint(), "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0",
    }  # fmt: skip
    words = [
        "experiment=full",
        "data=folder",
        f"data.folder={pictures}",
        "data.class_noun=man",
        "data.n_images=2",
    ]
    started = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-m", "diffusion_lab", *words, f"hydra.run.dir={tmp_path / 'run'}"],
        env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "Connection refused" in ended.stderr
    assert not (tmp_path / "run").exists()
    assert time.monotonic() - started < 10


@pytest.mark.slow
def test_a_run_with_a_hub_model_fetches_it_and_ends(tiny_hub: Hub, pictures: Path, tmp_path: Path) -> None:
    environment = {
        **os.environ, "HF_ENDPOINT": tiny_hub.endpoint, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0",
    }  # fmt: skip
    (tmp_path / "prompts.txt").write_text("a photo of {subject}\na {subject} in the garden\n")
    words = [
        "experiment=debug", "model=folder", f"model.path={TINY}", "data=folder", f"data.folder={pictures}",
        "data.class_noun=man", "data.n_images=2", "prompts=file", f"prompts.path={tmp_path / 'prompts.txt'}",
        "prompts.n=2", "prompts.sampling_steps=1", "metrics.names=[diversity]", "data.identifier=dog",
        "steps.total=1", "steps.every=1", f"hydra.run.dir={tmp_path / 'run'}",
    ]  # fmt: skip
    ended = subprocess.run(
        [sys.executable, "-m", "diffusion_lab", *words],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert "fetching" in ended.stderr
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "completed"


# --- the published aesthetics head ------------------------------------------------------------------------


def test_a_default_head_for_openais_clip_alone(full: Callable[..., Config], tmp_path: Path) -> None:
    assert full().metrics.aesthetics_weights == "laion"
    assert fill_defaults(compose()).metrics.aesthetics_weights is None
    own = full(f"metrics.aesthetics_weights={tmp_path / 'head.safetensors'}")
    assert own.metrics.aesthetics_weights == str(tmp_path / "head.safetensors")
    other = full("metrics.clip_model=ViT-B-32")
    assert other.metrics.aesthetics_weights is None
    told = check(other, tmp_path / "run").warnings
    assert any("no value" in one and "ViT-L/14" in one for one in told)
    told = check(full(), tmp_path / "run").warnings
    assert any("laion" in one and "may be biased" in one for one in told)
    wrong = full("metrics.clip_model=ViT-B-32", "metrics.aesthetics_weights=laion")
    with pytest.raises(UserError, match="trained on OpenAI's CLIP ViT-L/14"):
        check(wrong, tmp_path / "run")


@pytest.mark.parametrize(
    ("model", "weights", "fits"),
    [
        ("ViT-L-14", "openai", True), ("ViT-L/14", "openai", True), ("ViT-L-14-quickgelu", "openai", True),
        ("openai/clip-vit-large-patch14", "openai", True), ("ViT-L-14", "laion2b_s32b_b82k", False),
        ("ViT-L-14-336", "openai", False), ("ViT-B-32", "openai", False), ("ViT-H-14", "laion2b_s32b_b79k", False),
        ("google/siglip-base-patch16-224", "openai", False),
    ],
)  # fmt: skip
def test_which_clip_the_published_head_is_for(model: str, weights: str, fits: bool) -> None:
    assert bool(why_not_published(model, weights)) != fits


def test_a_folder_goes_by_its_width(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"projection_dim": 768}))
    assert not why_not_published(str(tmp_path), "openai")
    (tmp_path / "config.json").write_text(json.dumps({"projection_dim": 512}))
    assert why_not_published(str(tmp_path), "openai")
    (tmp_path / "config.json").unlink()
    assert why_not_published(str(tmp_path), "openai")


def test_the_fetched_head_rates(
    caches: Path, tmp_path: Path, full: Callable[..., Config], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """A file of the published one's layers through the whole way: fetched, checked, read with tensors only."""
    import torch
    from torch import nn

    from diffusion_lab.evaluation.encoders.aesthetics import AestheticsHead, published_head

    net = nn.Module()
    widths = (768, 1024, 128, 64, 16, 1)
    net.layers = nn.Sequential()
    for number, place in enumerate((0, 2, 4, 6, 7)):  # dropout between, as published
        net.layers.add_module(str(place), nn.Linear(widths[number], widths[number + 1]))
    folder = tmp_path / "head"
    folder.mkdir()
    torch.save(net.state_dict(), folder / published.HEAD_FILE)
    digest = hashlib.sha256((folder / published.HEAD_FILE).read_bytes()).hexdigest()
    monkeypatch.setattr(published, "HEAD_REVISION", "main")
    config = full("metrics.names=[aesthetics]")
    with pytest.raises(UserError, match=r"metrics\.aesthetics_weights=laion.*not on this machine"):
        published_head()
    with serving({published.HEAD_REPO: folder}) as running:
        point(monkeypatch, running.endpoint)
        with pytest.raises(UserError, match="SHA-256"):
            fetch(config, [published.head()])
        with pytest.raises(UserError, match="not on this machine"):
            published_head()  # a wrong file is not kept
        monkeypatch.setattr(published, "HEAD_SHA256", digest)
        fetch(config, [published.head()])
    head = AestheticsHead.load("laion")
    assert "may be biased" in caplog.text
    embedding = torch.nn.functional.normalize(torch.randn(3, 768), dim=1)
    expected = embedding
    for place in (0, 2, 4, 6, 7):
        layer = getattr(net.layers, str(place))
        expected = expected @ layer.weight.T + layer.bias
    torch.testing.assert_close(head.score(embedding), expected[:, 0].clamp(0, 10).detach())


def test_an_encoder_in_parts(
    caches: Path, tmp_path: Path, full: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large CLIP's weights in shards, and then nobody is asked any more."""
    repo, folder = "someone/large-clip", tmp_path / "clip"
    folder.mkdir()
    names = [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    for name in (*names, "config.json", "preprocessor_config.json", "pytorch_model.bin"):
        (folder / name).write_text(name)
    config = full("metrics.names=[clip_text]", f"metrics.clip_model={repo}")
    with serving({repo: folder}) as running:
        point(monkeypatch, running.endpoint)
        fetch(config, downloads.of_metrics(config.metrics))
        assert all(hub.cached(repo, name) is not None for name in names)
        assert hub.cached(repo, "pytorch_model.bin") is None
        files = downloads.of_metrics(config.metrics)
        assert all(file.path is not None for file in files)


# --- what is refused early ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("metrics.face_weights=vggface3", r"metrics\.face_weights=vggface3.*vggface2, casia-webface"),
        (
            "metrics.clip_weights=opnai",
            r"metrics\.clip_weights=opnai.*neither a file nor a tag of ViT-L-14: openai",
        ),
        ("metrics.clip_model=ViT-L-15", r"metrics\.clip_model=ViT-L-15.*did you mean"),
        ("metrics.clip_weights=here/clip.safetensors", r"metrics\.clip_weights=here.*no such file"),
        ("metrics.aesthetics_weights=lion", r"metrics\.aesthetics_weights=lion.*no such file"),
        ("metrics.inception_weights=nowhere.pth metrics.names=[fid]", r"metrics\.inception_weights=nowhere"),
        (
            "model.path=owner/name model.local_files_only=true",
            r"model\.path=owner/name.*model\.local_files_only=false",
        ),
    ],
)
def test_wrong_encoders_are_refused_by_the_plan(
    full: Callable[..., Config], caches: Path, tmp_path: Path, words: str, told: str
) -> None:
    with pytest.raises(UserError, match=told):
        check(full(*words.split(" ")), tmp_path / "run")


def test_too_little_room_for_the_downloads(
    full: Callable[..., Config], caches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 3_000_000_000})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"HF_HOME=.*3000 MB are free.*about 5982 MB"):
        check(full(), tmp_path / "run")


def test_metrics_of_the_schema_alone_still_work() -> None:
    assert downloads.of_metrics(Metrics()) == []
