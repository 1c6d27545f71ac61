"""Which adapters stay on the disk while a run goes on, and what artefact/ is made of."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffusion_lab.cli.compose import compose
from diffusion_lab.config.schema import Config
from diffusion_lab.jobs.conclude import Findings, _place_artefact, adapter_folder, prune_adapters
from diffusion_lab.plan.costs import keeps_best_only
from diffusion_lab.plan.defaults import fill_defaults
from diffusion_lab.records import Summary, UserError


def configured(*words: str) -> Config:
    return fill_defaults(compose(["experiment=debug", "metrics=debug", *words]))


def summary(mean: float) -> Summary:
    return Summary(mean, 4, 0, 0.01, mean - 0.02, mean + 0.02)


def kept(folder: Path, config: Config, likeness: list[float]) -> list[list[int]]:
    """After each evaluation: the steps whose adapters are there."""
    findings, found = Findings(), []
    for step, value in enumerate(likeness):
        adapter_folder(folder, step).mkdir(parents=True)
        findings.summaries[step] = {"similarity": summary(value), "diversity": summary(0.5)}
        prune_adapters(config, folder, findings, step)
        found.append(sorted(int(path.name[5:]) for path in (folder / "adapters").iterdir()))
    return found


def test_of_whole_networks_the_best_and_the_last_stay(tmp_path: Path) -> None:
    likeness = [0.2, 0.5, 0.4, 0.6, 0.3]
    whole = kept(tmp_path / "whole", configured("method=dreambooth"), likeness)
    assert whole == [[0], [1], [1, 2], [3], [3, 4]]
    small = kept(tmp_path / "small", configured("method=lora"), likeness)
    assert small[-1] == [0, 1, 2, 3, 4]
    assert keeps_best_only(configured("method=lora", "steps.keep_adapters=best"))
    assert not keeps_best_only(configured("method=dreambooth", "steps.keep_adapters=all"))
    with pytest.raises(UserError, match=r"steps\.keep_adapters=last: must be one of auto, all, best"):
        configured("steps.keep_adapters=last")


def test_the_artefact_takes_no_second_place_on_the_disk(tmp_path: Path) -> None:
    """What only its header changes is a file of its own; the adapter stays as it was."""
    adapter = adapter_folder(tmp_path, 3)
    (adapter / "unet").mkdir(parents=True)
    (adapter / "unet" / "weights.bin").write_bytes(b"large")
    (adapter / "dreambooth.json").write_text('{"step": "3"}')
    for _ in range(2):  # a run that goes on does it again
        _place_artefact(configured("method=dreambooth"), tmp_path, 3, None, {"similarity": 0.5})
        assert (tmp_path / "artefact" / "unet" / "weights.bin").samefile(adapter / "unet" / "weights.bin")
        assert '"recommended_step": "3"' in (tmp_path / "artefact" / "dreambooth.json").read_text()
        assert (adapter / "dreambooth.json").read_text() == '{"step": "3"}'
