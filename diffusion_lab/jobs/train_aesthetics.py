"""job=train_aesthetics: train an aesthetics head on rated images, for `metrics.aesthetics_weights`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_lab.config.jobs import TrainAesthetics, as_job
from diffusion_lab.plan.into import check_output
from diffusion_lab.plan.plan import Plan
from diffusion_lab.records import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from diffusion_lab.config.schema import Config

log = logging.getLogger(__name__)

HEAD, PLAIN = "aesthetics_head.safetensors", "aesthetics_head_unbalanced.safetensors"


def check(config: Config, run_folder: Path) -> Plan:
    """The plan: checks that inputs exist and that the output is writable. `run_folder` is not used."""
    job = as_job(config.job, TrainAesthetics)
    for key, there in (("images", Path.is_dir), ("ratings", Path.is_file)):
        given = getattr(job, key)
        if not there(Path(given).expanduser()):
            raise UserError(f"job.{key}={given}: there is no such {'folder' if key == 'images' else 'file'}")
    return check_output(config, job)


def run(config: Config, run_folder: Path) -> None:
    """Writes the head, a head trained without balancing, `result.json` and `report.html` to `job.output`.

    The CLIP model is that of the metric (`metrics`). `run_folder` is not used.
    """
    import numpy as np
    import torch

    from diffusion_lab.evaluation.encoders.aesthetics import write_head
    from diffusion_lab.evaluation.encoders.bank import EncoderBank
    from diffusion_lab.evaluation.encoders.cache import FeatureCache
    from diffusion_lab.models.load import resolve_device
    from diffusion_lab.recipes.aesthetics import balance, regression
    from diffusion_lab.recipes.aesthetics.embed import embed
    from diffusion_lab.recipes.aesthetics.examine import examine, gain_at_extremes
    from diffusion_lab.recipes.aesthetics.ratings import read_ratings
    from diffusion_lab.report.aesthetics_page import write_page
    from diffusion_lab.system.atomic import write_json
    from diffusion_lab.system.cache import default_cache
    from diffusion_lab.system.progress import Progress
    from diffusion_lab.system.provenance import collect

    job = as_job(config.job, TrainAesthetics)
    output = Path(job.output).expanduser()
    rated, absent = read_ratings(Path(job.ratings).expanduser(), Path(job.images).expanduser())
    if absent:
        log.warning("job.ratings: %d rated pictures are not in %s", absent, job.images)
    device = resolve_device(config.model.device)
    bank = EncoderBank(config.metrics, device)
    with Progress(config.tracker.progress) as progress:
        with progress.task("CLIP", len(rated)) as task:
            embeddings, kept = embed(
                [one.path for one in rated],
                bank,
                FeatureCache(default_cache() / "features.sqlite"),
                task.advance,
            )
        ratings = np.array([rated[number].rating for number in kept])
        parts = regression.split(len(kept), config.seed)

        def train(kind: str) -> nn.Sequential:
            drawn = balance.weights(ratings, kind, job.exponent)
            with progress.task(f"regression, balance {kind}", job.epochs) as task:
                return regression.fit(
                    embeddings, torch.from_numpy(ratings).float(), torch.from_numpy(drawn).float(), parts,
                    hidden=job.hidden, learning_rate=job.learning_rate, epochs=job.epochs, seed=config.seed,
                    on_epoch=lambda *_: task.advance(),
                )  # fmt: skip

        heads = {kind: train(kind) for kind in dict.fromkeys(("none", job.balance))}

    rated_test = ratings[parts.test]
    said: dict[str, NDArray[np.float64]] = {
        kind: regression.predict(head, embeddings[parts.test]).double().numpy()
        for kind, head in heads.items()
    }
    figures: dict[str, Any] = {kind: dict(examine(said[kind], rated_test).as_dict()) for kind in heads}
    gain = gain_at_extremes(said[job.balance], said["none"], rated_test)
    result = {
        "pictures": len(kept),
        "absent": absent,
        "unreadable": len(rated) - len(kept),
        "trained_on": len(parts.train),
        "balance": job.balance,
        "exponent": job.exponent,
        "clip": bank.clip_identity(),
        "test": figures,
        "gain_at_extremes": dict(zip(("mean", "low", "high"), gain, strict=True)),
        "provenance": collect(str(device)),
    }
    output.mkdir(parents=True, exist_ok=True)
    notes = {"balance": job.balance, "exponent": str(job.exponent), "pictures": str(len(parts.train))}
    for kind, head in heads.items():
        name = HEAD if kind == job.balance else PLAIN
        write_head(
            head,
            output / name,
            activation="gelu",
            clip=bank.clip_identity(),
            notes={**notes, "balance": kind},
        )
    said_of_it = verdict(gain) if job.balance != "none" else "The ratings were taken as they are, unbalanced."
    page = write_page(output / "report.html", result, ratings, rated_test, said, said_of_it)
    write_json(output / "result.json", result)  # last, after all other files
    for kind, values in figures.items():
        log.info("balance %s: %s", kind, ", ".join(f"{name} {value:.3g}" for name, value in values.items()))
    log.info("%s", said_of_it)
    log.info("report: %s", page)
    log.info("use it: metrics.aesthetics_weights=%s", output / HEAD)


def verdict(gain: tuple[float, float | None, float | None]) -> str:
    """Describes the effect of balancing on the error for the worst and best rated images."""
    mean, low, high = gain
    where = "among the 5 % rated lowest and the 5 % rated highest"
    if low is None or high is None:
        return f"Whether balancing helps cannot be told: {where} the error changes by {-mean:.2f} grades, for all alike."
    interval = f"(95 % interval of the gain: {low:.2f} to {high:.2f})"
    if low > 0:
        return f"Balancing restores the extremes: {where} the error is {mean:.2f} grades less {interval}."
    if high < 0:
        return f"Balancing harms the extremes: {where} the error is {-mean:.2f} grades more {interval}."
    return (
        f"Whether balancing helps cannot be told: {where} the error changes by {-mean:.2f} grades {interval}."
    )
