"""The schema, the files under conf/ and how they meet."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from diffusion_lab.cli.compose import compose, compose_raw, conf_folder, defaults, expand, groups, readable
from diffusion_lab.cli.explain import explain
from diffusion_lab.config import schema
from diffusion_lab.config.jobs import JOBS
from diffusion_lab.config.schema import Config, Data, as_plain_dict, to_yaml
from diffusion_lab.methods import METHODS
from diffusion_lab.methods.lora import Lora
from diffusion_lab.plan.defaults import fill_defaults
from diffusion_lab.records import UserError

NEEDED = {
    ("data", "folder"): ["data.folder=pictures"],
    ("job", "report"): ["job.runs=outputs"],
    ("job", "study"): ["job.runs=outputs"],
    ("job", "score"): ["job.images=outputs"],
    ("job", "train_aesthetics"): ["job.images=pictures", "job.ratings=AVA.txt"],
    ("model", "folder"): ["model.path=owner/name"],
    ("model", "single_file"): ["model.path=model.safetensors"],
    ("prompts", "file"): ["prompts.path=prompts.txt"],
}  # what an option cannot do without
OPTIONS = [(group, option) for group, options in groups().items() for option in options]


def test_groups_are_those_of_the_schema() -> None:
    fields = {field.name for field in dataclasses.fields(Config)} - {"seed", "resume", "as_typed"}
    assert set(groups()) == fields | {"experiment"}
    assert list(defaults())[:4] == ["job", "model", "method", "data"]


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=lambda value: value)
def test_every_option_composes_and_describes_itself(group: str, option: str) -> None:
    assert len(OPTIONS) > 20
    config = compose([f"{group}={option}", *NEEDED.get((group, option), [])])
    assert isinstance(config, Config)
    assert groups()[group][option], "the first comment of the file is its line in --help"


def test_defaults_are_real_dataclasses() -> None:
    config = compose()
    assert type(config.method) is Lora
    assert type(config.data) is Data
    assert (config.job.name, config.model.path, config.data.source) == ("finetune", "miniature", "miniature")
    assert config.prompts.n == 100
    assert config.tracker.wandb == "auto"


def test_conf_files_add_nothing_to_the_schema_and_take_nothing_away() -> None:
    """A default in a YAML file equals the dataclass's, so that Config() and the command line agree."""
    composed, made = as_plain_dict(compose()), as_plain_dict(Config())
    composed["metrics"].pop("ranges")
    made["metrics"].pop("ranges")
    assert composed == made


def test_nothing_is_optional_and_every_method_has_its_file() -> None:
    texts = [path.read_text() for path in conf_folder().rglob("*.yaml")]
    assert len(texts) > 20
    assert not any(
        "optional " in yaml.safe_dump((yaml.safe_load(text) or {}).get("defaults")) for text in texts
    )
    assert set(groups()["method"]) == set(METHODS)
    assert set(groups()["job"]) == set(JOBS)


def test_experiment_wins_over_the_groups_and_the_command_line_over_it() -> None:
    assert compose().prompts.n == 100
    assert compose(["experiment=debug"]).prompts.n == 4
    assert compose(["experiment=debug", "prompts=miniature"]).prompts.n == 100
    assert compose(["experiment=debug", "prompts.n=7"]).prompts.n == 7


