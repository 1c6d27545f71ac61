"""A message that gives advice must give advice that works.

Every case provokes a message by `--dry-run`, applies what the message says, word by word, and repeats until the plan is
shown: within a few corrections, and never with the same message twice. Advice that no setting carries out ("save it as
UTF-8 text") is followed by hand. The last test finds every message in the
sources that advises a `key=value` and demands a case for it.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import struct
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_lab.__main__ import main
from diffusion_lab.cli.compose import compose
from diffusion_lab.data.subjects import load_subject
from diffusion_lab.plan.defaults import fill_defaults
from diffusion_lab.records import UserError

ROOT = Path(__file__).resolve().parents[1]
# A key with a value that can be typed as it is, but for FOLDER and the like, which stand for what the user knows.
ADVICE = re.compile(
    r"\b(?:set|use|take|add|choose|or|and|as in|such as|needs|with|is for) "
    r"((?:[a-z_0-9]+\.)+[a-z_0-9]+|model|data|method|prompts|metrics|experiment|memory|resume)"
    r"=(\[[^\]]*\]|[^\s,;)'\[][^\s,;)']*)"
)
KNOWN = {"FOLDER": "elsewhere", "PICTURES": "photos"}
PROVOKED: set[tuple[str, int]] = set()  # file and line of every UserError that a case has raised


@dataclass(frozen=True)
class Case:
    """`files` makes what the words speak of; `by_hand` is what a person does where a setting alone does not help."""

    name: str
    words: str
    expected: str  # in the message
    files: Callable[[Path], None] = lambda folder: None
    by_hand: Callable[[Path], None] | None = None  # applied once, before any setting that is advised
    values: dict[str, str] = field(default_factory=dict)  # what the user knows: "FOLDER" -> "photos"
    reading: bool = False  # the message comes when the pictures are read, not with the plan
    advice: str | None = None  # which advice to take where several are given


def _photos(folder: Path, n: int = 6, name: str = "photos") -> None:
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        pixels = np.random.default_rng(i).integers(0, 255, (96, 96, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(place / f"{i}.png")


def _broken(folder: Path) -> None:
    _photos(folder)
    (folder / "photos" / "9.png").write_bytes(b"no picture")


def _rated(folder: Path) -> None:
    _photos(folder)
    (folder / "AVA.txt").write_text("")


def _empty_caption(folder: Path) -> None:
    _photos(folder)
    for i in range(6):
        (folder / "photos" / f"{i}.txt").write_text("")


def _latin1_caption(folder: Path) -> None:
    _photos(folder)
    for i in range(6):
        (folder / "photos" / f"{i}.txt").write_bytes("caf\xe9".encode("latin-1"))


def _cut_table(folder: Path) -> None:
    _photos(folder)
    (folder / "photos" / "metadata.jsonl").write_text('{"file_name": "0.p')


def _shared_caption(folder: Path) -> None:
    _photos(folder)
    for i in range(6):
        Image.open(folder / "photos" / f"{i}.png").rotate(90).convert("RGB").save(
            folder / "photos" / f"{i}.jpg"
        )
        (folder / "photos" / f"{i}.txt").write_text("a customcls dog")


def _named_after_the_file(folder: Path) -> None:
    for i in range(6):
        (folder / "photos" / f"{i}.txt").rename(folder / "photos" / f"{i}.jpg.txt")


def _noun_as_latin1(folder: Path) -> None:
    _photos(folder)
    (folder / "photos" / "class_noun.txt").write_bytes("caf\xe9".encode("latin-1"))


def _dead_link(folder: Path) -> None:
    (folder / "photos").mkdir()
    (folder / "photos" / "0.png").symlink_to(folder / "gone.png")


def _copied(folder: Path) -> None:
    (folder / "photos" / "0.png").unlink()
    _photos(folder)


def _model(folder: Path, variant: str = "", parts: tuple[str, ...] = ()) -> None:
    """The miniature as a folder of one's own; `parts` have their weights under the variant's name only."""
    from diffusion_lab.miniature.shipped import shipped_folder
    from diffusion_lab.models.parts import stem

    shutil.copytree(shipped_folder("miniature"), folder / "model", copy_function=os.link)
    for part in parts:
        file = folder / "model" / part / f"{stem(part)}.safetensors"
        file.rename(file.with_name(f"{stem(part)}.{variant}.safetensors"))


def _one_fp16(folder: Path) -> None:
    _model(folder, "fp16", ("unet",))


def _all_fp16(folder: Path) -> None:
    _model(folder, "fp16", ("unet", "vae", "text_encoder"))


def _pickled(folder: Path) -> None:
    _model(folder)
    file = folder / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_suffix(".bin"))


def _copies(folder: Path) -> None:
    _photos(folder, 1)
    for i in range(1, 6):
        shutil.copy(folder / "photos" / "0.png", folder / "photos" / f"{i}.png")


def _enormous(folder: Path) -> None:
    """A PNG whose header promises 60000 x 60000 pixels."""
    _photos(folder)
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b""))
    )
    (folder / "photos" / "9.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


def _file_in_place(folder: Path) -> None:
    (folder / "taken").write_text("")


def _someone_elses_run(folder: Path) -> None:
    (folder / "taken").mkdir()
    (folder / "taken" / "result.json").write_text(json.dumps({"status": "completed", "config": {"seed": 1}}))


def _shorter_run(words: str, **more: object) -> Callable[[Path], None]:
    """A record in shorter/ as a finished run of 4 steps leaves it, without the files."""
    from diffusion_lab.config.schema import as_plain_dict
    from diffusion_lab.values.jsonable import plain

    def write(folder: Path) -> None:
        config = plain(
            as_plain_dict(fill_defaults(compose([*words.split(), "steps.total=4", "prompts.n=4"])))
        )
        (folder / "shorter").mkdir()
        record = {"schema": 1, "status": "completed", "config": config, **more}
        (folder / "shorter" / "result.json").write_text(json.dumps(record))
        if "checkpoints" not in more:
            (folder / "shorter" / "checkpoints" / "step-000004").mkdir(parents=True)

    return write


FOLDER = "data=folder data.folder=photos data.n_images=2 data.n_heldout=1 metrics.names=[clip_image]"
DOG = f"{FOLDER} data.class_noun=dog"
CASES = [
    Case("broken picture", DOG, "9.png", _broken, reading=True),
    Case("empty caption", f"{DOG} data.captions=auto", ".txt: is empty", _empty_caption),
    Case("unreadable caption", DOG, ".txt", _latin1_caption),
    Case("no captions", f"{DOG} data.captions=always", "data.captions=always", _photos),
    Case("no class noun", FOLDER, "data.class_noun", _photos),
    Case("unreadable class noun", FOLDER, "class_noun.txt", _noun_as_latin1,
         values={"data.class_noun": "data.class_noun=dog"}),
    Case("too many pictures", f"{DOG} data.n_images=9 data.n_heldout=null", "data.n_images=9", _photos,
         advice="data.n_images"),
    Case("too many references", f"{DOG} data.n_images=2 data.n_heldout=9", "data.n_heldout", _photos),
    Case("pictures without a source", "data.folder=photos data.class_noun=dog metrics.names=[clip_image] data.n_images=2",
         "data.folder=photos", _photos),
    Case("captions of drawn people", "data.captions=always", "data.captions=always",
         _photos, values={"data.folder is missing": "data.folder=photos data.class_noun=dog metrics.names=[clip_image] data.n_images=2",
                          "data.captions=always:": "data.captions=auto"}),
    Case("the U-Net alone in fp16", "model=folder model.path=model model.precision=fp32", "model.variant", _one_fp16),
    Case("everything in fp16", "model=folder model.path=model model.precision=fp32", "model.variant", _all_fp16),
    Case("misspelt variant", "model=folder model.path=model model.precision=fp32 model.variant=fp61", "model.variant=fp61",
         _one_fp16),
    Case("pickled weights", "model=folder model.path=model model.precision=fp32", "allow_pickle", _pickled),
    Case("warm-up of a constant rate", "steps.lr_warmup=5", "steps.lr_warmup"),
    Case("prodigy and pivotal", "method=pivotal steps.optimizer=prodigy", "steps.optimizer=prodigy"),
    Case("offload without a cache", "memory.offload=true memory.cache=off", "memory.offload"),
    Case("no pairs of prompts", "metrics.names=[prompt_similarity]", "metrics.names"),
    Case("odd layers", "method=hypernetwork method.layers=[2,1]", "method.layers"),
    Case("no targets", "method=lora method.targets=[]", "method.targets"),
    Case("a misspelt option of a list", "job=train_aesthetics job.images=photos job.ratings=AVA.txt job.balance=bin",
         "job.balance", _rated),
    Case("misspelt metric", "metrics.names=[similarty]", "metrics.names"),
    Case("no metric", "metrics.names=[]", "metrics.names=[]", values={"metrics.names=[]": "metrics.names=[similarity]"}),
    Case("too many pixels", DOG, "9.png", _enormous, reading=True),
    Case("references that are copies", f"{DOG} data.n_images=1 data.n_heldout=2", "data.n_heldout", _copies, reading=True),
    Case("unknown person", "data.subject=zzz", "data.subject=zzz",
         _photos, values={"data.subject=zzz": "data=folder data.folder=photos data.class_noun=dog metrics.names=[clip_image] data.n_images=2"}),
    Case("DoRA of another variant", "method=lora method.variant=loha method.dora=true", "method.dora=true",
         values={"method.dora=true:": "method.dora=false"}),
    Case("a file where the run goes", "hydra.run.dir=taken", "taken", _file_in_place,
         values={"choose another folder": "hydra.run.dir=elsewhere"}),
    Case("another run in the folder", "hydra.run.dir=taken", "taken", _someone_elses_run),
    Case("a run that must not be there", "hydra.run.dir=taken resume=never", "taken", _someone_elses_run),
    Case("longer, evaluated at other steps", "steps.total=8 steps.every=1 hydra.run.dir=shorter", "with evaluations every 1",
         _shorter_run("steps.every=2")),
    Case("longer, with decaying rates", "steps.total=8 steps.every=2 steps.lr_scheduler=cosine hydra.run.dir=shorter",
         "depend on the number of steps", _shorter_run("steps.every=2 steps.lr_scheduler=cosine")),
    Case("longer, in two phases", "method=pivotal steps.total=8 steps.every=2 hydra.run.dir=shorter", "is a fraction of",
         _shorter_run("method=pivotal steps.every=2")),
    Case("longer, after an extra evaluation", "method=dreambooth steps.total=8 steps.every=3 hydra.run.dir=shorter",
         "may have been removed", _shorter_run("method=dreambooth steps.every=3", evaluations=[{"step": 4, "metrics": {}}])),
    Case("longer, without a checkpoint", "steps.total=8 steps.every=2 hydra.run.dir=shorter", "it has no checkpoint",
         _shorter_run("steps.every=2", checkpoints=None)),
    Case("longer, though it was settled", "steps.stop=auto steps.total=8 steps.every=2 hydra.run.dir=shorter",
         "would end there again",
         _shorter_run("steps.stop=auto steps.every=2", ended={"step": 2, "kind": "settled", "reason": "It is."})),
    Case("links to nothing", DOG, "0.png", _dead_link, by_hand=_copied),
    Case("a known word to learn", "method=textual_inversion data.identifier=dog", "word of the model's vocabulary"),
    Case("a cut table of captions", DOG, "metadata.jsonl cannot be used", _cut_table),
    Case("a caption of two pictures", DOG, "could be the text of", _shared_caption, by_hand=_named_after_the_file),
    Case("too many evaluations", "steps.total=1000000 steps.every=1", "steps.every=1:"),
    Case("blocks of one", "method.variant=oft method.rank=1", "method.rank=1"),
    Case("a start of several tokens", "method=textual_inversion method.initialiser=qzxv", "method.initialiser='qzxv'"),
    Case("a rank above every layer", "method.rank=4000", "method.rank=4000"),
    Case("half precision on a CPU", "model.device=cpu model.precision=fp16", "model.precision=fp16"),
    Case("a resolution between", "model.resolution=72", "model.resolution=72"),
    Case("a project with a colon", "tracker.project=a:b", "tracker.project=a:b"),
    Case("a model that is not here", "model=sd15 model.local_files_only=true", "local_files_only"),
    Case("odd resolution", "model.resolution=33", "model.resolution", values={"model.resolution=33": "model.resolution=32"}),
]  # fmt: skip


@pytest.fixture
def sites(monkeypatch: pytest.MonkeyPatch) -> None:
    """Notes where every UserError is made."""

    def noted(self: UserError, *arguments: object) -> None:
        frame = sys._getframe(1)
        PROVOKED.add((frame.f_code.co_filename, frame.f_lineno))
        Exception.__init__(self, *arguments)

    monkeypatch.setattr(UserError, "__init__", noted, raising=False)


def outcome(words: list[str], capsys: pytest.CaptureFixture[str], reading: bool) -> str:
    """The message of a command, or "" where its plan is shown (`reading`: and the pictures can be read)."""
    if reading:
        try:
            load_subject(fill_defaults(compose(words)).data)
        except UserError as error:
            return str(error)
    status = main([*words, "--dry-run"])
    told = capsys.readouterr()
    assert status in (0, 2), told.err
    assert "Traceback" not in told.err
    return told.err.strip() if status == 2 else ""


def corrected(words: list[str], message: str, case: Case) -> list[str]:
    """The words after the message's advice was followed: what the user alone knows first, else the first setting."""
    for found, known in case.values.items():
        if found in message:
            return put(words, known)
    if meant := re.search(r"did you mean '([^']+)'", message):
        key, wrong = re.match(r"(?:error: )?([\w.]+)(?:=| |:).*?", message)[1], words
        return [f"{key}={meant[1]}" if word.startswith(f"{key}=") and "[" not in word
                else f"{key}=[{meant[1]}]" if word.startswith(f"{key}=") else word for word in wrong]  # fmt: skip
    given = set(words)
    for advice in ADVICE.finditer(message):
        value = advice[2].rstrip(".:")
        setting = f"{advice[1]}={KNOWN[value] if value.isupper() else value}"
        if setting not in given and (case.advice is None or advice[1] == case.advice):
            return put(words, setting)
    raise AssertionError(f"no advice that could be followed in: {message}")


