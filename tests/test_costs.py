"""The plan's time and memory: they grow with the work, follow the card, and say how sure they are."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffusion_lab.cli.compose import compose
from diffusion_lab.config.schema import Config
from diffusion_lab.families import FAMILIES
from diffusion_lab.models import devices
from diffusion_lab.models.devices import Card
from diffusion_lab.plan import costs, footprint
from diffusion_lab.plan.costs import Cost, estimate, memory_warnings, speeds, time_rows
from diffusion_lab.plan.defaults import fill_defaults
from diffusion_lab.plan.numbers import PlannedEvaluations
from diffusion_lab.plan.shown import duration
from diffusion_lab.records import UserError

DATA = ["data=folder", "data.folder=.", "data.class_noun=dog"]
BASE = {"steps.batch_size": 2, "method.rank": 8, "steps.total": 100, "prompts.n": 20, "prompts.sampling_steps": 10,
        "prompts.batch_size": 4, "model.resolution": 512, "data.n_images": 14}  # fmt: skip


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[[Card | None], None]:
    def pretend(card: Card | None) -> None:
        for module in (costs, devices):
            monkeypatch.setattr(module, "has_gpu", lambda: card is not None)
        monkeypatch.setattr(devices, "_cards", lambda: () if card is None else (card,))
        monkeypatch.setattr(devices, "cpu_flags", lambda: frozenset({"avx2"}))
        monkeypatch.setattr(costs, "cores", lambda: 2)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return pretend


_composed: dict[tuple[str, ...], Config] = {}


def cost(*words: str, **changed: float) -> Cost:
    """Of a full-size LoRA with `BASE` and what is changed; keys with __ for the dot."""
    values = BASE | {key.replace("__", "."): value for key, value in changed.items()}
    if words not in _composed:
        _composed[words] = compose(["experiment=full", *DATA, *words])
    config = fill_defaults(_composed[words])
    for key, value in values.items():
        group, _, name = key.partition(".")
        if hasattr(getattr(config, group), name):
            setattr(getattr(config, group), name, value)
    sampled = int(values["prompts.n"] * 3)
    forwards = int(sampled * values["prompts.sampling_steps"] * 2)
    return estimate(config, forwards=forwards, sampled=sampled, evaluations=3)


CARDS = {
    "cpu": None, "RTX 3060": Card("NVIDIA GeForce RTX 3060", 8.6, 12e9), "T4": Card("Tesla T4", 7.5, 16e9),
    "4090": Card("NVIDIA GeForce RTX 4090", 8.9, 24e9), "A100": Card("NVIDIA A100-SXM4-80GB", 8.0, 80e9),
    "H100": Card("NVIDIA H100 80GB HBM3", 9.0, 80e9), "unknown": Card("NVIDIA Nobody 1", 8.0, 8e9),
}  # fmt: skip

GROWS = [  # key, a larger value, what must grow with it
    ("steps__batch_size", 64, ("training_seconds", "training")),
    ("method__rank", 512, ("training_seconds", "training", "disk_bytes")),
    ("steps__total", 1000, ("training_seconds",)),
    ("prompts__n", 200, ("evaluation_seconds",)),
    ("prompts__sampling_steps", 50, ("evaluation_seconds",)),
    ("prompts__batch_size", 20, ("evaluation",)),
    ("model__resolution", 768, ("training_seconds", "evaluation_seconds", "training", "evaluation", "start")),
]


def amount(found: Cost, name: str) -> float:
    return found.peaks[name] if name in found.peaks else float(getattr(found, name))


@pytest.mark.parametrize(("key", "larger", "grows"), GROWS)
@pytest.mark.parametrize("card", ["cpu", "4090"])
def test_more_work_costs_more(
    on: Callable[..., None], card: str, key: str, larger: float, grows: tuple[str, ...]
) -> None:
    on(CARDS[card])
    base, more = cost(), cost(**{key: larger})
    for name in grows:
        assert amount(more, name) > 1.005 * amount(base, name), name


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    card=st.sampled_from(sorted(CARDS)),
    method=st.sampled_from(["lora", "dreambooth", "textual_inversion", "pivotal", "hypernetwork"]),
    key=st.sampled_from([key for key, _, _ in GROWS]),
    values=st.lists(st.integers(1, 100_000), min_size=2, max_size=4, unique=True).map(sorted),
)
def test_it_never_costs_less_to_do_more(
    on: Callable[..., None], card: str, method: str, key: str, values: list[int]
) -> None:
    on(CARDS[card])
    if key == "model__resolution":
        values = sorted({64 * (1 + value % 32) for value in values})
    if key == "method__rank":  # its bound
        values = sorted({1 + value % 4096 for value in values})
    found = [cost(f"method={method}", **{key: value}) for value in values]
    if key == "prompts__batch_size":  # images drawn together take less time, and more memory
        assert found[-1].evaluation_seconds <= found[0].evaluation_seconds
        found = [dataclasses.replace(one, evaluation_seconds=1.0) for one in found]
    for name in (
        "training_seconds",
        "evaluation_seconds",
        "memory_bytes",
        "disk_bytes",
        "start",
        "training",
        "evaluation",
    ):
        amounts = [amount(one, name) for one in found]
        assert all(a > 0 for a in amounts)
        assert all(after >= before * (1 - 1e-9) for before, after in itertools.pairwise(amounts)), name


def test_a_faster_card_takes_less_time(on: Callable[..., None]) -> None:
    seconds = []
    for name in ("cpu", "RTX 3060", "T4", "4090", "A100"):
        on(CARDS[name])
        seconds.append(cost(steps__batch_size=8, steps__total=1000, prompts__batch_size=20).seconds)
    assert seconds == sorted(seconds, reverse=True)
    on(CARDS["RTX 3060"])
    steps = cost(steps__total=1000, steps__batch_size=1)
    assert steps.training_seconds > 60, "not the 19 s of a data-centre card"


@pytest.mark.parametrize(("card", "within"), [("cpu", 3.0), ("4090", 2.0), ("H100", 2.0), ("unknown", 4.0)])
def test_the_plan_says_how_sure_it_is(on: Callable[..., None], card: str, within: float) -> None:
    on(CARDS[card])
    found = cost()
    rows = time_rows(found, duration)
    assert f"within a factor of {within:g} (estimated)" in rows[0]
    assert ("Nobody" in rows[-1] and "is taken to do" in rows[-1] and "measures" in rows[-1]) == (
        card == "unknown"
    )


def test_precision_counts(on: Callable[..., None]) -> None:
    on(CARDS["A100"])
    half, single = cost(), cost("model.precision=fp32")
    assert single.evaluation_seconds > 3 * half.evaluation_seconds
    on(CARDS["T4"])
    assert cost("model.precision=bf16").training_seconds > 3 * cost("model.precision=fp16").training_seconds
    on(CARDS["cpu"])  # emulates bf16
    assert cost("model.precision=bf16").training_seconds > 30 * cost("model.precision=fp32").training_seconds


def test_a_batch_is_no_larger_than_what_there_is_to_draw(on: Callable[..., None]) -> None:
    """Two images of a batch of eight are two: planned as eight, they took half of what was said."""
    on(CARDS["cpu"])
    few = cost(prompts__n=2, prompts__batch_size=8)
    assert few.peaks["evaluation"] == cost(prompts__n=2, prompts__batch_size=2).peaks["evaluation"]
    assert (
        few.peaks["evaluation"]
        < cost(prompts__n=8, prompts__batch_size=8).peaks["evaluation"] - 4 * footprint.DECODED
    )


@pytest.mark.parametrize(
    ("words", "culprit"),
    [
        (["steps.batch_size=4096"], "steps.batch_size=4096"),
        (["prompts.batch_size=4096", "prompts.n=4096"], "prompts.batch_size=4096"),
        (["method.rank=4096", "steps.batch_size=1", "prompts.batch_size=1"], "method.rank=4096"),
    ],
)
@pytest.mark.parametrize("model", ["experiment=full", "model=miniature"])
def test_what_no_device_could_hold_is_refused_by_its_key(
    on: Callable[..., None], monkeypatch: pytest.MonkeyPatch, model: str, words: list[str], culprit: str
) -> None:
    on(None)
    config = fill_defaults(compose([model, *DATA, *words]))
    found = estimate(config, forwards=1, sampled=1, evaluations=2)
    monkeypatch.setattr(costs, "device_bytes", lambda config: found.memory_bytes / 9)
    with pytest.raises(UserError, match=f"{culprit}: about .* GiB of memory are needed"):
        memory_warnings(config, found)


def test_the_miniatures_plan_scales_too(on: Callable[..., None]) -> None:
    on(None)

    def peak(*words: str) -> float:
        config = fill_defaults(compose(["model=miniature", *words]))
        return estimate(config, forwards=1, sampled=1, evaluations=2).memory_bytes

    assert peak() < 3e9
    assert peak("steps.batch_size=4000") > 2 * peak()
    assert peak("method.rank=4096") > 1.2 * peak()


def test_speeds_of_a_hidden_or_silent_card(on: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    on(CARDS["A100"])
    monkeypatch.setattr(devices, "_cards", lambda: ())
    config = fill_defaults(compose(["experiment=full", *DATA, "model.precision=bf16"]))
    assert "nvidia-smi does not describe" in speeds(config).assumed
    assert costs.device_bytes(config) is None


def test_positions_are_those_of_the_network() -> None:
    import torch
    from diffusers import UNet2DConditionModel

    from benchmarks.full_size import UNET

    with torch.device("meta"):
        unet = UNet2DConditionModel(**UNET)
    seen: list[int] = []
    for name, module in unet.named_modules():
        if name.endswith("transformer_blocks.0"):
            module.register_forward_pre_hook(lambda _, given: seen.append(int(given[0].shape[1])))
    latents = torch.zeros(1, 4, 64, 64, device="meta")
    unet(latents, torch.zeros(1, device="meta"), torch.zeros(1, 77, 768, device="meta"))
    assert FAMILIES["sd"].work({"unet": unet.config}, 64).positions == sum(seen)


@pytest.mark.parametrize(
    "words",
    [
        ["prompts=dreambooth_live", "prompts.n=30"],
        ["prompts=paper", "prompts.n=7"],
        ["prompts.n=40"],
        ["prompts=paper", "prompts.n=48", "prompts.images_per_prompt=1"],
    ],
)
def test_the_records_estimate_is_the_plans(words: list[str], tmp_path: Path) -> None:
    """Also where a set has fewer prompts than asked for, so that each has more images."""
    from diffusion_lab.data.prompts import load_prompts
    from diffusion_lab.jobs import check
    from diffusion_lab.plan.numbers import planned

    config = fill_defaults(compose([*words, "data.class_noun=dog"]))
    plan = check(config, tmp_path / "run")
    assert plan.cost is not None
    prompts = load_prompts(config.prompts, identifier=config.data.identifier, class_noun="dog")
    numbers = planned(config, prompts)
    assert numbers.evaluations == plan.evaluations
    assert numbers.sampled == plan.images_sampled
    assert numbers.forwards == plan.forwards
    recorded = costs.phases(config, numbers)
    assert recorded["evaluation"]["seconds"] == pytest.approx(plan.cost.evaluation_seconds)
    assert recorded["training"]["seconds"] == pytest.approx(plan.cost.training_seconds)


def test_the_calibration_measures_and_disturbs_nothing() -> None:
    import torch

    from diffusion_lab.plan.calibrate import achieved

    before = torch.get_rng_state()
    assert 1e-4 < achieved(torch.device("cpu"), "fp32", seconds=0.05) < 1e3
    assert torch.equal(before, torch.get_rng_state())


def test_an_unknown_card_is_measured_at_the_start(
    on: Callable[..., None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    import logging

    import torch

    from diffusion_lab.plan import calibrate

    caplog.set_level(logging.INFO, "diffusion_lab")
    monkeypatch.setattr(calibrate, "achieved", lambda device, precision, seconds: 100.0)
    config = fill_defaults(compose(["experiment=full", *DATA]))
    for card, told in (("4090", False), ("unknown", True)):
        on(CARDS[card])
        config.model.precision = "bf16"
        calibrate.tell(config, PlannedEvaluations((0, 10), 4, 100), torch.device("cuda"))
        assert ("does 100 TFLOP/s" in caplog.text) == told
