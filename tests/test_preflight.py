"""What is refused, and what the plan says, before anything slow is loaded."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from safetensors.numpy import save_file

from diffusion_lab.cli.compose import compose
from diffusion_lab.config.schema import Config
from diffusion_lab.jobs import check
from diffusion_lab.models import devices
from diffusion_lab.models.devices import has_gpu
from diffusion_lab.models.place import model_folder
from diffusion_lab.plan import costs, plan, shown
from diffusion_lab.plan.costs import estimate
from diffusion_lab.plan.defaults import fill_defaults
from diffusion_lab.plan.plan import show
from diffusion_lab.plan.shown import duration
from diffusion_lab.records import UserError

PARTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A diffusers folder with all its parts and hardly any weights."""
    folder = tmp_path / "model"
    index = {part: ["diffusers", "Any"] for part in (*PARTS, "tokenizer", "scheduler")}
    for part in index:
        (folder / part).mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline", **index}))
    for part, name in PARTS.items():
        save_file({"w": np.zeros(2, np.float32)}, folder / part / f"{name}.safetensors")
        config = {"sample_size": 16} if part == "unet" else {"block_out_channels": [1, 1, 1]}
        (folder / part / "config.json").write_text(json.dumps(config))
    (folder / "scheduler" / "scheduler_config.json").write_text("{}")
    (folder / "tokenizer" / "vocab.json").write_text("{}")
    (folder / "tokenizer" / "merges.txt").write_text("")
    return folder


@pytest.fixture
def make(model: Path) -> Callable[..., Config]:
    return lambda *words: fill_defaults(compose(["model=folder", f"model.path={model}", *words]))


def test_the_plan_counts_right(make: Callable[..., Config], tmp_path: Path) -> None:
    config = make(
        "steps.total=10", "steps.every=4", "prompts.n=6", "prompts.sampling_steps=5", "data.n_images=3"
    )
    plan = check(config, tmp_path / "run")
    assert plan.evaluations == (0, 4, 8, 10)
    assert (plan.images, plan.prompts, plan.steps) == (3, 6, 10)
    assert plan.images_sampled == 6 * 4
    assert plan.forwards == 6 * 4 * 5 * 2, "guidance runs the U-Net twice"
    alone = check(make("prompts.n=6", "prompts.guidance_scale=1", "steps.total=1"), tmp_path / "run")
    assert alone.forwards == 6 * 2 * 12
    assert not (tmp_path / "run").exists(), "checking writes nothing"


def test_resolution_is_read_from_the_folder(make: Callable[..., Config]) -> None:
    assert make().model.resolution == 16 * 4


def test_the_plan_is_shown_with_its_warnings(make: Callable[..., Config], tmp_path: Path) -> None:
    plan = check(make("steps.total=12"), tmp_path / "run")
    console = Console(width=200, record=True, file=io.StringIO())
    show(plan, console)
    text = console.export_text()
    for words in (
        "images sampled",
        "700",
        "16,800 images",
        "0, 2, 4, 6, 8, 10, 12",
        "GiB",
        "customcls woman",
    ):
        assert words in text
    assert "warning: metrics=miniature knows drawn portraits only" in text


def test_estimates_grow_with_the_work(make: Callable[..., Config], tmp_path: Path) -> None:
    def cost(*words: str) -> costs.Cost:
        found = check(make("model.device=cpu", *words), tmp_path / "run").cost
        assert found is not None
        return found

    base = cost("steps.total=100")
    assert cost("steps.total=200").training_seconds == pytest.approx(2 * base.training_seconds, rel=0.05)
    assert cost("steps.total=100", "prompts.n=200").evaluation_seconds == pytest.approx(
        2 * base.evaluation_seconds
    )
    larger = cost("steps.total=100", "steps.batch_size=8")
    assert larger.peaks["training"] > base.peaks["training"]
    assert cost("prompts.batch_size=100").peaks["evaluation"] > base.peaks["evaluation"]