def test_experiment_wins_over_config_yaml(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /steps: debug\nseed: 7\n"
    )
    words = [f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine"]
    config = compose(words)
    assert (config.seed, config.steps.total) == (7, 4)
    assert compose([*words, "seed=8"]).seed == 8


def test_experiments_choose_options_and_a_seed_only() -> None:
    files = list((conf_folder() / "experiment").glob("*.yaml"))
    assert files
    for file in files:
        assert set(yaml.safe_load(file.read_text()) or {}) <= {"defaults", "seed"}


@pytest.mark.parametrize("prefix", ["+", "++"])
def test_misspelt_key_with_a_plus_is_refused(prefix: str) -> None:
    with pytest.raises(UserError, match=r"data\.n_image: no such key.*did you mean 'n_images'"):
        compose([f"{prefix}data.n_image=14"])


def test_slots_alone_refuse_a_key_that_is_not_in_the_schema() -> None:
    classes = [value for value in vars(schema).values() if dataclasses.is_dataclass(value)]
    assert len(classes) >= 9
    for kind in classes:
        assert "__dict__" not in dir(kind), f"{kind.__name__} needs slots=True"
    with pytest.raises(AttributeError):
        Data().n_image = 14  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("data.n_images=0", "data.n_images=0: must be a whole number from 1 to 100000"),
        ("data.on_corrupt=ignore", "data.on_corrupt=ignore: must be one of error, skip"),
        ("data.source=foldr", "did you mean 'folder'"),
        ("data.folder=x", "add data=folder"),
        ("steps.total=0", "steps.total=0"),
        ("steps.every=-1", "steps.every=-1"),
        ("steps.batch_size=0", "steps.batch_size=0"),
        ("steps.gradient_accumulation=0", "steps.gradient_accumulation=0"),
        ("steps.max_grad_norm=-1", "steps.max_grad_norm=-1.0: must be a number at least 0"),
        ("steps.lr_scheduler=cosin", "did you mean 'cosine'"),
        ("steps.lr_warmup=5", "constant_with_warmup"),
        ("steps.log_every=0", "steps.log_every=0"),
        ("prompts.n=0", "prompts.n=0"),
        ("prompts.sampling_steps=0", "prompts.sampling_steps=0"),
        ("prompts.guidance_scale=nan", "prompts.guidance_scale=nan"),
        ("prompts.batch_size=0", "prompts.batch_size=0"),
        ("model.device=gpu", "model.device=gpu: must be one of auto, cpu, cuda, mps"),
        ("model.precision=fp8", "model.precision=fp8: must be one of auto, fp32, bf16, fp16"),
        ("model.resolution=100", "multiple of 8"),
        ("metrics.encoders=clip", "metrics.encoders=clip: must be one of miniature, full"),
        ("metrics.names=[]", "metrics.names"),
        ("metrics.names=[similarity,similarity]", "more than once"),
        ("metrics.weights.similarty=1", "did you mean 'similarity'"),
        ("metrics.weights={similarity:0}", "at least one weight"),
        ("metrics.ranges={similarity:[1,0]}", "low < high"),
        ("metrics.ranges={similarity:[0,1e-300]}", "differ by less than 1e-06"),
        ("metrics.batch_size=0", "metrics.batch_size=0"),
        ("tracker.wandb=on", "tracker.wandb"),
        ("tracker.progress=bar", "did you mean 'bars'"),
        ("tracker.images=-1", "tracker.images=-1"),
        ("job=report", "job.runs is missing"),
        ("job=score", "job.images is missing"),
        ("data=folder", "data.folder is missing"),
        ("model=folder", "model.path is missing"),
        ("seed=-1", "seed=-1"),
    ],
)
def test_values_are_checked_with_their_key(word: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        compose([word])
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("word", "told"),
    [
        (
            "method=lroa",
            "method=lroa: no such option; method has dreambooth, hypernetwork, lora, pivotal, textual_inversion; did you mean 'lora'?",
        ),
        ("metod=lora", "did you mean 'method'?"),
        (
            "experiment=dbug",
            "experiment=dbug: no such option; experiment has debug, full, none, small_card; did you mean 'debug'?",
        ),
        ("data.n_image=14", "data.n_image: no such key; data has source, subject,"),
        ("n_images=14", "did you mean 'data.n_images'?"),
        ("data.n_images=many", "data.n_images=many: must be a whole number"),
        ("steps.total=2.5", "steps.total=2.5: must be a whole number or null"),
        ("steps.max_grad_norm=x", "steps.max_grad_norm=x: must be a number"),
        ("data.flip=perhaps", "data.flip=perhaps: must be true or false"),
        ("metrics.names=similarity", "metrics.names=similarity: must be a list, [a,b], each a text"),
        ("metrics.weights.similarity=x", "metrics.weights.similarity=x: must be a number"),
        ("method.swich=1", "method.swich: this method has no such key; the methods' keys are name, variant"),
        ("method.swich=1", "did you mean 'switch'?"),
        ("method.rank=x", "method.rank=x: must be a whole number"),
        ("data.n_images", "data.n_images: cannot be read; write key=value"),
        ("data.n_images=4,14", "data.n_images=4,14: several values need -m"),
        ("data.n_images=range(1,3)", "several values need -m"),
        ("~data.n_images", "~data.n_images: "),
    ],
)
def test_hydras_errors_in_our_words(word: str, told: str) -> None:
    with pytest.raises(Exception) as caught:
        compose([word])
    message = explain(caught.value)
    assert told in message
    assert "\n" not in message
    assert "+" not in message.replace("~", ""), "never advise the plus that lets a typo in"


