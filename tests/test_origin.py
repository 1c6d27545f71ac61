"""What one trained with is what one draws and scores with; the command line wins; a foreign file gets what fits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from diffusion_lab.__main__ import main
from diffusion_lab.artefacts.artefact import recognise
from diffusion_lab.cli.compose import compose
from diffusion_lab.config.jobs import Generate
from diffusion_lab.config.schema import Config, Prompts
from diffusion_lab.jobs import check, generate
from diffusion_lab.jobs.score import check_images
from diffusion_lab.plan import origin
from diffusion_lab.plan.defaults import fill_defaults
from diffusion_lab.records import UserError

TRAINED = [
    "prompts.sampling_steps=3", "prompts.guidance_scale=6.5", "prompts.batch_size=2", "prompts.n=3",
    "prompts.negative=blurry", "prompts.noise_seed=5", "data.identifier=wixu", "data.subject=bea", "data.n_images=3",
    "data.n_heldout=1", "model.resolution=32",
]  # fmt: skip


@pytest.fixture(scope="module")
def run_folder(tiny_sd_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run of a folder's model with settings of its own throughout."""
    folder = tmp_path_factory.mktemp("origin") / "run"
    texts = folder.parent / "prompts.txt"
    texts.write_text("a photo of {subject}\na portrait of {subject}\nthe face of {subject}\n")
    words = [
        "model=folder", f"model.path={tiny_sd_folder}", "model.precision=fp32", "model.device=cpu",
        "prompts=file", f"prompts.path={texts}", *TRAINED, "steps.total=1", "steps.batch_size=1", "method.targets=[to_q,to_k]", "metrics.names=[diversity]",
        "tracker.wandb=disabled", "tracker.progress=off", "tracker.keep_images=true", f"hydra.run.dir={folder}",
    ]  # fmt: skip
    assert main(words) == 0
    return folder


def ordered(*words: str) -> generate.Order:
    return generate.order(fill_defaults(compose(["job=generate", *words])))


@pytest.mark.parametrize(
    "place", ["", "artefact", "artefact/pytorch_lora_weights.safetensors", "adapters/step-000001"]
)
def test_an_artefact_is_drawn_as_it_was_trained(run_folder: Path, tiny_sd_folder: Path, place: str) -> None:
    wanted = ordered(f"job.artefact={run_folder / place}")
    assert (wanted.model.path, wanted.model.resolution) == (str(tiny_sd_folder), 32)
    settings = wanted.settings
    assert (settings.sampling_steps, settings.guidance_scale, settings.batch_size) == (3, 6.5, 2)
    assert (settings.n, settings.noise_seed, wanted.prompts.negative) == (3, 5, "blurry")
    assert all("wixu woman" in prompt.text for prompt in wanted.prompts)
    assert "prompts.sampling_steps=3" in wanted.taken
    assert f"model.path={tiny_sd_folder}" in wanted.taken
    assert wanted.taken.endswith(", from the artefact")
    own = ordered(f"job.artefact={run_folder / place}", "job.texts=[a photo of wixu woman]")
    assert (own.settings.sampling_steps, own.prompts.negative, own.settings.images_per_prompt) == (
        3,
        "blurry",
        1,
    )


def test_without_a_header_the_run_around_it_tells(run_folder: Path, tmp_path: Path) -> None:
    """Artefacts of earlier versions."""
    copied = tmp_path / "run"
    shutil.copytree(run_folder, copied)
    for path in copied.glob("artefact/*.safetensors"):
        with safe_open(path, framework="pt") as file:
            header = {key: value for key, value in file.metadata().items() if key != origin.HEADER}
        save_file(load_file(path), path, metadata=header)
    wanted = ordered(f"job.artefact={copied / 'artefact'}")
    assert (wanted.settings.sampling_steps, wanted.model.resolution) == (3, 32)
    assert wanted.taken.endswith(f", from the run {copied}")


CHOICES: list[tuple[str, dict[str, Any]]] = [
    ("prompts.sampling_steps=9", {"sampling_steps": 9, "guidance_scale": 6.5}),
    ("prompts.sampling_steps=12", {"sampling_steps": 12}),  # the default's number, and meant
    ("prompts.negative=''", {"negative": ""}),
    ("prompts=portrait", {"sampling_steps": 25, "guidance_scale": 7.5, "name": "portrait", "n": 100}),
    (
        "prompts.name=portrait_negative",
        {"sampling_steps": 3, "negative": None, "name": "portrait_negative", "n": 100},
    ),
    ("experiment=debug", {"sampling_steps": 2, "n": 4, "guidance_scale": 3.0}),
]


@pytest.mark.parametrize(("word", "expected"), CHOICES, ids=[word for word, _ in CHOICES])
def test_the_command_line_wins(run_folder: Path, word: str, expected: dict[str, Any]) -> None:
    wanted = ordered(f"job.artefact={run_folder / 'artefact'}", word)
    assert {key: getattr(wanted.settings, key) for key in expected} == expected


