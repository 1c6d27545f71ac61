"""Command lines that cannot work: exit status 2, the key named, nothing loaded, no folder left."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from diffusion_lab.__main__ import main
from diffusion_lab.cli.compose import compose
from diffusion_lab.families import FAMILIES
from diffusion_lab.jobs import check
from diffusion_lab.plan import fits
from diffusion_lab.plan.defaults import fill_defaults
from diffusion_lab.plan.unlikely import unlikely
from diffusion_lab.records import UserError

WORDS = ["tracker.wandb=disabled", "model.device=cpu"]
# What follows here is said without any model but the shipped one.
CASES: dict[str, tuple[list[str], str]] = {
    "unknown target": (["method.targets=[foo]"], "method.targets"),
    "misspelt target": (["method.targets=[to_q,to_vv]"], "did you mean 'to_v'"),
    "one of four": (["method.targets=[to_q,to_k,to_v,to_out]"], "method.targets"),
    "a text encoder's layer": (["method.targets=[q_proj]"], "method.targets"),
    "a norm is no layer": (["method.targets=[norm1]"], "method.targets"),
    "half a name": (["method.targets=[o_q]"], "method.targets"),
    "pivotal's target": (["method=pivotal", "method.targets=[foo]"], "method.targets"),
    "convolution for OFT": (["method.variant=oft", "method.targets=[conv1]"], "convolution"),
    "rank above all layers": (["method.rank=4000"], "method.rank=4000: no layer among method.targets is wider than"),
    "pivotal's rank": (["method=pivotal", "method.rank=3000"], "method.rank"),
    "LoHa's rank": (["method.variant=loha", "method.rank=4096"], "method.rank=4096: no layer"),
    "OFT's blocks": (["method.variant=oft", "method.rank=4096"], "method.rank=4096: no layer"),
    "a layer of nothing": (["method=hypernetwork", "method.layers=[1,0.001,1]"], "method.layers=0.001"),
    "pretraining from nowhere": (["job=pretrain", "job.output={out}/made", "job.start=nowhere"], "nowhere: there is no such folder (of a U-Net)"),
    "empty initialiser": (["method=textual_inversion", "method.initialiser=''"], "method.initialiser"),
    "blank initialiser": (["method=textual_inversion", "method.initialiser='  '"], "method.initialiser"),
    "initialiser without a token": (["method=pivotal", "method.initialiser=''"], "method.initialiser"),
    "two tokens for one vector": (
        ["method=textual_inversion", "method.initialiser=woman man"], "method.initialiser='woman man': is 2 tokens (woman + man)",
    ),
    "a word of several tokens": (["method=textual_inversion", "method.initialiser=qzxv"], "method.initialiser"),
    "no token for an emoji": (["method=textual_inversion", "method.initialiser=😀"], "method.initialiser"),
    "cuda": (["model.device=cuda"], "model.device=cuda"),
    "a second card": (["model.device=cuda:7"], "model.device=cuda:7"),
    "an endless card": (["model.device=cuda:99999999999999999999"], "model.device=cuda:9"),
    "mps": (["model.device=mps"], "model.device=mps"),
    "fp16 on a CPU": (["model.precision=fp16"], "model.precision=fp16"),
    "resolution": (["model.resolution=72"], "model.resolution=72: must be a multiple of"),
    "impostors without pictures": (["data=folder", "data.folder={pictures}", "data.class_noun=dog", "data.n_images=2", "data.impostors={empty}"], "data.impostors"),
    "a huge picture": (["data=folder", "data.folder={huge}", "data.class_noun=dog", "data.n_images=2"], "data.on_corrupt=skip"),
    "a text that is called a picture": (["data=folder", "data.folder={text}", "data.class_noun=dog", "data.n_images=2"], "data.on_corrupt=skip"),
    "no run folder": (["hydra.run.dir=''"], "hydra.run.dir"),
    "a blank run folder": (["hydra.run.dir='  '"], "hydra.run.dir"),
    "too many evaluations": (["steps.total=1000000", "steps.every=1"], "steps.every"),
    "score on a card": (["job=score", "job.images={pictures}", "model.device=cuda"], "model.device"),
    "score of a huge picture": (["job=score", "job.images={huge}"], "unpacks to more than"),
    "generate on a card": (["job=generate", "job.output={out}/images", "model.device=cuda"], "model.device"),
    "generate in fp16": (["job=generate", "job.output={out}/images", "model.precision=fp16"], "model.precision"),
}  # fmt: skip
ON_CARDS = {"cuda", "a second card", "score on a card", "generate on a card"}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of pictures: good ones, with a huge one, with one that is none; an empty one."""
    root = tmp_path_factory.mktemp("places")
    rng = np.random.default_rng(0)
    for name in ("pictures", "huge", "text"):
        (root / name).mkdir()
        for number in range(4):
            pixels = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    (root / "empty").mkdir()
    (root / "text" / "x.png").write_text("no picture")
    size = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", size), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    packed = [
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    ]
    (root / "huge" / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))
    return {path.name: str(path) for path in root.iterdir()}


