"""Which files of a repository are fetched, for the layouts in which the families' models are published.

The names are those of the public repositories; the hub here is a small one on this machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from diffusion_lab.cli.compose import compose
from diffusion_lab.config.schema import Config, Model
from diffusion_lab.families import FAMILIES
from diffusion_lab.models import hub
from diffusion_lab.models.place import model_folder
from diffusion_lab.models.which_family import which_family
from diffusion_lab.plan import downloads
from diffusion_lab.plan.defaults import fill_defaults
from diffusion_lab.plan.fetch import fetch
from diffusion_lab.records import UserError
from tests.families import tiny
from tests.models.hub_server import Hub, serving

CLIP = ("merges.txt", "special_tokens_map.json", "tokenizer_config.json", "vocab.json")
T5 = ("special_tokens_map.json", "spiece.model", "tokenizer.json", "tokenizer_config.json")
SHARDED = (
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
)


def within(folder: str, *names: str) -> set[str]:
    return {f"{folder}/{name}" for name in names}


TOP = {"model_index.json", "scheduler/scheduler_config.json"}
SDXL_PARTS = ("text_encoder", "text_encoder_2", "unet", "vae")
SDXL = (
    TOP
    | within("tokenizer", *CLIP)
    | within("tokenizer_2", *CLIP)
    | {f"{part}/config.json" for part in SDXL_PARTS}
)
SD3 = (
    TOP | within("tokenizer", *CLIP) | within("tokenizer_2", *CLIP) | within("tokenizer_3", *T5)
    | within("text_encoder", "config.json", "model.safetensors")
    | within("text_encoder_2", "config.json", "model.safetensors") | within("text_encoder_3", "config.json", *SHARDED)
    | within("transformer", "config.json", "diffusion_pytorch_model.safetensors")
    | within("vae", "config.json", "diffusion_pytorch_model.safetensors")
)  # fmt: skip
FLUX = (
    TOP | within("tokenizer", *CLIP) | within("tokenizer_2", *T5)
    | within("text_encoder", "config.json", "model.safetensors") | within("text_encoder_2", "config.json", *SHARDED)
    | within("transformer", "config.json", "diffusion_pytorch_model.safetensors.index.json",
             *(f"diffusion_pytorch_model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)))
    | within("vae", "config.json", "diffusion_pytorch_model.safetensors")
)  # fmt: skip
OTHERS = {
    "sdxl": {
        ".gitattributes", "README.md", "LICENSE.md", "sd_xl_base_1.0.safetensors", "sd_xl_base_1.0_0.9vae.safetensors",
        "sd_xl_offset_example-lora_1.0.safetensors", "text_encoder/flax_model.msgpack", "text_encoder/model.onnx",
        "text_encoder/openvino_model.bin", "text_encoder/openvino_model.xml", "text_encoder_2/model.onnx_data",
        "unet/diffusion_flax_model.msgpack", "unet/model.onnx", "vae_1_0/diffusion_pytorch_model.safetensors",
        "vae_1_0/config.json", "vae_decoder/config.json", "vae_decoder/model.onnx", "vae_encoder/config.json",
    },
    "sd3": {
        ".gitattributes", "README.md", "LICENSE.md", "sd3.5_medium.safetensors", "mmdit-x.png",
        "text_encoders/clip_g.safetensors", "text_encoders/clip_l.safetensors", "text_encoders/t5xxl_fp16.safetensors",
        "text_encoders/t5xxl_fp8_e4m3fn.safetensors", "SD3.5M_example_workflow.json",
    },
    "flux": {
        ".gitattributes", "README.md", "LICENSE.md", "ae.safetensors", "flux1-dev.safetensors", "dev_grid.jpg",
    },
}  # fmt: skip


def sdxl_weights(ending: str = "") -> set[str]:
    return {
        f"{part}/{'model' if 'text' in part else 'diffusion_pytorch_model'}{ending}.safetensors"
        for part in SDXL_PARTS
    }


LAYOUTS = [
    # model=, everything there, what is fetched of it
    ("sdxl", SDXL | sdxl_weights() | sdxl_weights(".fp16") | OTHERS["sdxl"], SDXL | sdxl_weights(".fp16")),
    ("sd35_medium", SD3 | OTHERS["sd3"], SD3),
    ("sd35_large", SD3 | OTHERS["sd3"], SD3),
    ("flux_dev", FLUX | OTHERS["flux"], FLUX),
]


@pytest.mark.parametrize(("name", "there", "expected"), LAYOUTS, ids=[name for name, *_ in LAYOUTS])
def test_the_parts_and_nothing_else(name: str, there: set[str], expected: set[str]) -> None:
    model = compose([f"model={name}"]).model
    found = hub.model_files(there, model, which_family(model))
    assert len(found) == len(set(found))
    assert set(found) == expected


@pytest.mark.parametrize(("name", "there", "expected"), LAYOUTS, ids=[name for name, *_ in LAYOUTS])
def test_the_plan_speaks_of_the_same_files_and_knows_their_sizes(
    name: str, there: set[str], expected: set[str], caches: Path
) -> None:
    """Before the hub is asked it is not known which are in shards: these are one line each."""
    model = compose([f"model={name}"]).model
    planned = {file.name: file for file in downloads.of_model(model)}
    assert {name for name in expected if "-of-" not in name and ".index." not in name} <= set(planned)
    sharded = {file.rpartition("-00001-of-")[0] for file in expected if "-00001-of-" in file}
    assert set(planned) - expected == {f"{stem}.safetensors" for stem in sharded}
    assert all(file.size for file in planned.values())
    family = which_family(model)
    sizes = {
        file.name.partition("/")[0]: file.size
        for file in planned.values()
        if file.name.endswith(".safetensors")
    }
    if name != "sd35_large":  # its family's figures are medium's
        for part, size in sizes.items():
            assert size == pytest.approx(2 * family.parameters[part], rel=0.01), part  # all in half precision


@pytest.mark.parametrize(
    ("there", "variant", "expected"),
    [
        ({"model.safetensors", "model.fp16.safetensors"}, None, {"model.safetensors"}),
        ({"model.safetensors", "model.fp16.safetensors"}, "fp16", {"model.fp16.safetensors"}),
        ({"model.safetensors"}, "fp16", {"model.safetensors"}),  # as diffusers: what has no variant is taken without
        ({*SHARDED, "model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors",
          "model.safetensors.index.fp16.json"}, "fp16",
         {"model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors",
          "model.safetensors.index.fp16.json"}),
        ({*SHARDED}, "fp16", {*SHARDED}),
    ],
)  # fmt: skip
def test_variants_of_one_part(there: set[str], variant: str | None, expected: set[str]) -> None:
    """Of a T5 in shards, beside a transformer that has both."""
    others = {f"transformer/diffusion_pytorch_model{ending}.safetensors" for ending in ("", ".fp16")}
    rest = {name for name in FLUX if not name.startswith(("text_encoder_2/model", "transformer/"))}
    model = Model(path="owner/name", family="flux", variant=variant)
    found = hub.model_files(rest | others | within("text_encoder_2", *there), model, FAMILIES["flux"])
    assert {name for name in found if name.startswith("text_encoder_2/model")} == within(
        "text_encoder_2", *expected
    )


def test_t5_may_be_missing_of_stable_diffusion_3_alone() -> None:
    def without(names: set[str], part: str) -> set[str]:
        return {name for name in names if not name.startswith(f"{part}/")}

    model = Model(path="owner/name", family="sd3")
    assert hub.model_files(without(SD3, "text_encoder_3"), model, FAMILIES["sd3"])
    with pytest.raises(UserError, match=r"no model\.safetensors in text_encoder_2/"):
        hub.model_files(without(FLUX, "text_encoder_2"), model, FAMILIES["flux"])


def test_a_variant_that_no_part_has() -> None:
    model = Model(path="owner/name", family="sd3", variant="fp8")
    with pytest.raises(UserError, match=r"model\.path=owner/name.*fp8.*model\.variant"):
        hub.model_files(SD3, model, FAMILIES["sd3"])


# --- over HTTP ------------------------------------------------------------------------------------------


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tmp_path


@pytest.fixture(params=["sdxl", "sd3", "flux"])
def served(
    request: pytest.FixtureRequest, caches: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, Hub]]:
    """A tiny model in shards, with a checkpoint of the whole beside it."""
    name, folder = request.param, caches / "repository"
    pipe = tiny.FAMILY[name](folder)
    denoiser = FAMILIES[name].denoiser
    for file in (folder / denoiser).glob("*.safetensors"):
        file.unlink()
    getattr(pipe, denoiser).save_pretrained(folder / denoiser, max_shard_size="200KB")
    assert len(list((folder / denoiser).glob("*-of-*.safetensors"))) > 1
    (folder / "whole.safetensors").write_bytes(b"x" * 1000)
    with serving({"someone/tiny": folder}) as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.endpoint)
        template = running.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield name, running


def configured(family: str) -> Config:
    words = ["model=folder", "model.path=someone/tiny", f"model.family={family}", "metrics=miniature"]
    return fill_defaults(compose(words))


def test_a_repository_is_fetched_once_and_loaded(served: tuple[str, Hub]) -> None:
    import torch

    from diffusion_lab.models.load import load_pipeline

    name, running = served
    config = configured(name)
    fetch(config)
    asked = [path for path in running.asked if path.startswith("GET") and "/resolve/" in path]
    assert not any("whole.safetensors" in path for path in asked)
    assert len(asked) == len(set(asked))
    folder = model_folder(config.model)
    assert folder is not None
    known = downloads.of_model(config.model)
    assert all(file.path is not None for file in known)
    shards = [file for file in known if "-of-" in file.name]
    assert len(shards) > 1, "each shard with its own size"
    assert dict(downloads.rows(known))["downloads"] == f"none: all {len(known)} files are there"
    before = len(running.asked)
    pipe = load_pipeline(config.model, torch.device("cpu"))
    assert type(pipe).__name__ == FAMILIES[name].pipeline
    assert len(running.asked) == before, "nobody is asked for what is there"


def test_a_gated_repository_says_what_to_do(served: tuple[str, Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    name, running = served
    running.gated = True
    with pytest.raises(UserError, match=r"model\.path=someone/tiny: .*accept them there and set HF_TOKEN"):
        fetch(configured(name))
