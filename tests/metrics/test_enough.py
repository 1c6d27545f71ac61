"""What the metrics need, checked on what they get: over prompt sets, numbers of prompts and images, and metrics."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from diffusion_lab.config.schema import Config, Data, Metrics, Model, Prompts
from diffusion_lab.data.prompts import SETS, images_per_prompt, load_prompts
from diffusion_lab.evaluation.evaluate import score
from diffusion_lab.evaluation.metrics import METRICS, NEEDS_TWINS, select
from diffusion_lab.evaluation.metrics.enough import check_enough, without_value
from diffusion_lab.plan.sampling import enough_images, ignored_negative
from diffusion_lab.records import Features, Prompt, PromptSet, References, UserError
from diffusion_lab.sampling.sample import plan

BUILT_IN = sorted(set(SETS) - {"file", "table"})
PAIRS = {"diversity", "vendi", "kid", "kid_clip", "fid", "fid_clip", "fid_legacy"}


def features(n: int, seed: int = 0) -> Features:
    rng = np.random.default_rng(seed)

    def unit() -> torch.Tensor:
        return torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(n, 6))), dim=1).float()

    return Features(
        n=n, face=unit(), clip_image=unit(), clip_text=unit(), dino=unit(),
        aesthetics=torch.from_numpy(rng.uniform(2, 8, n)).float(),
        inception=torch.from_numpy(rng.normal(1, 1, (n, 5))).float(),
    )  # fmt: skip


REFERENCES = References(train=features(4, 1), heldout=features(3, 2), impostors=features(3, 3))


def loaded(name: str, n: int, each: int) -> tuple[Prompts, PromptSet]:
    settings = Prompts(name=name, n=n, images_per_prompt=each)
    return settings, load_prompts(settings, identifier="customcls", class_noun="dog")


@pytest.mark.parametrize("each", [1, 2, 3])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 20])
@pytest.mark.parametrize("name", BUILT_IN)
def test_every_metric_is_refused_beforehand_or_comes_to_its_end(name: str, n: int, each: int) -> None:
    settings, prompts = loaded(name, n, each)
    planned = plan(prompts, settings)
    images = [item.prompt for item in planned]
    assert len(images) == len(prompts) * images_per_prompt(settings, prompts)
    subject = sum(p.slots.get("identifier") != "without" for p in images)
    for metric in select(list(METRICS)):
        if metric.name in PAIRS and subject == 1:
            with pytest.raises(UserError, match=rf"prompts\.n.*{metric.name}"):
                check_enough([metric], images)
            continue
        check_enough([metric], images)
        warned = without_value([metric], images, 4)
        rows, found = score(features(len(images)), REFERENCES, [metric], planned, 0)
        summary = found[metric.name]
        if summary.mean is None:
            assert summary.note
            assert metric.name == "class_drift" or any(metric.name in text for text in warned)
        else:
            assert not any(text.startswith(metric.name) for text in warned)
        assert all(row.value is None or np.isfinite(row.value) for row in rows)


def test_the_remedy_of_the_message_helps() -> None:
    """`prompts=paper prompts.n=2 prompts.images_per_prompt=1`: one image with the identifier."""
    settings, prompts = loaded("paper", 2, 1)
    with pytest.raises(
        UserError, match=r"1 is of a prompt with the identifier.*prompts\.n to 4 or more, or prompts"
    ) as error:
        check_enough(select(["diversity"]), list(prompts))
    assert "remove diversity from metrics.names" in str(error.value)
    for n, each in ((4, 1), (2, 2)):
        settings, prompts = loaded("paper", n, each)
        check_enough(select(list(METRICS)), [item.prompt for item in plan(prompts, settings)])


@pytest.mark.parametrize(
    ("n", "words"), [(1, "one image per evaluation"), (2, "two images per evaluation"), (3, None)]
)
def test_so_few_images_are_warned_about(n: int, words: str | None) -> None:
    _, prompts = loaded("miniature", n, 1)
    said = without_value(select(["aesthetics"]), list(prompts), 4)
    assert [text for text in said if "per evaluation" in text] == ([said[0]] if words else [])
    assert words is None or said[0].startswith(f"{words}: too few")


def test_one_prompt_is_warned_about() -> None:
    settings, prompts = loaded("miniature", 1, 8)
    said = without_value(select(["aesthetics"]), [item.prompt for item in plan(prompts, settings)], 4)
    assert "noise only" in said[0]


def test_one_training_picture_has_no_distance() -> None:
    _, prompts = loaded("miniature", 4, 1)
    assert "kid_clip will have no value: it needs two training photos" in without_value(
        select(["kid_clip"]), list(prompts), 1
    )[0]  # fmt: skip


def test_the_plan_asks_for_what_will_be_drawn() -> None:
    config = Config(
        metrics=Metrics(names=["diversity"]), prompts=Prompts(name="paper", n=2, images_per_prompt=1),
        data=Data(), model=Model(),
    )  # fmt: skip
    _, prompts = loaded("paper", 2, 1)
    with pytest.raises(UserError, match="diversity"):
        enough_images(config, prompts)
    assert enough_images(replace(config, metrics=Metrics(names=["clip_text"])), prompts)


@pytest.mark.parametrize(
    ("scale", "negative", "warned"),
    [(1.0, "blurry", True), (0.0, "blurry", True), (1.5, "blurry", False), (1.0, "", False)],
)
def test_a_negative_prompt_without_guidance_is_warned_about(
    scale: float, negative: str, warned: bool
) -> None:
    prompts = PromptSet("one", (Prompt("p000", "a", "a"),), negative, "")
    said = ignored_negative(Prompts(guidance_scale=scale), prompts)
    assert [("negative prompt is ignored" in text, f"guidance_scale={scale:g}" in text) for text in said] == (
        [(True, True)] if warned else []
    )


@pytest.mark.parametrize("name", BUILT_IN)
def test_metrics_of_twins_are_predicted(name: str) -> None:
    settings, prompts = loaded(name, 4, 1)
    planned = plan(prompts, settings)
    images = [item.prompt for item in planned]
    metrics = select(sorted(NEEDS_TWINS - {"class_drift"}))
    _, found = score(features(len(images)), REFERENCES, metrics, planned, 0)
    empty = {metric for metric, summary in found.items() if summary.mean is None}
    assert {text.split()[0] for text in without_value(metrics, images, 4) if "no value" in text} == empty