@pytest.mark.parametrize("dry", [True, False], ids=["dry run", "run"])
@pytest.mark.parametrize("name", list(CASES))
def test_refused_before_anything_is_made(
    name: str,
    dry: bool,
    places: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if name in ON_CARDS and fits.may_have_card():
        pytest.skip("this machine may have a card")
    monkeypatch.chdir(tmp_path)
    words, told = CASES[name]
    given = [word.format(out=tmp_path, **places) for word in words]
    folder = [] if any(word.startswith("hydra.run.dir") for word in given) else ["hydra.run.dir=run"]
    keys = {word.partition("=")[0] for word in given}
    plain = [word for word in WORDS if word.partition("=")[0] not in keys]
    started = time.perf_counter()
    assert main([*given, *plain, *folder, *(["--dry-run"] if dry else [])]) == 2
    assert time.perf_counter() - started < 10
    error = capsys.readouterr().err
    assert told in error
    assert error.startswith("error: ")
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_without_torch() -> None:
    """All that before torch is imported, also for a card that is not there."""
    if fits.may_have_card():
        pytest.skip("this machine may have a card")
    lines = [
        ["method.targets=[foo]"], ["model.device=cuda"], ["model.device=mps"],
        ["method=textual_inversion", "method.initialiser=woman man"], ["method.rank=4000"], [],
    ]  # fmt: skip
    code = (
        "import sys\nfrom diffusion_lab.__main__ import main\n"
        f"codes = [main([*line, '--dry-run']) for line in {lines!r}]\n"
        "assert codes == [2, 2, 2, 2, 2, 0], codes\n"
        "slow = {'torch', 'diffusers', 'transformers', 'peft'} & set(sys.modules)\nassert not slow, slow\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("platform", "machine", "device", "told"),
    [
        ("linux", "x86_64", "mps", "is for Macs"),
        ("darwin", "x86_64", "mps", "is for Macs"),
        ("win32", "AMD64", "mps", "is for Macs"),
        ("darwin", "arm64", "cuda", "no GPU is visible"),
        ("linux", "x86_64", "cuda", "no GPU is visible"),
    ],
)
def test_devices_that_are_not_there(
    platform: str, machine: str, device: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fits.sys, "platform", platform)
    monkeypatch.setattr(fits.platform, "machine", lambda: machine)
    monkeypatch.setattr(fits, "CARD_SIGNS", ())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    with pytest.raises(UserError, match=told):
        fits.check_device(compose([f"model.device={device}"]).model)
    fits.check_device(compose(["model.device=cpu"]).model)
    fits.check_device(compose([]).model)


def test_a_sign_of_a_card_leaves_the_answer_to_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch says so where a driver is there and no card, or not so many."""
    import torch

    monkeypatch.setattr(fits, "CARD_SIGNS", (str(tmp_path),))
    assert fits.may_have_card()
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match=r"model.device=cuda:3 is not on this machine"):
            fits.check_device(compose(["model.device=cuda:3"]).model)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files and folders that are something else than weights of an encoder."""
    root = tmp_path_factory.mktemp("weights")
    for name in ("garbage.safetensors", "garbage.pt"):
        (root / name).write_bytes(b"x" * 100)
    (root / "empty.pt").write_bytes(b"")
    save_file({"other.weight": np.zeros((3, 4), np.float32)}, root / "other.safetensors")
    save_file({"layers.0.weight": np.zeros((1, 7), np.float32)}, root / "narrow.safetensors")
    (root / "folder").mkdir()
    (root / "bert").mkdir()
    (root / "bert" / "config.json").write_text('{"model_type": "bert"}')
    save_file({"w": np.zeros(2, np.float32)}, root / "bert" / "model.safetensors")
    return {path.name.replace(".", "_"): str(path) for path in root.iterdir()}


# "metrics=full" alone speaks of files that are to be fetched, which the plan lists.
FILES = [
    ("metrics=full metrics.face_weights={garbage_pt}", "metrics.face_weights"),
    ("metrics=full metrics.face_weights={empty_pt}", "metrics.face_weights"),
    ("metrics=full metrics.face_weights={garbage_safetensors}", "metrics.face_weights"),
    ("metrics=full metrics.face_weights={other_safetensors}", "does not contain InceptionResnetV1"),
    ("metrics.aesthetics_weights={garbage_safetensors}", "metrics.aesthetics_weights"),
    ("metrics.aesthetics_weights={garbage_pt}", "metrics.aesthetics_weights"),
    ("metrics.aesthetics_weights={other_safetensors}", "is not a chain of linear layers"),
    ("metrics.aesthetics_weights={narrow_safetensors}", "expects embeddings of width 7"),
    ("metrics=full metrics.clip_model={folder}", "metrics.clip_model"),
    ("metrics=full metrics.clip_model={bert}", "preprocessor_config.json"),
    ("metrics=full metrics.clip_weights={garbage_pt}", "metrics.clip_weights"),
    ("metrics.names=[dino] metrics.dino_model={folder}", "metrics.dino_model"),
    ("metrics.names=[dino] metrics.dino_model={bert}", "is a model of type bert"),
    ("metrics.names=[fid] metrics.inception_weights={garbage_pt}", "metrics.inception_weights"),
    ("metrics.names=[fid] metrics.inception_weights={other_safetensors}", "does not contain Inception v3"),
]


@pytest.mark.parametrize(("words", "told"), FILES, ids=[words for words, _ in FILES])
@pytest.mark.parametrize("job", ["finetune", "score"])
def test_files_of_the_encoders(
    words: str,
    told: str,
    job: str,
    weights: dict[str, str],
    places: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    given = words.format(**weights).split()
    images = [f"job.images={places['pictures']}"] if job == "score" else []
    assert main([f"job={job}", *images, *given, *WORDS, "hydra.run.dir=run"]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.startswith("error: metrics.")
    assert list(tmp_path.iterdir()) == []


# --- other models than the shipped one ------------------------------------------------------------------


def words_of(folder: Path, *words: str) -> list[str]:
    return ["model=folder", f"model.path={folder}", "model.device=cpu", "tracker.wandb=disabled", *words]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["method.targets=[to_q,foo]"], "no linear or convolution layer named 'foo'"),
        (["method.targets=[to_q]", "method.rank=65"], "no layer among method.targets is wider than 64"),
        (["method.targets=[down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q]", "method.rank=33"], "wider than 32"),
        (["method=textual_inversion", "method.initialiser=photo dog"], "is 2 tokens (photo + dog)"),
        (["method=textual_inversion", "data.class_noun=zebra"], "(from data.class_noun): is 5 tokens"),
    ],
)  # fmt: skip
def test_a_folders_own_layers_and_words(
    tiny_sd_folder: Path, tmp_path: Path, words: list[str], told: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_sd_folder, folder)
    with pytest.raises(UserError) as caught:
        check(fill_defaults(compose(words_of(folder, *words))), tmp_path / "run")
    assert told in str(caught.value)


