"""What every method leaves on every family is recognised, fits its model in the plan, and gives the image in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from diffusion_lab.artefacts.adapter_file import parts_of
from diffusion_lab.artefacts.artefact import apply, recognise
from diffusion_lab.artefacts.kohya import FILE_NAME
from diffusion_lab.cli.compose import compose
from diffusion_lab.config.schema import Model, Prompts, Steps
from diffusion_lab.families import FAMILIES
from diffusion_lab.jobs import check, generate
from diffusion_lab.methods.dreambooth import DreamBooth
from diffusion_lab.methods.hypernetwork import Hypernetwork
from diffusion_lab.methods.lora import Lora
from diffusion_lab.methods.pivotal import Pivotal
from diffusion_lab.methods.textual_inversion import TextualInversion
from diffusion_lab.plan.artefact_fits import check_fit
from diffusion_lab.plan.defaults import fill_defaults
from diffusion_lab.records import Prompt, PromptSet, UserError
from diffusion_lab.sampling.sample import sample
from diffusion_lab.training.loop import training_step
from tests.families.tiny import FAMILY

TEXT = "a photo of customcls dog"
ONE = PromptSet("one", (Prompt("p", TEXT, "a photo of dog"),), "", "")
SETTINGS = Prompts(n=1, sampling_steps=2, guidance_scale=3.0, batch_size=1, images_per_prompt=1)
RATE = 3e-2
METHODS: dict[str, Any] = {
    "lora": lambda: Lora(rank=4, alpha=2.0, learning_rate=RATE, text_encoder=True),
    "rslora": lambda: Lora(rank=4, rank_stabilised=True, learning_rate=RATE),
    "dora": lambda: Lora(rank=4, learning_rate=RATE, dora=True, text_encoder=True),
    "loha": lambda: Lora(variant="loha", rank=4, learning_rate=2 * RATE),
    "lokr": lambda: Lora(variant="lokr", rank=4, learning_rate=RATE, text_encoder=True),
    "oft": lambda: Lora(variant="oft", rank=4, learning_rate=RATE),
    "dreambooth": lambda: DreamBooth(prior_weight=0.0, learning_rate=1e-3, text_encoder=True),
    "word": lambda: TextualInversion(token="customcls", initialiser="dog", vectors=2, learning_rate=0.5),
    "pivotal": lambda: Pivotal(
        token="customcls", initialiser="dog", rank=4, learning_rate=RATE, token_learning_rate=0.5
    ),
}  # fmt: skip
CASES = [
    (family, method)
    for family in sorted(FAMILIES)
    for method, make in METHODS.items()
    if make().traits.trains <= FAMILIES[family].trainable
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for name, build in FAMILY.items():
        build(root / name)
    return {name: root / name for name in FAMILY}


def load(folder: Path) -> Any:
    from diffusers import DiffusionPipeline

    pipe = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(pipe: Any) -> np.ndarray:
    return sample(pipe, ONE, SETTINGS)[0].astype(int)


@pytest.fixture(scope="module")
def trained(make_state_once, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(family, method) -> the artefact's folder and the image in memory, made once."""
    kept: dict[tuple[str, str], tuple[Path, np.ndarray]] = {}

    def make(family: str, method: str) -> tuple[Path, np.ndarray]:
        if (family, method) not in kept:
            place = tmp_path_factory.mktemp(f"{family}-{method}") / "artefact"
            state = make_state_once(folder=folders[family], method=METHODS[method]())
            for _ in range(3):
                training_step(state, Steps(batch_size=2))
                state.step += 1
            state.save(place)
            kept[family, method] = place, picture(state.pipe)
        return kept[family, method]

    return make


def drawn(place: Path, output: Path, *more: str) -> np.ndarray:
    """By job=generate, from the folder or file alone: model and prompts' settings are its header's."""
    words = [
        "job=generate", f"job.artefact={place}", f"job.output={output}", "model.device=cpu", "tracker=files",
        "prompts.sampling_steps=2", "prompts.guidance_scale=3", "prompts.batch_size=1", "prompts.images_per_prompt=1",
        f"job.text={TEXT!r}", *more,
    ]  # fmt: skip
    config = fill_defaults(compose(words))
    check(config, output / "run")
    generate.run(config, output / "run")
    return np.asarray(Image.open(output / "p000-0.png")).astype(int)


@pytest.mark.parametrize(("family", "method"), CASES)
def test_generate_draws_the_image_in_memory(
    trained, folders: dict[str, Path], tmp_path: Path, family: str, method: str
) -> None:
    place, expected = trained(family, method)
    base = picture(load(folders[family]))
    assert np.abs(expected - base).max() > 20, "there is an effect to lose"
    assert np.abs(drawn(place, tmp_path / "images") - expected).max() <= 2