def put(words: list[str], settings: str) -> list[str]:
    """The words with the settings in place of those of the same keys."""
    for setting in settings.split():
        key = setting.partition("=")[0]
        words = [*(word for word in words if word.partition("=")[0] != key), setting]
    return words


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_advice_helps(
    case: Case,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    sites: None,
) -> None:
    monkeypatch.chdir(tmp_path)
    case.files(tmp_path)
    words = [*case.words.split(), "prompts.n=4"]
    message = outcome(words, capsys, case.reading)
    assert case.expected in message, f"the case does not provoke its message: {message!r}"
    before = []
    while message:
        assert message not in before, f"the advice leads in a circle: {before}"
        assert len(before) < 4, before
        before.append(message)
        if case.by_hand is not None and len(before) == 1:
            case.by_hand(tmp_path)
        else:
            words = corrected(words, message, case)
        message = outcome(words, capsys, case.reading)
    assert not list(tmp_path.glob("outputs")), "a dry run leaves nothing behind"


# --- advice that no setting carries out ---------------------------------------------------------------------


def _lora(path: Path, **header: str) -> None:
    from safetensors.numpy import save_file

    layer = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    shapes = {"lora_down.weight": (2, 256), "lora_up.weight": (256, 2)}  # as wide as the miniature's
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({f"{layer}.{end}": np.zeros(shape, np.float32) for end, shape in shapes.items()}, path, header)


