"""With results that other runs have stored, every score is the same to the bit as without."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion_lab.cli.compose import compose
from diffusion_lab.config.schema import Config, Data, Memory, Metrics, Model, Prompts, Steps
from diffusion_lab.evaluation import shared as module
from diffusion_lab.evaluation.encoders.bank import EncoderBank
from diffusion_lab.evaluation.evaluate import evaluate, reference_features
from diffusion_lab.evaluation.shared import Shared, images_of, open_shared
from diffusion_lab.jobs import perform
from diffusion_lab.methods import METHODS
from diffusion_lab.methods.hypernetwork import Hypernetwork
from diffusion_lab.methods.lora import Lora
from diffusion_lab.methods.method import Traits
from diffusion_lab.models.load import load_pipeline, modules
from diffusion_lab.plan.defaults import fill_defaults
from diffusion_lab.records import Evaluation, Prompt, PromptSet, References
from diffusion_lab.sampling.embeddings import PromptEmbeddings
from diffusion_lab.sampling.sample import plan
from diffusion_lab.system.modes import eval_mode
from diffusion_lab.system.rng import RngState
from diffusion_lab.system.store import LIMIT
from diffusion_lab.training.loop import evaluated_weights
from diffusion_lab.training.state import build_state
from tests.conftest import build_tiny_pipe, make_picture, pattern
from tests.methods.cases import CASES

CPU = torch.device("cpu")
PROMPTS = PromptSet(
    name="three",
    prompts=(
        Prompt("p000", "a photo of customcls dog", "a photo of a dog"),
        Prompt("p001", "portrait of customcls dog", "portrait of a dog"),
        Prompt("p002", "a photo of a dog", "a photo of a dog", {"identifier": "without"}),
    ),
    negative="blurry",
    sha256="",
)
PLAIN = PromptSet("plain", PROMPTS.prompts[2:], "blurry", "")
SETTINGS = Prompts(n=3, images_per_prompt=2, sampling_steps=2, batch_size=4)
METRICS = Metrics(names=["similarity", "aesthetics", "clip_text", "clip_image", "memorisation"], batch_size=4)


@pytest.fixture(autouse=True)
def on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sharing is on, with a cache of the test's own."""
    monkeypatch.setenv("DIFFUSION_LAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(LIMIT, "1")


@pytest.fixture(scope="module")
def bank() -> EncoderBank:
    return EncoderBank(METRICS)


@pytest.fixture(scope="module")
def seen(bank: EncoderBank) -> References:
    return reference_features(pattern(), bank, 64)


def config_of(folder: Path, method: Any, precision: str = "fp32", **more: Any) -> Config:
    return Config(
        model=Model(path=str(folder), device="cpu", precision=precision), method=method, data=Data(),
        memory=Memory(), prompts=SETTINGS, steps=Steps(total=4, every=2, batch_size=2), **more,
    )  # fmt: skip


def start(folder: Path, method: Any, precision: str = "fp32") -> tuple[Any, Shared | None]:
    """The state of a run before its first step, and what it shares."""
    config = config_of(folder, method, precision)
    pipe = load_pipeline(config.model, CPU)
    found = open_shared(config, pipe, CPU)
    return build_state(config, pipe, pattern()), found


def at_start(state: Any, bank: EncoderBank, seen: References, shared: Shared | None) -> Evaluation:
    """The evaluation of step 0, as the loop makes it."""
    with eval_mode(*modules(state.pipe)), evaluated_weights(state):
        return evaluate(state.pipe, PROMPTS, seen, bank, SETTINGS, 0, resolution=64, shared=shared)


def keyed(shared: Shared | None, pipe: Any, prompts: PromptSet = PROMPTS, **changes: Any) -> str | None:
    assert shared is not None
    resolution = changes.pop("resolution", 64)
    settings = dataclasses.replace(SETTINGS, **changes)
    embeddings = PromptEmbeddings()
    return shared.images_key(
        pipe, plan(prompts, settings), prompts.negative, settings, resolution, embeddings
    )


# --- methods --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def of_base(tiny_sd_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which a LoRA run has stored its start, and the images of the plain prompt."""
    cache = tmp_path_factory.mktemp("of_base")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIFFUSION_LAB_CACHE", str(cache))
        patch.setenv(LIMIT, "1")
        state, found = start(tiny_sd_folder, Lora(rank=2))
        bank = EncoderBank(METRICS)
        with eval_mode(*modules(state.pipe)):
            evaluate(
                state.pipe, PROMPTS, reference_features(pattern(), bank, 64), bank, SETTINGS, 0,
                resolution=64, shared=found,
            )  # fmt: skip
            images_of(state.pipe, PLAIN, SETTINGS, resolution=64, shared=found)
    return cache


@pytest.mark.parametrize("case", CASES)
def test_every_method_and_variant_shares_what_is_the_same_to_the_bit(
    case: str, of_base: Path, tiny_sd_folder: Path, bank: EncoderBank, seen: References,
    tmp_path: Path,
) -> None:  # fmt: skip
    shutil.copytree(of_base, tmp_path / "cache")
    method = CASES[case].make()
    state, found = start(tiny_sd_folder, method)
    assert found is not None
    assert method.traits.starts_unchanged
    without = at_start(state, bank, seen, None)
    shared = at_start(state, bank, seen, found)
    assert shared.rows == without.rows
    assert shared.summaries == without.summaries
    assert all((a == b).all() for a, b in zip(shared.images, without.images, strict=True))
    assert without.shared == ()
    # A new word begins as the words it is initialised with: other embeddings, so other images than LoRA's.
    assert shared.shared == (() if method.traits.learns_word else ("images", "features"))
    with eval_mode(*modules(state.pipe)):  # no new word in the prompt: the base model's image for all methods
        stored, taken = images_of(state.pipe, PLAIN, SETTINGS, resolution=64, shared=found)
        drawn, _ = images_of(state.pipe, PLAIN, SETTINGS, resolution=64)
    assert taken == ("images",)
    assert all((a == b).all() for a, b in zip(stored, drawn, strict=True))


def test_the_cases_are_of_every_method() -> None:
    assert {CASES[case].make().name for case in CASES} == set(METHODS)


def test_runs_of_one_new_word_share_with_each_other(
    tiny_sd_folder: Path, bank: EncoderBank, seen: References
) -> None:
    for case, taken in (
        ("textual_inversion", ()), ("textual_inversion_norm", ("images", "features")),
        ("pivotal", ("images", "features")), ("textual_inversion_3", ()),
    ):  # fmt: skip
        state, found = start(tiny_sd_folder, CASES[case].make())
        assert at_start(state, bank, seen, found).shared == taken, case


def test_a_hypernetwork_that_does_not_start_at_zero_shares_no_images(
    tiny_sd_folder: Path, bank: EncoderBank, seen: References
) -> None:
    method = Hypernetwork(activation="sigmoid", activate_output=True)
    assert not method.traits.starts_unchanged
    state, found = start(tiny_sd_folder, method)
    assert keyed(found, state.pipe) is None
    plain, _ = start(tiny_sd_folder, Lora(rank=2))
    ours, base = (at_start(one, bank, seen, None).images for one in (state, plain))
    assert any((a != b).any() for a, b in zip(ours, base, strict=True))
    assert at_start(state, bank, seen, found).shared == ()


@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
def test_other_output_activations_start_at_zero(
    activation: str, tiny_sd_folder: Path, bank: EncoderBank, seen: References
) -> None:
    method = Hypernetwork(activation=activation, activate_output=True, layer_norm=activation == "sigmoid")
    assert method.traits.starts_unchanged
    state, _ = start(tiny_sd_folder, method)
    plain, _ = start(tiny_sd_folder, Lora(rank=2))
    ours, base = (at_start(one, bank, seen, None).images for one in (state, plain))
    assert all((a == b).all() for a, b in zip(ours, base, strict=True))


def test_a_method_that_says_nothing_shares_no_images(tiny_sd_folder: Path) -> None:
    assert not Traits(trains=frozenset({"adapter"})).starts_unchanged


@pytest.mark.parametrize("case", ["lora", "dora", "dreambooth", "hypernetwork", "oft"])
def test_in_half_precision_runs_with_other_layers_do_not_share(
    case: str, tiny_sd_folder: Path, bank: EncoderBank, seen: References
) -> None:
    plain, found = start(tiny_sd_folder, Lora(rank=2), "bf16")
    at_start(plain, bank, seen, found)
    state, found = start(tiny_sd_folder, CASES[case].make(), "bf16")
    without = at_start(state, bank, seen, None)
    shared = at_start(state, bank, seen, found)
    assert shared.rows == without.rows
    assert ("images" in shared.shared) == (case == "lora")


# --- the key --------------------------------------------------------------------------------------------


def test_everything_that_the_images_depend_on_changes_the_key(tiny_sd_folder: Path) -> None:
    state, found = start(tiny_sd_folder, Lora(rank=2))
    pipe = state.pipe
    first = dataclasses.replace(PROMPTS.prompts[0], text="a photo of customcls man")
    keys = [
        keyed(found, pipe),
        keyed(found, pipe, noise_seed=1),
        keyed(found, pipe, sampling_steps=3),
        keyed(found, pipe, guidance_scale=2.0),
        keyed(found, pipe, guidance_scale=1.0),
        keyed(found, pipe, batch_size=3),
        keyed(found, pipe, images_per_prompt=1),
        keyed(found, pipe, resolution=128),
        keyed(found, pipe, dataclasses.replace(PROMPTS, negative="")),
        keyed(found, pipe, dataclasses.replace(PROMPTS, prompts=PROMPTS.prompts[:2])),
        keyed(found, pipe, dataclasses.replace(PROMPTS, prompts=PROMPTS.prompts[::-1])),
        keyed(found, pipe, dataclasses.replace(PROMPTS, prompts=(first, *PROMPTS.prompts[1:]))),
    ]
    with torch.no_grad():  # text encoders enter by what they do to the prompts
        pipe.text_encoder.get_input_embeddings().weight.add_(0.01)
    keys.append(keyed(found, pipe))
    assert None not in keys
    assert len(set(keys)) == len(keys)


def test_names_and_slots_of_prompts_do_not(tiny_sd_folder: Path) -> None:
    state, found = start(tiny_sd_folder, Lora(rank=2))
    renamed = tuple(
        dataclasses.replace(one, id=f"q{n}", plain="", slots={"a": "b"}) for n, one in enumerate(PROMPTS)
    )
    other = dataclasses.replace(PROMPTS, name="other", prompts=renamed, sha256="1")
    assert keyed(found, state.pipe, other) == keyed(found, state.pipe)


@pytest.mark.parametrize("part", ["unet", "vae", "scheduler", "vae/config", "copy"])
def test_another_model_has_another_key(part: str, tiny_sd_folder: Path, tmp_path: Path) -> None:
    state, found = start(tiny_sd_folder, Lora(rank=2))
    before = keyed(found, state.pipe)
    pipe = build_tiny_pipe()
    if part in ("unet", "vae"):
        with torch.no_grad():
            next(getattr(pipe, part).parameters()).flatten()[0] += 1e-3
    elif part == "scheduler":
        pipe.scheduler = type(pipe.scheduler).from_config({**pipe.scheduler.config, "beta_end": 0.011})
    elif part == "vae/config":
        pipe.vae.register_to_config(scaling_factor=0.4)
    pipe.save_pretrained(tmp_path / "other", safe_serialization=True)
    state, found = start(tmp_path / "other", Lora(rank=2))
    assert (keyed(found, state.pipe) == before) == (part == "copy")


def test_a_compiled_denoiser_is_not_shared(tiny_sd_folder: Path) -> None:
    state, found = start(tiny_sd_folder, Lora(rank=2))
    block = state.pipe.unet.down_blocks[0]
    block._compiled_call_impl = block._call_impl
    assert keyed(found, state.pipe) is None


def test_another_machine_or_code_has_another_key(
    tiny_sd_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def both() -> tuple[Any, Any]:
        state, found = start(tiny_sd_folder, Lora(rank=2))
        assert found is not None
        return keyed(found, state.pipe), found.blocks.facts

    before = both()
    monkeypatch.setattr(module, "code_digest", lambda rooms: "other")
    for one, other in zip(before, both(), strict=True):
        assert one != other
    monkeypatch.undo()


# --- features -------------------------------------------------------------------------------------------


def test_features_depend_on_encoder_and_batch(tiny_sd_folder: Path, tmp_path: Path) -> None:
    """Rows of one image in two batches are two entries: their last bits may differ."""
    _, found = start(tiny_sd_folder, Lora(rank=2))
    assert found is not None
    blocks = found.blocks
    images = [make_picture(n, 64, 64).pixels for n in range(5)]
    bank = EncoderBank(Metrics(batch_size=50), cache=blocks)
    bank.features(images, texts=None, needs={"clip_image"})
    assert (blocks.hits, blocks.misses) == (0, 1)
    again = EncoderBank(Metrics(batch_size=50), cache=blocks).features(
        images, texts=None, needs={"clip_image"}
    )
    assert (blocks.hits, blocks.misses) == (1, 1)
    assert again.clip_image is not None
    fresh = EncoderBank(Metrics(batch_size=50)).features(images, texts=None, needs={"clip_image"})
    assert torch.equal(again.clip_image, fresh.clip_image)
    bank.features(images[:4], texts=None, needs={"clip_image"})
    bank.features(images[::-1], texts=None, needs={"clip_image"})
    EncoderBank(Metrics(batch_size=2), cache=blocks).features(images, texts=None, needs={"clip_image"})
    bank.features(images, texts=None, needs={"face_found"})
    assert (blocks.hits, blocks.misses) == (1, 1 + 1 + 1 + 3 + 1)


def test_the_same_photos_are_encoded_once(tiny_sd_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, found = start(tiny_sd_folder, Lora(rank=2))
    assert found is not None
    needed = EncoderBank(METRICS)
    without = reference_features(pattern(), needed, 64)
    with needed.caching(found.blocks):
        reference_features(pattern(), needed, 64)
    assert needed.cache is None
    misses = found.blocks.misses
    second = EncoderBank(METRICS, cache=found.blocks)
    monkeypatch.setattr(second._clip, "embed_images", lambda *_: pytest.fail("it was stored"))
    again = reference_features(pattern(), second, 64)
    assert found.blocks.misses == misses
    for ours, theirs in ((again.train, without.train), (again.heldout, without.heldout)):
        assert ours is not None
        assert theirs is not None
        for name in ("face", "faces", "clip_image", "aesthetics"):
            one, other = getattr(ours, name), getattr(theirs, name)
            assert torch.equal(one.nan_to_num(9.0), other.nan_to_num(9.0)), name


# --- runs -----------------------------------------------------------------------------------------------


def test_an_evaluation_from_the_cache_leaves_the_random_streams_and_the_model(
    tiny_sd_folder: Path, bank: EncoderBank, seen: References
) -> None:
    state, found = start(tiny_sd_folder, Lora(rank=2))
    at_start(state, bank, seen, found)
    before, weights = RngState.capture(), [one.clone() for one in state.pipe.unet.parameters()]
    assert at_start(state, bank, seen, found).shared == ("images", "features")
    assert torch.equal(before.torch_cpu, RngState.capture().torch_cpu)
    assert before.python == RngState.capture().python
    assert all(torch.equal(a, b) for a, b in zip(weights, state.pipe.unet.parameters(), strict=True))
    assert not any(one.training for one in modules(state.pipe) if one is not state.pipe.unet)


def test_damaged_entries_are_computed_again(
    tiny_sd_folder: Path, bank: EncoderBank, seen: References, caplog: pytest.LogCaptureFixture
) -> None:
    state, found = start(tiny_sd_folder, Lora(rank=2))
    assert found is not None
    first = at_start(state, bank, seen, found)
    for path in found.store.folder.iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    again = at_start(state, bank, seen, found)
    assert "is damaged" in caplog.text
    assert again.shared == ()
    assert again.rows == first.rows
    assert at_start(state, bank, seen, found).shared == ("images", "features")


def test_off(tiny_sd_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(LIMIT, "0")
    assert start(tiny_sd_folder, Lora(rank=2))[1] is None
    assert not (tmp_path / "cache" / "evaluations").exists()


def run(folder: Path, words: list[str]) -> tuple[str, dict[str, Any]]:
    """SHA-256 of scores.parquet, and the record."""
    common = [
        "steps.total=2", "steps.every=1", "prompts.n=4", "prompts.batch_size=2", "prompts.sampling_steps=3",
        "data.n_images=4", "model.device=cpu", "tracker=files",
    ]  # fmt: skip
    assert perform(fill_defaults(compose([*words, *common])), folder).status == "completed"
    result = json.loads((folder / "result.json").read_text("utf-8"))
    return hashlib.sha256((folder / "scores.parquet").read_bytes()).hexdigest(), result


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [["method=lora"], ["method=dreambooth", "method.prior_images=2"], ["method=pivotal"]],
    ids=lambda words: words[0],
)
def test_whole_runs_have_the_same_scores(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without, with an empty cache, and with what other runs have left: LoRA's, and the run's own."""
    monkeypatch.setenv(LIMIT, "0")
    without, plain = run(tmp_path / "without", words)
    monkeypatch.setenv(LIMIT, "1")
    if words != ["method=lora"]:
        run(tmp_path / "lora", ["method=lora"])
    filled, _ = run(tmp_path / "filled", words)
    shared, result = run(tmp_path / "shared", [*words, "seed=0"])
    assert without == filled == shared
    first, *others = result["evaluations"]
    assert first["shared"] == ["images", "features"]
    assert set(first["seconds"]) == {"sampling", "encoding", "metrics"}  # what it took now
    assert first["seconds"]["sampling"] < plain["evaluations"][0]["seconds"]["sampling"]
    assert not any("shared" in one for one in [*others, *plain["evaluations"]])
    assert result["references"] == plain["references"]
    assert result["encoders"] == plain["encoders"]
    files = [path.relative_to(tmp_path / "without") for path in (tmp_path / "without" / "samples").iterdir()]
    for name in [*files, Path("prompts.json")]:
        assert (tmp_path / "without" / name).read_bytes() == (tmp_path / "shared" / name).read_bytes()


@pytest.mark.slow
def test_another_subject_of_the_class_shares_the_images_and_has_its_own_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LIMIT, "0")
    without, _ = run(tmp_path / "without", ["data.subject=carla"])
    monkeypatch.setenv(LIMIT, "1")
    first, _ = run(tmp_path / "anna", ["data.subject=anna"])
    second, result = run(tmp_path / "carla", ["data.subject=carla"])
    assert result["evaluations"][0]["shared"] == ["images", "features"]
    assert second == without
    assert second != first