def test_narrow_layers_are_named(tiny_sd_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a photo of {subject}\n")  # the tiny tokenizer spells most words
    short = ["prompts=file", f"prompts.path={tmp_path / 'prompts.txt'}"]
    words = words_of(tiny_sd_folder, "method.targets=[to_q,conv1]", "method.rank=40", *short)
    plan = check(fill_defaults(compose(words)), tmp_path / "run")
    (line,) = [line for line in plan.warnings if "method.rank" in line]
    assert "layers are narrower" in line
    assert "(32)" in line
    fine = check(fill_defaults(compose(words_of(tiny_sd_folder, "method.rank=8", *short))), tmp_path / "run")
    assert not any("method.rank" in line for line in fine.warnings)


def test_the_early_answer_is_the_late_one(
    tiny_sd_folder: Path, load_plain_pipe: Callable[[Path], Any]
) -> None:
    """Header and network tell the same layers."""
    from torch import nn

    unet = load_plain_pipe(tiny_sd_folder).unet
    named = {
        name: tuple(x.weight.shape)
        for name, x in unet.named_modules()
        if isinstance(x, nn.Linear | nn.Conv2d)
    }
    assert dict(fits.layers_of(tiny_sd_folder / "unet")) == named


def test_shards_tell_their_layers_together(tiny_sd_folder: Path, tmp_path: Path) -> None:
    whole = load_file(tiny_sd_folder / "unet" / "diffusion_pytorch_model.safetensors")
    names = sorted(whole)
    for number, part in enumerate((names[::2], names[1::2])):
        save_file({name: whole[name] for name in part}, tmp_path / f"m-0000{number + 1}-of-00002.safetensors")
    assert fits.layers_of(tmp_path) == fits.layers_of(tiny_sd_folder / "unet")
    (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 30)
    assert fits.layers_of(tmp_path) == fits.layers_of(tiny_sd_folder / "unet")


@pytest.mark.parametrize(
    ("target", "found"),
    [("to_q", True), ("conv1", True), ("time_emb_proj", True), ("conv_shortcut", True), ("ff.net.2", True), ("foo", False)],
)  # fmt: skip
def test_hubs_and_single_files(target: str, found: bool, tmp_path: Path) -> None:
    """Names are the same in every Stable Diffusion; a file of its own naming is read by their ends."""
    (tmp_path / "run").mkdir()
    file = tmp_path / "model.safetensors"
    block = f"{fits.LDM_UNET}input_blocks.1"
    tensors = {
        f"{block}.0.in_layers.2.weight": (64, 64, 3, 3), f"{block}.0.emb_layers.1.weight": (64, 256),
        f"{block}.0.skip_connection.weight": (64, 32, 1, 1), f"{block}.1.transformer_blocks.0.attn1.to_q.weight": (64, 64),
        f"{block}.1.transformer_blocks.0.ff.net.2.weight": (64, 256), "first_stage_model.x.weight": (2, 2),
        "cond_stage_model.x.weight": (2, 2),
    }  # fmt: skip
    save_file({name: np.zeros(shape, np.float32) for name, shape in tensors.items()}, file)
    for words in (["model=sd15"], ["model=single_file", f"model.path={file}"]):
        config = fill_defaults(compose([*words, f"method.targets=[{target}]", "method.rank=16"]))
        if found:
            assert fits.check_targets(config, FAMILIES["sd"]) == []
        else:
            with pytest.raises(UserError, match=r"method\.targets=\[foo\]"):
                fits.check_targets(config, FAMILIES["sd"])


def edited(part: str, **values: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        file = folder / part
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))

    return edit


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (edited("unet/config.json", in_channels=9), "9 input channels for 4 latent ones"),
        (edited("unet/config.json", addition_embed_type="text_time"), "additional embeddings"),
        (edited("scheduler/scheduler_config.json", prediction_type="sample"), "prediction_type sample"),
    ],
)
def test_other_kinds_of_models(
    tiny_sd_folder: Path, tmp_path: Path, edit: Callable[[Path], None], told: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_sd_folder, folder)
    edit(folder)
    with pytest.raises(UserError, match=r"^model\.path=") as caught:
        check(fill_defaults(compose(words_of(folder))), tmp_path / "run")
    assert told in str(caught.value)