def test_weights_and_ranges_take_new_names_without_a_plus() -> None:
    config = compose(
        ["metrics.weights.similarity=2", "metrics.weights.diversity=1", "metrics.ranges.clip_text=[0,1]"]
    )
    assert config.metrics.weights == {"similarity": 2.0, "diversity": 1.0}
    assert config.metrics.ranges["clip_text"] == [0.0, 1.0]
    assert config.metrics.ranges["similarity"], "those of the file stay"


def test_ranges_of_the_protocol() -> None:
    ranges = compose(["metrics=full"]).metrics.ranges
    assert ranges == {"similarity": [0.45, 0.85], "aesthetics": [0.3, 0.7], "diversity": [0.5, 0.75]}
    full = compose(["prompts=full"]).prompts
    assert (full.sampling_steps, full.guidance_scale) == (25, None)  # of the family: 7.5 for Stable Diffusion


def test_fill_defaults_of_the_miniature() -> None:
    config = compose()
    filled = fill_defaults(config)
    assert (filled.steps.total, filled.steps.every) == (300, 50)
    assert (filled.method.learning_rate, filled.method.text_encoder_learning_rate) == pytest.approx(
        (1.5e-3, 1.5e-4)
    )
    assert (filled.method.alpha, filled.model.resolution) == (8.0, 64)
    assert filled.data.class_noun == "woman"
    assert config.steps.total is None, "the argument is left as it was"
    assert fill_defaults(filled) == filled


def test_fill_defaults_of_a_full_size_model() -> None:
    filled = fill_defaults(compose(["model=sd15", "data.n_images=7", "data.subject=ben", "method.alpha=4"]))
    assert (filled.steps.total, filled.steps.every) == (700, 117)
    assert (filled.method.learning_rate, filled.method.alpha) == (1e-4, 4.0)
    assert (filled.model.resolution, filled.data.class_noun) == (512, "man")


@pytest.mark.parametrize(
    ("model", "prior", "switch"), [("miniature", 0.1, 0.3), ("miniature_v", 0.1, 0.3), ("sd15", 1.0, 0.5)]
)
def test_defaults_that_depend_on_the_models_size(model: str, prior: float, switch: float) -> None:
    words = [f"model={model}", "data.subject=ben"]
    assert fill_defaults(compose([*words, "method=dreambooth"])).method.prior_weight == prior
    assert fill_defaults(compose([*words, "method=pivotal"])).method.switch == switch
    none = compose([*words, "method=dreambooth", "method.prior_weight=0"])
    assert fill_defaults(none).method.prior_weight == 0.0


def test_given_values_are_kept() -> None:
    words = ["steps.total=31", "steps.every=10", "method.learning_rate=0.5", "data.class_noun=person"]
    filled = fill_defaults(compose(words))
    assert (filled.steps.total, filled.steps.every, filled.method.learning_rate) == (31, 10, 0.5)
    assert filled.data.class_noun == "person"


def test_plain_dict_and_yaml_say_the_same() -> None:
    plain = as_plain_dict(fill_defaults(compose()))
    assert yaml.safe_load(to_yaml(fill_defaults(compose()))) == plain
    assert list(plain)[:4] == ["seed", "job", "model", "method"]
    again = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), plain))
    assert again == fill_defaults(compose())


def test_expand_is_the_product_in_hydras_order() -> None:
    jobs = expand(["data.n_images=4,14", "data.subject=anna,ben", "seed=1"])
    assert [job[:2] for job in jobs] == [
        ["data.n_images=4", "data.subject=anna"], ["data.n_images=4", "data.subject=ben"],
        ["data.n_images=14", "data.subject=anna"], ["data.n_images=14", "data.subject=ben"],
    ]  # fmt: skip
    assert all(job[2] == "seed=1" for job in jobs)


def test_sweep_folders_are_readable() -> None:
    assert readable("data.n_images=4,model.path=/a b/c") == "data.n_images=4,model.path=-a-b-c"
    assert len(readable("x" * 500)) == 80
    assert "/" not in readable("model.path=../../x")
    sweep = compose_raw(["tracker.group=first try"]).hydra.sweep.dir
    assert sweep.startswith("outputs/sweeps/first-try_20")
    assert compose_raw([]).hydra.sweep.dir.startswith("outputs/sweeps/20")
