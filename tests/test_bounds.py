"""Every number of the configuration with zero, negative, enormous and non-finite values: answered at once."""

from __future__ import annotations

import dataclasses
import math
import time
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from diffusion_lab.cli.compose import compose
from diffusion_lab.config import schema
from diffusion_lab.config.jobs import JOBS
from diffusion_lab.config.schema import Config, number_of_evaluations
from diffusion_lab.jobs import check
from diffusion_lab.methods import METHODS
from diffusion_lab.plan.defaults import fill_defaults
from diffusion_lab.records import UserError
from diffusion_lab.values.bounds import BOUNDS
from diffusion_lab.values.checks import bounded

GROUPS: dict[str, type] = {
    "model": schema.Model, "data": schema.Data, "steps": schema.Steps, "memory": schema.Memory,
    "prompts": schema.Prompts, "metrics": schema.Metrics, "tracker": schema.Tracking,
}  # fmt: skip
NEEDED = ("images", "ratings", "runs", "output")  # keys of jobs that have to be given
BAD = (-1, 0, 1e12, 10**21, 10**400, -(10**400), math.nan, math.inf, -math.inf, True, "x", 1.5, 10**5000)


def numbers() -> Iterator[tuple[str, type, str, bool]]:
    """(key, class, field, whether it is a list or table of numbers) of every numeric key."""
    classes = list(GROUPS.items())
    classes += [("method", method) for method in METHODS.values()] + [("job", job) for job in JOBS.values()]
    for group, kind in classes:
        for name, hint in typing.get_type_hints(kind).items():
            if name not in {field.name for field in dataclasses.fields(kind)}:
                continue
            told = str(hint)
            if hint in (int, float) or any(one in told for one in ("int", "float")):
                yield f"{group}.{name}", kind, name, "list" in told or "dict" in told


def refusal(make: Callable[..., object], *given: object, **named: object) -> str:
    """The message with which it is refused, or nothing."""
    try:
        make(*given, **named)
    except UserError as error:
        return str(error)
    return ""


KEYS = list(numbers())
RATED = ["job=train_aesthetics", "job.images=x", "job.ratings=x"]


def test_every_number_has_a_bound_with_its_reason() -> None:
    """And every bound belongs to a key: a new key without a bound, or a bound left over, fails here."""
    assert {key for key, *_ in KEYS} | {"seed"} == set(BOUNDS)
    for key, bound in BOUNDS.items():
        assert -math.inf < bound.low < bound.high < math.inf, key
        assert len(bound.why.split()) > 2, key


@pytest.mark.parametrize(("key", "kind", "name", "many"), KEYS, ids=lambda value: str(value))
def test_any_number_is_answered_at_once(key: str, kind: type, name: str, many: bool) -> None:
    refused = 0
    needed = {part.name: "x" for part in dataclasses.fields(kind) if part.name in NEEDED}
    for value in BAD:
        given: Any = [value] if many else value
        if name in ("weights", "ranges"):
            given = {"similarity": value if name == "weights" else [0.0, value]}
        if name == "layers":
            given = [1.0, value, 1.0]
        started = time.perf_counter()
        told = refusal(kind, **(needed | {name: given}))
        if told:
            refused += 1
            assert told.startswith(key), value
            assert len(told) < 400
        else:
            bound = BOUNDS[key]
            assert not isinstance(value, bool), key
            assert bound.low <= value <= bound.high, (key, value)
            assert isinstance(value, int) or not bound.whole, (key, value)
        assert time.perf_counter() - started < 0.1, (key, value)
    assert refused >= 9


@pytest.mark.parametrize("key", list(BOUNDS))
def test_bounds_themselves(key: str) -> None:
    bound = BOUNDS[key]
    ends = [int(end) if bound.whole else float(end) for end in (bound.low, bound.high)]
    for end, is_open in zip(ends, (bound.above, bound.below), strict=True):
        if is_open:
            with pytest.raises(UserError):
                bounded(key, end)
        else:
            bounded(key, end)
    with pytest.raises(UserError, match=r"must be a") as caught:
        bounded(key, ends[1] + 1 if bound.whole else 2 * ends[1])
    assert bound.why in str(caught.value)
    with pytest.raises(UserError) as caught:
        bounded(key, ends[0] - 1)
    assert bound.why not in str(caught.value), "the reason is the upper bound's"