def test_the_time_of_prior_preservation_and_of_whole_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the pictures a step, 100 drawn before; a U-Net that trains is sampled in float32."""
    for module in (costs, devices):
        monkeypatch.setattr(module, "has_gpu", lambda: True)
    monkeypatch.setattr(devices, "_cards", lambda: (devices.Card("NVIDIA A100-SXM4-40GB", 8.0, 40e9),))
    data = ["data=folder", "data.folder=.", "data.class_noun=dog"]

    def cost(*words: str) -> costs.Cost:
        config = fill_defaults(compose(["experiment=full", *data, *words]))
        return estimate(config, forwards=1000, sampled=0, evaluations=2)

    with_class, without = cost("method=dreambooth"), cost("method=dreambooth", "method.prior_weight=0")
    drawn = (
        cost("method=dreambooth", "method.prior_images=200").training_seconds - with_class.training_seconds
    )
    assert drawn > 60  # 100 pictures of 25 steps, guided
    assert with_class.training_seconds - drawn == pytest.approx(2 * without.training_seconds, rel=0.01)
    found = costs.speeds(fill_defaults(compose(["experiment=full", *data])))
    lora = cost("method=lora").evaluation_seconds
    assert with_class.evaluation_seconds == pytest.approx(found.chosen / found.float32 * lora, rel=0.01)


def test_cores_and_card_of_other_systems(
    make: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """macOS and Windows cannot tell a process's own cores; Windows and WSL have no /proc/driver/nvidia."""
    config = make("steps.total=100")
    for name in ("sched_getaffinity", "process_cpu_count"):
        monkeypatch.delattr(os, name, raising=False)
    assert estimate(config, forwards=1, sampled=1, evaluations=2).seconds > 0
    monkeypatch.setattr(shutil, "which", lambda name: f"C:/Windows/System32/{name}.exe")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert has_gpu()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert not has_gpu()


