"""Tokenization and text encoding with CLIP, used by Stable Diffusion, SDXL, SD3 and FLUX."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")  # layers to which a LoRA is added


def tokenize(tokenizer: Any, text: str) -> Tensor:
    """int64 [1, model_max_length], padded as the pipelines pad their prompts.

    ValueError if the text is too long.
    """
    most = int(tokenizer.model_max_length)
    given = len(tokenizer(text).input_ids)
    if given > most:
        raise ValueError(f"{text!r} has {given} tokens, the model reads {most}")
    ids: Tensor = tokenizer(text, padding="max_length", max_length=most, return_tensors="pt").input_ids
    return ids


def penultimate(text_encoder: Any, input_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states before the last layer, [b, tokens, d], and the first output.

    The first output is the projected vector [b, p] for a `CLIPTextModelWithProjection`, else the last hidden
    states.
    """
    found = text_encoder(input_ids.to(text_encoder.device), output_hidden_states=True)
    return found.hidden_states[-2], found[0]