def _texts(name: str, content: str | bytes, n: int = 1) -> Callable[[Path], None]:
    """The same text beside the first `n` photos, or under a name of its own."""

    def write(folder: Path) -> None:
        if not (folder / "photos").is_dir():
            _photos(folder)
        for i in range(n):
            path = folder / "photos" / name.format(i)
            path.write_bytes(content.encode() if isinstance(content, str) else content)

    return write


def _embedding(folder: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"wixu": np.zeros((2, 192), np.float32)}, folder / "wixu.safetensors")


def _moved_model(folder: Path) -> None:
    _model(folder)
    _lora(folder / "a.safetensors", base_model=str(folder / "elsewhere"))


def _pefts(folder: Path, with_config: bool) -> None:
    from safetensors.numpy import save_file

    key = "base_model.model.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_{}.weight"
    (folder / "unet").mkdir(exist_ok=True)
    tensors = {
        key.format("A"): np.zeros((2, 192), np.float32),
        key.format("B"): np.zeros((192, 2), np.float32),
    }
    save_file(tensors, folder / "unet" / "adapter_model.safetensors")
    if with_config:
        (folder / "unet" / "adapter_config.json").write_text('{"peft_type": "LORA"}')


def _gone_prompts(folder: Path) -> None:
    told = {
        "device": "cpu",
        "model": {},
        "prompts": {"name": "file", "path": str(folder / "gone.txt"), "n": 2},
    }
    _lora(folder / "a.safetensors", sampling=json.dumps(told))