def test_models_and_words_that_are_given_win(run_folder: Path, tiny_v_sd_folder: Path) -> None:
    artefact = f"job.artefact={run_folder / 'artefact'}"
    wanted = ordered(artefact, "data.identifier=other", "data.class_noun=man", "model.resolution=64")
    assert wanted.model.resolution == 64
    assert all("other man" in prompt.text for prompt in wanted.prompts)
    wanted = ordered(artefact, f"model.path={tiny_v_sd_folder}")
    assert wanted.model.path == str(tiny_v_sd_folder)
    assert wanted.model.resolution == 64, "its own"
    with pytest.raises(UserError, match="text 32 wide, and this model's text encoder gives"):
        check(fill_defaults(compose(["job=generate", artefact, "model=miniature"])), run_folder)


def test_a_configuration_made_by_hand(run_folder: Path) -> None:
    """What is not the schema's default was set."""
    job = Generate(artefact=str(run_folder / "artefact"), output="images")
    wanted = generate.order(Config(job=job, prompts=Prompts(sampling_steps=9)))
    assert (wanted.settings.sampling_steps, wanted.settings.guidance_scale) == (9, 6.5)


def a_lora(path: Path, header: dict[str, str] | None = None) -> Path:
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    save_file(
        {f"{name}.lora_{end}.weight": torch.zeros(4, 4) for end in ("up", "down")}, path, metadata=header
    )
    return path


