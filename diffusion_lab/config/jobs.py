"""The keys of each job: one dataclass per job.

`job=NAME` selects it; keys that its job does not have are rejected.

To add a job: its dataclass and a line in JOBS here, `conf/job/<name>.yaml`, its module in
`diffusion_lab/jobs`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, TypeVar

from diffusion_lab.records import UserError
from diffusion_lab.values.bounds import MOST_LAYERS
from diffusion_lab.values.checks import bounded, closest, flag, one_of, text_list

BALANCES = ("none", "bins", "density")  # of ratings: recipes/aesthetics/balance.py
STAGES = (  # of job=pretrain, in order
    "data", "tokenizer", "clip", "vae", "decoder", "unet", "face", "polish", "aesthetics", "evaluate",
)  # fmt: skip
SET_BY_US = ("name", "given")  # not set on the command line


@dataclass(kw_only=True, slots=True)
class Job:
    """Keys common to all jobs."""

    name: str  # the job's name in JOBS
    dry_run: bool = False  # print the plan and stop

    def __post_init__(self) -> None:
        own = type(self).__dataclass_fields__["name"].default
        if self.name != own:
            raise UserError(f"job.name={self.name}: cannot be changed; job={self.name} chooses another job")
        flag("job.dry_run", self.dry_run)

    def need(self, *names: str, told: str) -> None:
        """UserError if one of the keys is empty. `told`: the arguments that set them."""
        for name in names:
            if not getattr(self, name):
                raise UserError(f"job.{name} is missing: job={self.name} {told}")


@dataclass(kw_only=True, slots=True)
class Finetune(Job):
    name: str = "finetune"


@dataclass(kw_only=True, slots=True)
class Generate(Job):
    name: str = "generate"
    artefact: str = ""  # a file or folder of a fine-tuned artefact; "": the model alone
    text: str = ""  # one prompt, taken literally, including commas
    texts: list[str] = field(default_factory=list)  # prompts, taken literally; empty: the prompt set
    texts_file: str = ""  # a text file, one prompt per line; # starts a comment
    weight: float = 1.0  # 0 is the model alone, 1 the whole artefact
    output: str = ""  # where to write
    given: list[str] | None = (
        None  # keys set on the command line: they take precedence over the artefact's recorded settings
    )

    def __post_init__(self) -> None:
        Job.__post_init__(self)
        text_list("job.texts", self.texts)
        prompts = [key for key in ("text", "texts", "texts_file") if getattr(self, key)]
        if len(prompts) > 1:
            raise UserError(
                f"{' and '.join(f'job.{key}' for key in prompts)}: both name the prompts; give one"
            )
        bounded("job.weight", self.weight)
        self.need("output", told="job.output=FOLDER")


@dataclass(kw_only=True, slots=True)
class Score(Job):
    name: str = "score"
    images: str = ""  # a folder of images
    # keys set on the command line: they take precedence over a run's recorded settings
    given: list[str] | None = None

    def __post_init__(self) -> None:
        Job.__post_init__(self)
        self.need("images", told="job.images=FOLDER, of images to score")


@dataclass(kw_only=True, slots=True)
class Report(Job):
    name: str = "report"
    runs: str = ""  # a run's folder, or a folder of runs

    def __post_init__(self) -> None:
        Job.__post_init__(self)
        self.need("runs", told="job.runs=FOLDER, of a run or of several runs")


@dataclass(kw_only=True, slots=True)
class StudyPage(Job):
    name: str = "study"
    runs: str = ""  # a folder of runs
    study: str = ""  # the name of one study in it, or claims; "": all and the claims; one page of all runs if there is no study

    def __post_init__(self) -> None:
        Job.__post_init__(self)
        self.need("runs", told="job.runs=FOLDER, of the runs of the studies")


@dataclass(kw_only=True, slots=True)
class Pretrain(Job):
    name: str = "pretrain"
    output: str = ""  # where to write
    stages: list[str] = field(default_factory=list)  # which of STAGES; empty: all
    start: str = ""  # folder of a U-Net to start from
    scale: float = 1.0  # multiplies the numbers of steps and images

    def __post_init__(self) -> None:
        Job.__post_init__(self)
        text_list("job.stages", self.stages, STAGES)
        bounded("job.scale", self.scale)
        self.need("output", told="job.output=FOLDER")


@dataclass(kw_only=True, slots=True)
class Subjects(Job):
    name: str = "subjects"
    output: str = ""  # where to write

    def __post_init__(self) -> None:
        Job.__post_init__(self)
        self.need("output", told="job.output=FOLDER")


@dataclass(kw_only=True, slots=True)
class TrainAesthetics(Job):
    name: str = "train_aesthetics"
    images: str = ""  # the folder of the images
    ratings: str = ""  # AVA.txt, or a CSV with columns image and rating (0 to 10)
    output: str = ""  # where to write
    balance: str = "density"  # none, bins, density: how images are weighted by their rating
    exponent: float = 1.0  # 0 samples images uniformly, 1 samples ratings uniformly
    hidden: list[int] = field(default_factory=lambda: [64])  # widths of hidden layers
    epochs: int = 100  # maximum
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        Job.__post_init__(self)
        one_of("job.balance", self.balance, BALANCES)
        bounded("job.exponent", self.exponent)
        bounded("job.learning_rate", self.learning_rate)
        bounded("job.epochs", self.epochs)
        if len(self.hidden) > MOST_LAYERS:
            raise UserError(f"job.hidden: has {len(self.hidden)} layers; at most {MOST_LAYERS}")
        for width in self.hidden:
            bounded("job.hidden", width)
        self.need("images", "ratings", told="job.images=FOLDER job.ratings=AVA.txt")
        self.need("output", told="job.output=FOLDER")


JOBS: dict[str, type[Job]] = {
    "finetune": Finetune,
    "generate": Generate,
    "score": Score,
    "report": Report,
    "study": StudyPage,
    "pretrain": Pretrain,
    "subjects": Subjects,
    "train_aesthetics": TrainAesthetics,
}
Kind = TypeVar("Kind", bound=Job)


def as_job(job: Job, kind: type[Kind]) -> Kind:
    """The job as an instance of `kind`, for code that reads its own keys. TypeError if it is another job."""
    if not isinstance(job, kind):
        raise TypeError(f"job={job.name} is no {kind.__name__}")
    return job


def no_such_key(kind: type[Job], key: str) -> str:
    """The message for a job.KEY that the job does not have: its keys, and the job that has that key."""
    known = [part.name for part in dataclasses.fields(kind) if part.name not in SET_BY_US]
    others = [f"job={name}" for name, other in JOBS.items() if key in other.__dataclass_fields__]
    hint = (
        f"; {' and '.join(others)} {'has' if len(others) == 1 else 'have'} it"
        if others
        else closest(key, known)
    )
    name = kind.__dataclass_fields__["name"].default
    return f"job.{key}: job={name} has no such key; its keys are {', '.join(known)}{hint}"


# --- records of runs ----------------------------------------------------------------------------------


def defaults(name: object) -> dict[str, Any]:
    """{"name": ...} with the default values of the job's keys; empty for an unknown job."""
    kind = JOBS.get(str(name))
    return {
        part.name: part.default if part.default_factory is dataclasses.MISSING else part.default_factory()
        for part in (dataclasses.fields(kind) if kind else ())
    }


def foreign(key: str, name: object) -> bool:
    """Whether a record's `job.KEY` belongs to another job than the one it names.

    Records of earlier versions contain the keys of all jobs; the additional ones had no effect.
    """
    group, _, own = key.partition(".")
    return group == "job" and str(name) in JOBS and own not in JOBS[str(name)].__dataclass_fields__