@pytest.mark.parametrize(
    "word",
    [
        "steps.total=1000000000000", "steps.total=1000000000000000000000", "steps.every=1000000000000",
        "prompts.n=1000000000", "prompts.images_per_prompt=100000", "method.rank=100000", "steps.batch_size=1000000",
        "prompts.batch_size=1000000", "metrics.batch_size=1000000000", "data.n_images=10000000000",
        "steps.gradient_accumulation=1000000000", "steps.lr_warmup=1000000000000", "prompts.sampling_steps=100000",
        "seed=4294967296", "method.alpha=1e30", "method.learning_rate=1e40",
        "prompts.guidance_scale=1e30", "model.resolution=1000000000", "model.resolution=1000000007",
        "steps.log_every=99999999999999999999", "tracker.images=99999999999", "metrics.weights.similarity=1e300",
    ],
)  # fmt: skip
def test_on_the_command_line(word: str) -> None:
    with pytest.raises(UserError, match=word.partition("=")[0]):
        compose([word])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["steps.total=10000000", "steps.every=1"], "steps.every=1: 10,000,001 evaluations"),
        (["steps.total=1000000", "steps.every=99"], "set steps.every=10000 or more"),
        (["prompts.n=1000", "prompts.images_per_prompt=51"], "51,000 images"),
        (["job=generate", "job.weight=1e30"], "job.weight=1e+30"),
        ([*RATED, "job.hidden=[" + ",".join("8" * 17) + "]"], "job.hidden: has 17 layers"),
        (
            ["method=hypernetwork", "method.layers=[" + ",".join("1" * 17) + "]"],
            "method.layers: has 17 widths",
        ),
    ],
)
def test_products_are_bounded_too(words: list[str], told: str) -> None:
    with pytest.raises(UserError) as caught:
        compose(words)
    assert told in str(caught.value)


def test_evaluations_are_counted_as_they_are_made() -> None:
    for total in range(1, 40):
        for every in range(1, 45):
            assert number_of_evaluations(total, every) == len({*range(0, total, every), total})


def test_the_largest_run_is_planned_in_a_second(tmp_path: Path) -> None:
    """As many steps and evaluations as are allowed: nothing in the plan grows with them but a tuple of evaluations."""
    words = [
        "steps.total=10000000",
        "steps.every=1001",
        "prompts.n=2",
        "model.device=cpu",
        "tracker.wandb=disabled",
    ]
    config = fill_defaults(compose(words))
    started = time.perf_counter()
    told = refusal(check, config, tmp_path / "run")
    assert not told or "are free and the run needs" in told, "ten thousand evaluations need a large disk"
    assert time.perf_counter() - started < 5


def test_defaults_that_multiply_are_checked_after_they_are_filled_in(tmp_path: Path) -> None:
    """steps.total is 100 * n_images where it is null."""
    config = fill_defaults(compose(["model=sd15", "data.n_images=14", "steps.every=1"]))
    config.steps.total = 10_000_000
    with pytest.raises(UserError, match=r"steps.every=1: 10,000,001 evaluations"):
        check(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("table", "n", "told"),
    [
        (
            "template: a {subject} {a} {b}\nslots: {a: [x, y], b: [u, v, w]}\n",
            7,
            "no more than 6 different prompts",
        ),
        ("template: a {subject} {a}\nslots: {a: [x]}\n", 50_000, "no more than 1 different prompts"),
    ],
)
def test_no_more_prompts_than_a_table_can_give(tmp_path: Path, table: str, n: int, told: str) -> None:
    (tmp_path / "table.yaml").write_text(table)
    words = ["prompts=table", f"prompts.path={tmp_path / 'table.yaml'}", "model.device=cpu"]
    with pytest.raises(UserError) as caught:
        check(fill_defaults(compose([*words, f"prompts.n={n}"])), tmp_path / "run")
    assert told in str(caught.value)
    assert "prompts.n" in str(caught.value)


def test_seed_of_the_whole() -> None:
    for value in BAD:
        if value == 0 and not isinstance(value, bool):
            continue
        with pytest.raises(UserError, match=r"^seed="):
            Config(seed=value)  # type: ignore[arg-type]


def table() -> str:
    """docs/bounds.md as it should be."""
    lines = [
        "# Bounds of the numbers",
        "",
        "Every number of the configuration, the values it may have, and the reason for the upper bound. An upper bound is not",
        "a recommendation: larger values can only be mistakes, or would take too long to check. A value outside the bounds is",
        "refused with the name of its key. The plan warns about values that are allowed but unusual.",
        "",
        "| key | from | to | reason for the upper bound |",
        "|---|---|---|---|",
    ]
    for key, bound in BOUNDS.items():
        low, high = (
            f"{end:,.0f}" if end == int(end) < 1e12 else f"{end:g}" for end in (bound.low, bound.high)
        )
        low, high = f"above {low}" if bound.above else low, f"below {high}" if bound.below else high
        lines.append(f"| `{key}` | {low} | {high} | {bound.why} |")
    return "\n".join([*lines, ""])


def test_the_table_in_the_docs_is_this_one() -> None:
    file = Path(__file__).resolve().parents[1] / "docs" / "bounds.md"
    assert file.read_text(encoding="utf-8") == table()
