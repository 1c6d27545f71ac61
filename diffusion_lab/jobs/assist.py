"""The work of the additional processes, and what they share with the main process."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_lab.config.schema import Config, as_plain_dict
from diffusion_lab.records import PromptSet, Subject, TrainingDiverged
from diffusion_lab.runs.folder_record import CHECKPOINTS
from diffusion_lab.system import processes

if TYPE_CHECKING:
    import torch

    from diffusion_lab.training.checkpoint import Checkpoint
    from diffusion_lab.training.state import TrainingState

log = logging.getLogger(__name__)


def load_parts(config: Config, device: torch.device) -> tuple[Subject, PromptSet, Any]:
    """Subject, prompts and the base pipeline. UserError if a prompt is too long for it."""
    from diffusion_lab.data.identifiers import identifier_warnings, learns_word
    from diffusion_lab.data.prompts import load_prompts
    from diffusion_lab.data.subjects import load_subject
    from diffusion_lab.data.tokens import check_texts
    from diffusion_lab.models.load import load_pipeline
    from diffusion_lab.models.place import model_folder

    subject = load_subject(config.data)
    prompts = load_prompts(config.prompts, identifier=subject.identifier, class_noun=subject.class_noun)
    pipe = load_pipeline(config.model, device)
    learnt = learns_word(config)
    told = identifier_warnings(pipe.tokenizer.backend_tokenizer, subject.identifier, learnt=learnt)
    if model_folder(config.model) is None:  # for a folder the plan has already reported it
        for line in told:
            log.warning("%s", line)
    if not learnt:  # a word to be learnt gets its number of tokens later
        check_texts(pipe, prompts, subject.instance_prompt)
    return subject, prompts, pipe


def build(
    config: Config,
    pipe: Any,
    subject: Subject,
    prompts: PromptSet,
    checkpoint: Checkpoint | None,
    extended: Sequence[Mapping[str, Any]] = (),
) -> TrainingState:
    """The training state at the start of the run, or restored from the checkpoint.

    `extended`: what the run was before it was extended (`resume.extensions`): its checkpoints are accepted too.
    """
    from diffusion_lab.runs.resume import bound_digest
    from diffusion_lab.training.checkpoint import restore
    from diffusion_lab.training.state import build_state

    state = build_state(config, pipe, subject)
    state.identity["the prompts"] = prompts.sha256
    state.identity["its configuration"] = bound_digest(as_plain_dict(config))
    state.earlier = {"its configuration": frozenset(str(entry["configuration"]) for entry in extended)}
    if checkpoint is not None:
        restore(state, checkpoint)
        checkpoint.values.clear()  # as large as the state itself
    return state


def take_part(state: TrainingState) -> None:
    """Takes part in a checkpoint of the main process, which collects the random states of all processes."""
    from diffusion_lab.training.checkpoint import capture

    capture(state)


def assist(config: Config, device: torch.device) -> None:
    """Runs an additional process, which computes its share of each batch. It writes nothing."""
    from diffusion_lab.system.rng import seeded
    from diffusion_lab.training.checkpoint import read
    from diffusion_lab.training.loop import train
    from diffusion_lab.training.memory import compile_blocks, rest

    told: tuple[Path, list[dict[str, Any]]] | None = processes.shared(None)
    if told is None:  # nothing left to do
        return
    folder, extended = told
    with seeded(config.seed):
        subject, prompts, pipe = load_parts(config, device)
        newest = read(folder) if folder.parent.name == CHECKPOINTS else None
        state = build(config, pipe, subject, prompts, newest, extended)
        rest(state, None, config.memory)  # it never evaluates, so nothing else would offload them
        compile_blocks(state, config.memory)
        try:
            train(
                state,
                steps=config.steps,
                evaluate=lambda step: None,
                on_log=lambda step, values: None,
                on_step=lambda step: None,
                checkpoint=lambda step: take_part(state),
            )
        except TrainingDiverged:
            processes.wait()
            raise
    processes.wait()