def _someone_elses_run_to_resume(folder: Path) -> None:
    _someone_elses_run(folder)
    (folder / "taken").rename(folder / "run")
    (folder / "run" / ".hydra").mkdir()
    (folder / "run" / ".hydra" / "overrides.yaml").write_text("[seed=1]\n")
    (folder / "run" / ".hydra" / "hydra.yaml").write_text("hydra: {overrides: {hydra: []}}\n")


def _named(words: list[str], message: str) -> list[str]:
    """The path that the message names."""
    return put(words, re.search(r"job\.artefact=\S+$", message)[0])


def _same(words: list[str], message: str) -> list[str]:
    return words


@dataclass(frozen=True)
class ByHand:
    name: str
    words: list[str]
    advice: str  # in the message, word by word
    files: Callable[[Path], None]
    follow: Callable[[Path], None] = lambda folder: None  # what a person does with files
    reword: Callable[[list[str], str], list[str]] = _same  # or with the command, by the message


TEXTS = DOG.split()
DRAW = ["job=generate", "job.text=a dog"]
MODEL = ["model=folder", "model.path=model", "model.precision=fp32"]
BY_HAND = [
    ByHand("Latin 1", TEXTS, "save it as UTF-8 text", _texts("{}.txt", b"caf\xe9", 6), _texts("{}.txt", "customcls caf\xe9", 6)),
    ByHand("an empty caption", TEXTS, "write a caption", _texts("{}.txt", "", 6), _texts("{}.txt", "customcls dog", 6)),
    ByHand("an empty caption, removed", TEXTS, "remove the file", _texts("{}.txt", "", 6),
           lambda f: [path.unlink() for path in (f / "photos").glob("*.txt")]),
    ByHand("a caption too large", TEXTS, "shorten it", _texts("{}.txt", "a" * 70_000, 6), _texts("{}.txt", "a customcls dog", 6)),
    ByHand("too many tokens", TEXTS, "shorten it", _texts("{}.txt", "dog " * 90, 6), _texts("{}.txt", "a customcls dog", 6)),
    ByHand("two texts of a picture", TEXTS, "remove one of them",
           lambda f: (_texts("{}.txt", "x", 6)(f), _texts("{}.TXT", "y", 6)(f)),
           lambda f: [path.unlink() for path in (f / "photos").glob("*.TXT")]),
    ByHand("a comma in a table", TEXTS, "needs quotes around it", _texts("metadata.csv", "file_name,text\n0.png,a dog, running\n"),
           _texts("metadata.csv", 'file_name,text\n0.png,"a dog, running"\n')),
    ByHand("a damaged table", TEXTS, "correct or remove it", _texts("metadata.csv", 'file_name,text\n0.png,"a'),
           lambda f: (f / "photos" / "metadata.csv").unlink()),
    ByHand("a shared text, a picture renamed", TEXTS, "or rename a picture", _shared_caption,
           lambda f: [path.rename(path.with_stem(f"{path.stem}b")) for path in sorted((f / "photos").glob("*.jpg"))]),
    ByHand("a word of two", ["method=textual_inversion", "data.identifier=my dog"], "set data.identifier=my-dog", lambda f: None,
           reword=lambda words, message: put(words, re.search(r"data\.identifier=my-\S+", message)[0])),
    ByHand("a control token", ["data.identifier=<|endoftext|>"], "give a word", lambda f: None,
           reword=lambda words, message: put(words, "data.identifier=wixu")),
    ByHand("a part of the model is missing", [*MODEL], "copy or download the folder again",
           lambda f: (_model(f), shutil.rmtree(f / "model" / "vae")), lambda f: (shutil.rmtree(f / "model"), _model(f))),
    ByHand("two adapters", [*DRAW, "job.artefact=loras"], "name one: job.artefact=",
           lambda f: (_lora(f / "loras" / "a.safetensors"), _lora(f / "loras" / "b.safetensors")), reword=_named),
    ByHand("a folder of folders", [*DRAW, "job.artefact=run/adapters"], "name what is in it: job.artefact=",
           lambda f: [_lora(f / "run" / "adapters" / f"step-{n:06}" / "pytorch_lora_weights.safetensors") for n in (0, 9, 10)],
           reword=_named),
    ByHand("a run without an artefact", [*DRAW, "job.artefact=run"], "step-000010",
           lambda f: [_lora(f / "run" / "adapters" / f"step-{n:06}" / "pytorch_lora_weights.safetensors") for n in (0, 9, 10)],
           reword=_named),
    ByHand("an empty adapter", [*DRAW, "job.artefact=a.safetensors"], "is empty; copy it again",
           lambda f: (f / "a.safetensors").write_bytes(b""), lambda f: _lora(f / "a.safetensors")),
    ByHand("peft's settings are missing", [*DRAW, "job.artefact=unet/adapter_model.safetensors"], "copy that too",
           lambda f: _pefts(f, False), lambda f: _pefts(f, True)),
    ByHand("the model has been moved", [*DRAW, "job.artefact=a.safetensors"], "set model.path to where that model is now",
           _moved_model, reword=lambda words, message: put(words, "model.path=model")),
    ByHand("the prompts are gone", ["job=generate", "job.artefact=a.safetensors"], "another set, such as prompts=portrait",
           _gone_prompts, reword=lambda words, message: put(words, "prompts=portrait")),
    ByHand("one run and a sweep", ["-m", "seed=1,2", "resume=run"], "by its own command with hydra.sweep.dir=FOLDER",
           _someone_elses_run_to_resume, reword=lambda words, message: [*(w for w in words if w != "resume=run"), "hydra.sweep.dir=s"]),
    ByHand("a weight of a word", ["job=generate", "job.text=a wixu", "job.artefact=wixu.safetensors", "job.weight=0.5"],
           "leave job.weight at 1", _embedding, reword=lambda words, message: put(words, "job.weight=1")),
]  # fmt: skip


