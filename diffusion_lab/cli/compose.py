"""Composes a checked `Config` from command line overrides and the files under `conf/`.

This module, its neighbours `yaml_texts.py`, `explain.py`, `endings.py`, `hand_over.py` and `sweep.py`, and
`config/texts.py` are the only ones that know Hydra and OmegaConf.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf, open_dict

from diffusion_lab.cli.engines import gpu_count
from diffusion_lab.cli.sweep_names import job_folder, limited
from diffusion_lab.config.jobs import JOBS, Job, no_such_key
from diffusion_lab.config.schema import Config
from diffusion_lab.config.texts import exact, recorded
from diffusion_lab.methods import METHODS
from diffusion_lab.records import UserError
from diffusion_lab.values.checks import closest, one_of


def conf_folder() -> Path:
    """Where the YAML files are: beside the package in a checkout, inside it when installed from a wheel."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise UserError(f"config.yaml is missing beside {package}: install the package again")


def register() -> None:
    """Registers the schemas and our resolvers with Hydra. Can be called repeatedly."""
    from hydra.core.config_store import ConfigStore

    from diffusion_lab.cli import plugins
    from diffusion_lab.cli.optuna_sweeper import OptunaSweeper

    plugins.register(OptunaSweeper)
    store = ConfigStore.instance()
    schema = OmegaConf.structured(Config)
    schema.method = schema.job = None  # otherwise they would have the default's type, which fits no other
    for table in (schema.metrics.weights, schema.metrics.ranges, schema.as_typed):
        OmegaConf.set_struct(table, False)  # metrics.weights.similarity=2 without a plus
    store.store(name="schema", node=schema)
    for group, kinds in (("method", METHODS), ("job", JOBS)):
        for name, kind in kinds.items():
            store.store(group=f"schema/{group}", name=name, node=kind)
    OmegaConf.register_new_resolver("readable", readable, replace=True)
    OmegaConf.register_new_resolver("job_folder", job_folder, replace=True)
    OmegaConf.register_new_resolver("sweep_name", _sweep_name, replace=True, use_cache=True)
    OmegaConf.register_new_resolver("gpu_count", gpu_count, replace=True)


def readable(text: str) -> str:
    """A text as a folder name: no slashes, no spaces, at most 80 characters."""
    return limited(str(text))


def _sweep_name(group: str | None) -> str:
    """The sweep's folder: date and time, preceded by the tracker's group if given."""
    now = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    return f"{readable(group)}_{now}" if group else now


def groups() -> dict[str, dict[str, str]]:
    """Group -> option -> its one-line description (the first comment of its file)."""
    found: dict[str, dict[str, str]] = {}
    order = list(defaults())
    folders = [folder for folder in conf_folder().iterdir() if folder.is_dir() and folder.name != "hydra"]
    for folder in sorted(
        folders, key=lambda f: (order.index(f.name) if f.name in order else len(order), f.name)
    ):
        found[folder.name] = {file.stem: _description(file) for file in sorted(folder.glob("*.yaml"))}
    return found


def defaults() -> dict[str, str]:
    """Group -> the default option in config.yaml, in its order."""
    listed = OmegaConf.load(conf_folder() / "config.yaml").defaults
    pairs = (next(iter(entry.items())) for entry in listed if isinstance(entry, DictConfig))
    return {str(group): str(option) for group, option in pairs if " " not in str(group)}


def _description(file: Path) -> str:
    comments = (line[2:] for line in file.read_text("utf-8").splitlines() if line.startswith("# "))
    return next((line for line in comments if not line.startswith("@")), "")


@contextmanager
def _hydra() -> Iterator[None]:
    """Initialises Hydra with our folder; a previous initialisation is restored on exit."""
    from hydra import initialize_config_dir

    register()
    with initialize_config_dir(str(conf_folder()), job_name="run", version_base="1.3"):
        yield


def compose_raw(overrides: Sequence[str] = ()) -> DictConfig:
    """The composed configuration including Hydra's own node, unchecked. Raises Hydra's errors."""
    from hydra import compose as hydra_compose

    with _hydra():
        return hydra_compose("config", overrides=exact(overrides)[0], return_hydra_config=True)


def compose(overrides: Sequence[str] = ()) -> Config:
    """The configuration for command line overrides: `compose(["data.n_images=4"])`.

    Raises UserError if a value is not allowed, and Hydra's errors for wrong keys, options and types.
    """
    return to_config(compose_exact(overrides)[0])


def compose_exact(overrides: Sequence[str]) -> tuple[DictConfig, list[str]]:
    """The result of `compose_raw`, and the overrides used.

    They include texts from the user's own YAML files that YAML would read as another type.
    """
    from diffusion_lab.cli.yaml_texts import misread

    words = exact(overrides)[0]
    composed = compose_raw(words)
    if found := misread(composed):
        words = [*(word for _, word in found.values()), *words]
        composed = compose_raw(words)
    return composed, words