@pytest.mark.parametrize(("family", "method"), [case for case in CASES if case[1] not in ("word", "pivotal")])
def test_its_weight(trained, folders: dict[str, Path], family: str, method: str) -> None:
    """0 is the model alone, to the bit; a half lies between."""
    place, expected = trained(family, method)

    def with_weight(weight: float) -> np.ndarray:
        pipe = load(folders[family])
        for piece in recognise(place):
            apply(pipe, piece, weight)
        return picture(pipe)

    base = picture(load(folders[family]))
    assert np.array_equal(with_weight(0.0), base)
    half = with_weight(0.5)
    for other in (base, expected):
        assert 0 < np.abs(half - other).mean() < 1.5 * np.abs(expected - base).mean()


@pytest.mark.parametrize("method", ["lora", "rslora"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_file_for_other_tools_gives_the_same_image(
    trained, tmp_path: Path, family: str, method: str
) -> None:
    place, expected = trained(family, method)
    assert np.abs(drawn(place / FILE_NAME, tmp_path / "images") - expected).max() <= 2


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_headers_name_the_family(trained, family: str) -> None:
    for method in ("lora", "dreambooth", "lokr"):
        for piece in recognise(trained(family, method)[0]):
            assert piece.header["family"] == family
    with safe_open(trained(family, "lora")[0] / FILE_NAME, framework="np") as file:
        assert file.metadata()["family"] == family
    assert (
        json.loads(recognise(trained(family, "lora")[0])[0].header["sampling"])["scheduler"]
        == FAMILIES[family].sampler
    )


@pytest.mark.parametrize("other", sorted(FAMILIES))
@pytest.mark.parametrize("method", ["lora", "loha", "dreambooth"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_another_familys_is_refused_with_both_names(
    trained, folders: dict[str, Path], family: str, method: str, other: str
) -> None:
    if other == family:
        return
    pieces = recognise(trained(family, method)[0])
    told = rf"made for {FAMILIES[family].title}, and this is {FAMILIES[other].title}.*set model\.path .*: .*{family}"
    with pytest.raises(UserError, match=told):
        apply(load(folders[other]), pieces[0])
    with pytest.raises(UserError, match=f"made for {FAMILIES[family].title}"):
        check_fit(pieces, folders[other], Model(path=str(folders[other])))


@pytest.mark.parametrize("other", sorted(FAMILIES))
@pytest.mark.parametrize("form", ["diffusers", "kohya"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_another_familys_without_a_header_is_refused(
    trained, folders: dict[str, Path], tmp_path: Path, family: str, form: str, other: str
) -> None:
    """By the names of its layers, by its networks or by their sizes."""
    if other == family:
        return
    place = trained(family, "lora")[0] / (
        FILE_NAME if form == "kohya" else "pytorch_lora_weights.safetensors"
    )
    save_file(load_file(place), tmp_path / "a.safetensors")
    pieces = recognise(tmp_path / "a.safetensors")
    for ask in (
        lambda: check_fit(pieces, folders[other], Model(path=str(folders[other]))),
        lambda: apply(load(folders[other]), *pieces),
    ):
        with pytest.raises(
            UserError, match=r"a\.safetensors: .*set model\.path to the one it was made for"
        ) as error:
            ask()
        if {FAMILIES[family].denoiser, FAMILIES[other].denoiser} == {"unet", "transformer"}:
            assert FAMILIES[other].title in str(error.value)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_whole_pipeline(trained, folders: dict[str, Path], tmp_path: Path, family: str) -> None:
    """Other people's: it is its own model, and of its own family."""
    import shutil

    whole = tmp_path / "whole"
    shutil.copytree(folders[family], whole)
    place, expected = trained(family, "dreambooth")
    for part in place.iterdir():
        if part.is_dir():
            shutil.rmtree(whole / part.name)
            shutil.copytree(part, whole / part.name)
    (piece,) = recognise(whole)
    assert piece.kind == "pipeline"
    assert np.abs(drawn(whole, tmp_path / "images") - expected).max() <= 2


def test_the_familys_own_sampling_is_taken(trained, folders: dict[str, Path], tmp_path: Path) -> None:
    """For a pipeline that tells nothing, where the command line says nothing."""
    words = [
        "job=generate",
        f"job.artefact={folders['flux']}",
        f"job.output={tmp_path}",
        "model.device=cpu",
        "job.text=a",
    ]
    ordered = generate.order(fill_defaults(compose(words)))
    assert (ordered.settings.sampling_steps, ordered.settings.guidance_scale) == (28, 3.5)
    ordered = generate.order(fill_defaults(compose([*words, "prompts.guidance_scale=2"])))
    assert (ordered.settings.sampling_steps, ordered.settings.guidance_scale) == (28, 2.0)


@pytest.mark.parametrize("family", ["sdxl", "sd3", "flux"])
def test_a_hypernetwork_is_for_the_first_family_only(
    make_state_once, folders: dict[str, Path], tmp_path: Path, family: str
) -> None:
    make_state_once(folder=folders["sd"], method=Hypernetwork()).save(tmp_path / "h")
    (piece,) = recognise(tmp_path / "h")
    without = type(piece)(
        piece.kind, piece.path, {key: text for key, text in piece.header.items() if key != "family"}
    )
    for one, told in ((piece, "made for Stable Diffusion 1.x and 2.x"), (without, "a hypernetwork, and")):
        with pytest.raises(UserError, match=told):
            check_fit((one,), folders[family], Model(path=str(folders[family])))
        with pytest.raises(UserError, match=told):
            apply(load(folders[family]), one)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_whole_networks_of_another_size_or_class(
    folders: dict[str, Path], tmp_path: Path, family: str
) -> None:
    import shutil

    part = FAMILIES[family].denoiser
    shutil.copytree(folders[family] / part, tmp_path / part)
    apply(load(folders[family]), *recognise(tmp_path))
    config = tmp_path / part / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_class_name": "OtherModel"}))
    with pytest.raises(UserError, match=f"its {part} is a OtherModel, and this model's is a"):
        check_fit(recognise(tmp_path), folders[family], Model(path=str(folders[family])))
    (file,) = (tmp_path / part).glob("*.safetensors")
    weights = load_file(file)
    first = max(weights)
    save_file({**weights, first: torch.zeros(3)}, file)
    with pytest.raises(UserError, match=r"is \[3\], and .* is needed"):
        apply(load(folders[family]), *recognise(tmp_path))


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2", "text_encoder_3"])
def test_text_encoders_as_plain_libraries_save_them(
    folders: dict[str, Path], tmp_path: Path, part: str
) -> None:
    """CLIP with and without a projection, and T5, whose embedding is in its file once and in its memory twice."""
    pipe, other = load(folders["sd3"]), load(folders["sd3"])
    with torch.no_grad():
        for parameter in getattr(pipe, part).parameters():
            parameter.add_(0.5)
    getattr(pipe, part).save_pretrained(tmp_path / part)
    (piece,) = recognise(tmp_path)
    apply(other, piece)
    own = getattr(other, part).state_dict()
    for key, value in getattr(pipe, part).state_dict().items():
        assert torch.equal(own[key], value), key
    apply(half := load(folders["sd3"]), piece, 0.5)
    before = getattr(load(folders["sd3"]), part).state_dict()
    for key, value in getattr(half, part).state_dict().items():
        assert torch.allclose(value, before[key] + 0.25 * (before[key] != own[key]), atol=1e-6), key


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_parts_that_adapters_change(folders: dict[str, Path], family: str) -> None:
    pipe = load(folders[family])
    assert all(getattr(pipe, part) is not None for part in parts_of(FAMILIES[family]))


def test_a_network_that_the_model_lacks(tmp_path: Path) -> None:
    """T5 of Stable Diffusion 3 may be left out."""
    pipe = FAMILY["sd3"](tmp_path / "sd3", t5=False)  # type: ignore[call-arg]
    key = "lora_te3_encoder_block_0_layer_0_SelfAttention_q"
    save_file(
        {f"{key}.lora_down.weight": torch.ones(2, 64), f"{key}.lora_up.weight": torch.ones(32, 2)},
        tmp_path / "a.safetensors",
    )
    with pytest.raises(
        UserError, match=r"it changes the text_encoder_3 \(lora_te3_.*\), which this model lacks"
    ):
        apply(pipe, *recognise(tmp_path / "a.safetensors"))


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_texts_that_t5_reads_whole(folders: dict[str, Path], family: str) -> None:
    """Longer than CLIP's 77 tokens; beyond T5's own limit nothing is cut silently."""
    from diffusion_lab.data.tokens import check_texts

    def of_words(number: int) -> PromptSet:
        return PromptSet("one", (Prompt("p7", "a " * number, "a"),), "", "")

    pipe = load(folders[family])
    check_texts(pipe, of_words(200))
    with pytest.raises(UserError, match=r"prompts: p7: .* tokens, the model reads (256|512); shorten it"):
        check_texts(pipe, of_words(600))
    with pytest.raises(UserError, match="but the model reads 77"):
        check_texts(load(folders["sdxl"]), of_words(200))


def test_weights_in_4_bits_take_pairs_only(folders: dict[str, Path], trained) -> None:
    """A packed weight's own shape tells nothing; what goes into weights is refused."""
    pipe = load(folders["flux"])
    pipe.transformer.is_quantized = True
    for method in ("loha", "dora", "dreambooth"):
        with pytest.raises(UserError, match=r"changes the weights themselves, .* set model\.quantise=null"):
            apply(pipe, *recognise(trained("flux", method)[0]))
    packed = {}
    for name, module in pipe.transformer.named_modules():
        if name.endswith(("to_q", "to_out.0")):
            packed[name] = tuple(module.weight.shape)
            numbers = torch.zeros(module.weight.numel() // 2, 1, dtype=torch.uint8)
            module.weight = torch.nn.Parameter(numbers, requires_grad=False)
    apply(pipe, *recognise(trained("flux", "lora")[0]))
    for name, shape in packed.items():
        layer = pipe.transformer.get_submodule(name)
        assert (layer.lora_B["artefact"].weight.shape[0], layer.lora_A["artefact"].weight.shape[1]) == shape