def test_a_foreign_file_is_not_drawn_with_the_miniatures_settings(
    tmp_path: Path, tiny_sd_folder: Path
) -> None:
    lora = f"job.artefact={a_lora(tmp_path / 'style.safetensors')}"
    wanted = ordered(lora, "model=sd15")
    settings = wanted.settings
    assert settings.name == "portrait"
    assert 30 <= settings.sampling_steps <= 50
    assert (settings.guidance_scale, settings.batch_size) == (7.5, 8)
    assert "the artefact tells nothing of it" in wanted.taken
    assert ordered(lora, "model=sd15", "prompts.sampling_steps=12").settings.sampling_steps == 12
    small = ordered(lora, "model=folder", f"model.path={tiny_sd_folder}").settings
    assert (small.name, small.sampling_steps) == ("miniature", 12)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"model": 1, "prompts": {}}', '{"model": {}, "prompts": {"n": "many"}}']
)
def test_a_header_of_nonsense(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    lora = f"job.artefact={a_lora(tmp_path / 'a.safetensors', {origin.HEADER: text})}"
    if "many" in text:
        with pytest.raises(UserError, match=r"prompts\.n=many, from the artefact"):
            ordered(lora)
        return
    assert ordered(lora).settings.sampling_steps == 12
    assert ("cannot be read" in caplog.text) == bool(text)


def test_a_lora_without_the_word_that_it_was_trained_with(tmp_path: Path) -> None:
    header = {"method": "pivotal", "trigger": "wixu"}
    lora = a_lora(tmp_path / "pytorch_lora_weights.safetensors", header)
    (told,) = generate.unsaid(ordered(f"job.artefact={lora}", "job.text=a wixu"))
    assert "trained with a new word, 'wixu'" in told
    save_file({"wixu": torch.zeros(2, 192)}, tmp_path / "learned_embeds.safetensors", metadata=header)
    assert generate.unsaid(ordered(f"job.artefact={tmp_path}", "job.text=a wixu")) == []
    (told,) = generate.unsaid(ordered(f"job.artefact={tmp_path}", "job.text=a dog"))
    assert "which no prompt says" in told


@pytest.mark.parametrize(
    ("group", "key", "value"),
    [
        *(("model", key, value) for key in ("path", "config", "revision", "variant") for value in (5, ["a"], True, {})),
        *(("model", "resolution", value) for value in ("64", 63.0, True, [64])),
        *(("prompts", key, value) for key in ("name", "path", "negative") for value in (5, ["a"], False)),
        *(("prompts", key, value) for key in ("n", "images_per_prompt", "seed", "sampling_steps", "batch_size", "noise_seed")
          for value in ("4", 4.5, True, [4])),
        *(("prompts", "guidance_scale", value) for value in ("7", True, [7])),
    ],
)  # fmt: skip
def test_a_recorded_value_of_another_type(tmp_path: Path, group: str, key: str, value: object) -> None:
    """Named with its key, before anything is loaded; what the command line sets is not asked for."""
    told = {"device": "cpu", "model": {}, "prompts": {}, group: {key: value}}
    lora = f"job.artefact={a_lora(tmp_path / 'a.safetensors', {origin.HEADER: json.dumps(told)})}"
    with pytest.raises(
        UserError, match=rf"^{group}\.{key}=.*, from the artefact: is of another type; set it"
    ):
        ordered(lora)


def test_a_prompt_set_that_is_gone(run_folder: Path, tmp_path: Path) -> None:
    path = run_folder / "artefact" / "pytorch_lora_weights.safetensors"
    with safe_open(path, framework="pt") as file:
        header = dict(file.metadata())
    told = json.loads(header[origin.HEADER])
    told["prompts"]["path"] = str(tmp_path / "gone.txt")
    save_file(
        load_file(path), tmp_path / "a.safetensors", metadata={**header, origin.HEADER: json.dumps(told)}
    )
    lora = f"job.artefact={tmp_path / 'a.safetensors'}"
    with pytest.raises(
        UserError, match=r"gone\.txt does not exist; job\.artefact was trained with this set: give"
    ):
        ordered(lora)
    for words in ("job.text=a photo", "prompts=portrait"):
        assert ordered(lora, words).prompts


def test_half_precision_belongs_to_its_device(run_folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """A card's bf16 is not taken to a CPU that emulates it; a CPU's own choice is."""
    path = run_folder / "artefact" / "pytorch_lora_weights.safetensors"
    for device, expected in (("cuda", "fp32"), ("cpu", "bf16")):
        with safe_open(path, framework="pt") as file:
            header = dict(file.metadata())
        told = json.loads(header[origin.HEADER])
        told["device"], told["model"]["precision"] = device, "bf16"
        save_file(
            load_file(path), tmp_path / "a.safetensors", metadata={**header, origin.HEADER: json.dumps(told)}
        )
        wanted = ordered(f"job.artefact={tmp_path / 'a.safetensors'}", "model.device=cpu")
        assert wanted.model.precision == expected


def test_images_are_scored_against_the_subject_they_are_of(run_folder: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    config = fill_defaults(
        compose(
            [
                "job=generate", f"job.artefact={run_folder / 'artefact'}", f"job.output={images}", "model.device=cpu",
                "tracker.progress=off", "prompts.n=2",
            ]
        )
    )  # fmt: skip
    plan = check(config, tmp_path)
    assert any(name == "drawn with" and "prompts.guidance_scale=6.5" in value for name, value in plan.rows)
    generate.run(config, tmp_path)
    assert (images / "p000-0.png").is_file()
    for folder in (images, next((run_folder / "samples").glob("step-*/"))):
        words = ["job=score", f"job.images={folder}", "metrics.names=[similarity]"]
        measured, taken = origin.as_measured(fill_defaults(compose(words)))
        assert (measured.data.subject, measured.data.n_images, measured.data.identifier) == ("bea", 3, "wixu")
        assert "data.subject=bea" in taken
        assert check_images(measured)
        assert any(value == taken for _, value in check(fill_defaults(compose(words)), tmp_path / "new").rows)
        other, _ = origin.as_measured(fill_defaults(compose([*words, "data.subject=carl"])))
        assert (other.data.subject, other.data.n_images) == ("carl", 14)


def test_a_runs_folder_without_an_artefact(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds nothing to load"):
        recognise(tmp_path)


@pytest.mark.parametrize(
    ("words", "header", "expected"),
    [
        (["data.class_noun=dog"], {}, "dreambooth_live"),
        ([], {"class_noun": "backpack"}, "dreambooth_objects"),
        (["data.class_noun=man"], {"class_noun": "dog"}, "portrait"),
        (["prompts=logo"], {}, "logo"),
    ],
)
def test_a_foreign_files_prompts_fit_the_noun(
    tmp_path: Path, words: list[str], header: dict[str, str], expected: str
) -> None:
    lora = a_lora(tmp_path / "a.safetensors", header)
    assert ordered(f"job.artefact={lora}", "model=sd15", *words).settings.name == expected


@pytest.mark.parametrize(("device", "precision"), [("cuda", "fp16"), ("cpu", "fp32")])
def test_a_full_size_artefact_gets_the_devices_number_format(
    tmp_path: Path, device: str, precision: str
) -> None:
    """fp16 of a card is not taken to a CPU; where nothing is recorded, what the device does well."""
    from diffusion_lab.models.devices import best_precision

    told = {
        "device": device,
        "model": {"path": "owner/sd", "precision": precision},
        "prompts": {"sampling_steps": 31},
    }
    lora = a_lora(tmp_path / "a.safetensors", {origin.HEADER: json.dumps(told), "base_model": "owner/sd"})
    wanted = ordered(f"job.artefact={lora}", "model.device=cpu")
    assert (wanted.model.path, wanted.settings.sampling_steps) == ("owner/sd", 31)
    assert wanted.model.precision == (best_precision("cpu") if device == "cuda" else precision)
    old = a_lora(tmp_path / "b.safetensors", {"base_model": "owner/sd"})
    wanted = ordered(f"job.artefact={old}", "model.device=cpu")
    assert (wanted.model.precision, wanted.settings.sampling_steps) == (best_precision("cpu"), 30)