def to_config(composed: DictConfig) -> Config:
    """Converts to the dataclasses and checks their values. Raises UserError.

    For jobs that use another run's record, `job.given` lists the keys that were set explicitly.
    """
    plain = copy.deepcopy(composed)
    _give_types(plain)
    if "given" in plain.job:
        plain.job.given = _given(composed)
    with open_dict(plain):
        plain.pop("hydra", None)
    for key in sorted(OmegaConf.missing_keys(plain)):
        raise UserError(f"{key} is missing: give it as {key}=VALUE")
    _refuse_unknown(plain)
    return cast(Config, OmegaConf.to_object(plain))


def _give_types(node: DictConfig) -> None:
    """Adds the keys of `name` to the user's own method or job files without `defaults: [/schema/...]`."""
    for group, kinds in (("method", METHODS), ("job", JOBS)):
        given = node[group]
        if isinstance(given, DictConfig) and not dataclasses.is_dataclass(OmegaConf.get_type(given)):
            one_of(f"{group}.name", given.get("name"), kinds)
            typed = OmegaConf.structured(kinds[given.name])
            OmegaConf.set_struct(typed, False)
            node[group] = OmegaConf.merge(typed, given)


def _given(composed: DictConfig) -> list[str]:
    """Keys and groups set on the command line, and those that its experiment changes."""
    from hydra.core.hydra_config import HydraConfig

    if "hydra" in composed:
        words = [str(word) for word in composed.hydra.overrides.task]
    elif HydraConfig.initialized():
        words = [str(word) for word in HydraConfig.get().overrides.task]
    else:
        return []
    keys = {word.partition("=")[0].lstrip("+~").partition("@")[0] for word in words}
    if "experiment" in keys:
        node = composed.hydra if "hydra" in composed else HydraConfig.get()
        usual = defaults()
        keys |= {
            group for group, option in node.runtime.choices.items() if usual.get(group, option) != option
        }
        without = compose_raw([word for word in words if not word.lstrip("+").startswith("experiment")])
        keys |= {key for key, value in _flat(composed).items() if _flat(without).get(key, keys) != value}
    return sorted(keys)


def _flat(composed: DictConfig) -> dict[str, Any]:
    """ "prompts.n" -> 100, for the groups that contain settings."""
    found: dict[str, Any] = {}
    for group in ("model", "prompts", "data", "metrics"):
        plain = OmegaConf.to_container(composed[group])
        found |= {f"{group}.{key}": value for key, value in cast(dict[str, Any], plain).items()}
    return found


def _refuse_unknown(node: DictConfig, at: str = "") -> None:
    """Rejects keys that no dataclass has, such as from `+data.n_image=4`."""
    kind = OmegaConf.get_type(node)
    if not dataclasses.is_dataclass(kind):
        return
    known = [part.name for part in dataclasses.fields(kind)]
    for key in map(str, node):
        name = f"{at}{key}"
        if key not in known:
            if issubclass(kind, Job):
                raise UserError(no_such_key(kind, key))
            within = at.rstrip(".") or "the configuration"
            raise UserError(f"{name}: no such key; {within} has {', '.join(known)}{closest(key, known)}")
        if OmegaConf.is_interpolation(node, key) or OmegaConf.is_missing(node, key):
            continue
        child = node[key]
        if isinstance(child, DictConfig):
            _refuse_unknown(child, f"{name}.")


def single_valued(overrides: Sequence[str]) -> list[str]:
    """The overrides that are the same in every job, whichever sweeper chooses the others."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    words = exact(overrides, sweep=True)[0]
    parsed = OverridesParser.create().parse_overrides(words)
    return [word for word, override in zip(words, parsed, strict=True) if not override.is_sweep_override()]


def expand(overrides: Sequence[str]) -> list[list[str]]:
    """The overrides of every job of a sweep over lists, ranges and globs, in Hydra's basic sweeper's order."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser

    with _hydra():
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        parser = OverridesParser.create(config_loader=hydra.config_loader)
        values: dict[str, list[str]] = {}  # a repeated key has its last values, at its first position
        for override in parser.parse_overrides(exact(overrides, sweep=True)[0]):
            several = override.is_sweep_override()
            found = override.sweep_string_iterator() if several else [override.get_value_element_as_str()]
            key = override.get_key_element()
            values[key] = [f"{key}={value}" for value in found]
            if not values[key]:
                raise UserError(f"{override.input_line}: has no value, so the sweep would have no job")
        return [recorded(job) for job in itertools.product(*values.values())]


def params(sweeper: Any) -> list[str]:
    """The overrides in hydra.sweeper.params, for Hydra's basic sweeper."""
    found = sweeper.get("params") if is_basic(sweeper) else None
    return [f"{key}={value}" for key, value in (found or {}).items()]


def is_basic(sweeper: Any) -> bool:
    """Whether `hydra.sweeper` is Hydra's basic sweeper, which runs every combination of the values."""
    return str(sweeper.get("_target_", "")).endswith("BasicSweeper")