@pytest.mark.parametrize(
    "part", ["model_index.json", "unet", "vae/config.json", "tokenizer/merges.txt", "scheduler"]
)
def test_a_model_folder_that_lacks_a_part(
    make: Callable[..., Config], model: Path, tmp_path: Path, part: str
) -> None:
    config = make()
    (model / part).rename(tmp_path / "gone")
    with pytest.raises(UserError, match=r"model.path") as caught:
        check(config, tmp_path / "run")
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["data.subject=ana"], "data.subject=ana.*anna.*emil.*did you mean 'anna'"),
        (["data.n_images=27"], "data.n_images=27.*28 pictures"),
        (["data=folder", "data.folder=nowhere", "data.class_noun=dog"], "nowhere"),
        (["metrics.names=[similarty]"], "metrics.names=similarty.*did you mean 'similarity'"),
        (["data.impostors=nowhere"], "data.impostors=nowhere"),
        (["prompts.name=poems"], "prompts.name=poems: must be one of miniature"),
        (["metrics=full", "metrics.aesthetics_weights=head.safetensors"], "metrics.aesthetics_weights=head"),
        (["metrics=full", "metrics.face_weights=weights/face.pt"], "metrics.face_weights=weights/face.pt"),
    ],
)
def test_bad_input(make: Callable[..., Config], tmp_path: Path, words: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        check(make(*words), tmp_path / "run")


def test_a_folder_of_pictures_and_its_noun(make: Callable[..., Config], tmp_path: Path) -> None:
    pictures = tmp_path / "rex"
    pictures.mkdir()
    words = ["data=folder", f"data.folder={pictures}", "data.n_images=3"]
    with pytest.raises(UserError, match="rex"):
        check(make(*words, "data.class_noun=dog"), tmp_path / "run")
    for number in range(5):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(pictures / f"{number}.png")
    with pytest.raises(UserError, match=r"data.class_noun"):
        check(make(*words), tmp_path / "run")
    config = make(*words, "data.class_noun=dog")
    assert config.data.subject == "rex"
    assert "customcls dog" in dict(check(config, tmp_path / "run").rows)["subject"]


def test_what_is_neither_folder_nor_hub_id(tmp_path: Path) -> None:
    def path(value: str) -> Path | None:
        return model_folder(compose([f"model.path={value}"]).model)

    with pytest.raises(UserError, match="did you mean 'miniature'"):
        path("minature")
    with pytest.raises(UserError, match=r"model.path=/no/such/folder"):
        path("/no/such/folder")
    (tmp_path / "weights.safetensors").write_text("")
    assert path(str(tmp_path / "weights.safetensors")) == tmp_path / "weights.safetensors"
    with pytest.raises(UserError, match=r"gone\.safetensors: there is no such file"):
        path("owner/gone.safetensors")
    assert path("stable-diffusion-v1-5/stable-diffusion-v1-5") is None
    assert path("miniature") is not None


def test_a_hub_id_is_taken_with_a_warning(tmp_path: Path) -> None:
    plan = check(fill_defaults(compose(["model=sd15"])), tmp_path / "run")
    assert any("hub id" in warning for warning in plan.warnings)


def test_prompts_over_the_limit(make: Callable[..., Config], model: Path, tmp_path: Path) -> None:
    """Counted by the folder's own tokenizer.json."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "<s>": 1, "</s>": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokenizer.enable_truncation(77)
    tokenizer.save(str(model / "tokenizer" / "tokenizer.json"))
    check(make(f"prompts.negative='{'bad ' * 75}'"), tmp_path / "run")
    with pytest.raises(UserError, match=r"negative prompt has 78 tokens.* 77"):
        check(make(f"prompts.negative='{'bad ' * 76}'"), tmp_path / "run")
    with pytest.raises(UserError, match="instance prompt"):
        check(make(f"data.identifier='{'x ' * 76}'"), tmp_path / "run")


def test_the_place_of_the_run(
    make: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"hydra\.run\.dir.*file is a file"):
        check(config, tmp_path / "file" / "run")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "result.json").write_text("{}")
    with pytest.raises(UserError, match="recorded there already"):
        check(config, tmp_path / "old")
    usage = type("Usage", (), {"free": 1_000_000})
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match=r"hydra\.run\.dir.*1 MB are free.*or set steps\.keep_checkpoints=1"):
        check(config, tmp_path / "run")


@pytest.mark.parametrize(("size", "words"), [(5, "1 MB"), (9.9e9, "9900 MB"), (52.6e9, "53 GB")])
def test_rooms(size: float, words: str) -> None:
    assert shown.room(size) == words


def test_the_disk_that_whole_networks_need() -> None:
    """Stable Diffusion 1.5's U-Net is 3.4 GB; AdamW keeps two numbers beside each of its weights."""
    data = ["data=folder", "data.folder=.", "data.class_noun=dog", "steps.total=70", "steps.every=10"]

    def disk(*words: str) -> float:
        config = fill_defaults(compose(["experiment=full", *data, *words]))
        return estimate(config, forwards=0, sampled=0, evaluations=8).disk_bytes / 3.438e9

    base = disk("method=dreambooth")
    # Four checkpoints of three parts each; adapters are links to them, but for one; the other parts of the pipeline.
    assert base == pytest.approx(4 * 3 + 1 + 0.25, rel=0.03)
    assert disk("method=dreambooth", "steps.keep_adapters=all") - base == pytest.approx(6, rel=0.01)
    assert base - disk("method=dreambooth", "steps.keep_checkpoints=1") == pytest.approx(3, rel=0.01)
    assert base - disk("method=dreambooth", "steps.optimizer=adamw8bit") == pytest.approx(4 * 1.5, rel=0.01)
    assert disk("method=dreambooth", "steps.checkpoint_every=0") == pytest.approx(3.3, rel=0.05)
    assert disk("method=lora") < 0.1
    assert disk("method=lora", "steps.keep_adapters=best") < disk("method=lora")


def test_an_unwritable_place(
    make: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may write anywhere, so the right is taken away where it is asked for."""
    monkeypatch.setattr(plan.os, "access", lambda *_: False)
    with pytest.raises(UserError, match=r"hydra\.run\.dir.*cannot be written"):
        check(make(), tmp_path / "run")


def test_other_jobs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"job.runs=nowhere: there is no such folder"):
        check(compose(["job=report", "job.runs=nowhere"]), tmp_path / "run")
    assert ("job", "report") in check(compose(["job=report", f"job.runs={tmp_path}"]), tmp_path / "run").rows
    plan = check(compose(["job=subjects", f"job.output={tmp_path / 'people'}"]), tmp_path / "run")
    assert plan.summary() == f"job: subjects; into: {tmp_path / 'people'}"
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"job.output"):
        check(compose(["job=pretrain", f"job.output={tmp_path / 'file'}"]), tmp_path / "run")


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "1 s"), (89, "89 s"), (300, "5 min"), (7800, "2 h 10 min")]
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words