@pytest.mark.parametrize("case", BY_HAND, ids=lambda case: case.name)
def test_advice_that_is_followed_by_hand(
    case: ByHand,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    sites: None,
) -> None:
    """Once: then the plan is shown."""
    monkeypatch.chdir(tmp_path)
    case.files(tmp_path)
    words = [*case.words, "prompts.n=4"]
    message = outcome(words, capsys, reading=False)
    assert case.advice in " ".join(message.split()), f"the case does not provoke its advice: {message!r}"
    case.follow(tmp_path)
    assert outcome(case.reword(words, message), capsys, reading=False) == ""


# Messages with advice that no case above provokes, by how they begin, each with the reason.
EXCUSED = {
    "diffusion_lab/artefacts/attach.py: 0: changes the weights": "takes a denoiser in 4 bits, which takes a CUDA card",
    "diffusion_lab/families/flow.py: steps.snr_gamma": "takes a flow model; tests/families/test_flow.py",
    "diffusion_lab/models/single_file.py: model.config=0: 0 holds no": "takes a large model in one file; "
    "tests/models/test_single_file.py",
    "diffusion_lab/plan/fits.py: model.quantise=": "depends on the machine; tests/test_refusals.py",
    "diffusion_lab/data/subjects.py: data.folder is not set": "config.py asks first; for callers from Python",
    "diffusion_lab/jobs/conclude.py": "takes a damaged run; tests/test_conclusion.py",
    "diffusion_lab/jobs/repair.py": "takes a damaged run; tests/test_record.py",
    "diffusion_lab/jobs/resumption.py": "takes a damaged run; tests/test_extension.py",
    "diffusion_lab/methods/hypernetwork.py: 0: saved with": "states what was saved, and advises nothing",
    "diffusion_lab/plan/fits.py: model.device=": "depends on the machine; tests/test_refusals.py",
    "diffusion_lab/models/load.py: model.device=": "depends on the machine; tests/models/test_load.py",
    "diffusion_lab/models/hub.py": "takes a hub; tests/models/test_downloads.py",
    "diffusion_lab/plan/inputs.py: steps.optimizer=": "the package is installed where tests run",
    "diffusion_lab/sampling/sample.py: model.precision": "takes a VAE that overflows; tests/sampling/test_sample.py",
    "diffusion_lab/system/disk_errors.py": "takes a full disk; tests/tracking/test_atomic.py",
    "diffusion_lab/system/folders.py": "takes a full disk; tests/tracking/test_atomic.py",
    "diffusion_lab/runs/files.py": "the plan asks first; for callers from Python",
    "diffusion_lab/runs/folder_record.py": "takes a damaged run; tests/test_record.py",
    "diffusion_lab/runs/resumed_record.py": "takes a damaged run; tests/test_record.py",
    "diffusion_lab/trackers/wandb_mode.py": "takes a machine without credentials; tests/tracking/test_wandb.py",
    "diffusion_lab/training/checkpoint.py": "takes a run that was begun; tests/training/test_checkpoint.py",
    "diffusion_lab/training/optimizers.py": "takes a package that cannot be loaded; tests/training/test_optimizers.py",
}


def advising() -> dict[tuple[str, int], str]:
    """File and line of every `UserError(...)` in the package that advises a setting, with its text."""
    found = {}
    for path in sorted((ROOT / "diffusion_lab").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "UserError":
                text = " ".join(_text(argument) for argument in node.args)
                if ADVICE.search(text):
                    found[str(path), node.lineno] = text
    return found


def _text(node: ast.expr) -> str:
    """A text as it will be, with 0 for what is computed."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) for part in node.values)
    if isinstance(node, ast.BinOp):
        return _text(node.left) + _text(node.right)
    return "0"


def test_every_advice_is_tried() -> None:
    sites = advising()
    assert len(sites) > 20
    missing = {
        f"{Path(file).relative_to(ROOT)}: {text}"
        for (file, line), text in sites.items()
        if (file, line) not in PROVOKED
    }
    untried = {text for text in missing if not any(text.startswith(known) for known in EXCUSED)}
    assert not untried, "\n".join(sorted(untried))
    needless = {known for known in EXCUSED if not any(text.startswith(known) for text in missing)}
    assert not needless, f"excuses that are not needed: {needless}"