# --- allowed, and rarely meant --------------------------------------------------------------------------

UNLIKELY: list[tuple[list[str], str]] = [
    (
        ["steps.lr_scheduler=constant_with_warmup", "steps.lr_warmup=300"],
        "steps.lr_warmup=300: the run ends after 300",
    ),
    (["steps.lr_scheduler=cosine", "steps.lr_warmup=5000"], "set steps.lr_warmup=30"),
    (["steps.lr_scheduler=cosine", "steps.lr_warmup=200"], "steps.lr_warmup=200: more than half"),
    (["steps.every=301"], "steps.every=301: the run has 300 steps"),
    (["steps.every=1"], "steps.every=1: 301 evaluations"),
    (["steps.checkpoint_every=1000"], "steps.checkpoint_every=1000"),
    (["steps.log_every=1000"], "steps.log_every=1000"),
    (["data.n_images=1"], "data.n_images=1: one picture"),
    (["steps.batch_size=20"], "steps.batch_size=20: larger than the 14 training pictures"),
    (["steps.total=2", "steps.every=1"], "steps.total=2: not every one of the 14"),
    (["method.learning_rate=5"], "method.learning_rate=5: 3333 times the usual 0.0015"),
    (["method.learning_rate=1e-9"], "method.learning_rate=1e-09: 1,500,000 times below"),
    (["method=pivotal", "method.token_learning_rate=9"], "method.token_learning_rate=9"),
    (["steps.optimizer=prodigy", "method.learning_rate=1e-4"], "method.learning_rate=0.0001"),
    (["method.weight_decay=10"], "method.weight_decay=10"),
    (["prompts.guidance_scale=0"], "prompts.guidance_scale=0"),
    (["prompts.guidance_scale=50"], "prompts.guidance_scale=50"),
    (["steps.noise_offset=0.9"], "steps.noise_offset=0.9"),
    (["steps.max_grad_norm=1e-6"], "steps.max_grad_norm=1e-06"),
    (["method.dropout=0.99"], "method.dropout=0.99"),
    (["method=dreambooth", "method.ema=true", "method.ema_decay=0.9999"], "method.ema_decay=0.9999"),
    (["method.alpha=1000"], "method.alpha=1000"),
    (["method=pivotal", "method.switch=0.001"], "method.switch=0.001"),
]


@pytest.mark.parametrize(("words", "told"), UNLIKELY, ids=[words[-1] for words, _ in UNLIKELY])
def test_what_is_rarely_meant_is_said(words: list[str], told: str) -> None:
    found = unlikely(fill_defaults(compose(words)))
    (line,) = [line for line in found if told in line]
    assert "\n" not in line
    assert len(line) < 260


@pytest.mark.parametrize(
    "words",
    [
        [], ["experiment=debug"], ["method=dreambooth"], ["method=textual_inversion"], ["method=pivotal"],
        ["method=hypernetwork"], ["method=dreambooth", "method.ema=true"], ["steps.optimizer=prodigy"],
        ["method.variant=loha"], ["method.variant=oft"], ["data.n_images=4"], ["data.n_images=2"],
        ["experiment=full", "data.subject=ben"], ["experiment=small_card", "data.subject=ben"],
        ["method.rank_stabilised=true", "method.rank=64"],
        ["steps.lr_scheduler=cosine", "steps.lr_warmup=30"],
    ],
    ids=lambda words: " ".join(words) or "defaults",
)  # fmt: skip
def test_ordinary_settings_are_not_named(words: list[str]) -> None:
    assert unlikely(fill_defaults(compose(words))) == []


def test_the_plan_shows_them(
    places: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(places["pictures"], tmp_path / "dog")
    shutil.copy(tmp_path / "dog" / "0.png", tmp_path / "dog" / "again.png")
    words = [
        "--dry-run", "data=folder", f"data.folder={tmp_path / 'dog'}", "data.class_noun=dog", "data.n_images=5",
        "data.n_heldout=0", "steps.every=999", *WORDS,
    ]  # fmt: skip
    assert main(words) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "warning: steps.every=999" in shown
    assert "0.png and again.png: the same picture" in shown
