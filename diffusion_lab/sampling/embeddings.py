"""Prompt conditioning, cached while the text encoders are unchanged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from diffusion_lab.families import of
from diffusion_lab.system.modes import eval_mode

if TYPE_CHECKING:
    from torch import Tensor, nn

    from diffusion_lab.families.family import Conditioning

_BATCH = 64  # texts per forward pass


class PromptEmbeddings:
    """A cache of text -> conditioning of the denoiser. Owned by the caller, one per run.

    Nothing is cached while any parameter of a text encoder is trained. Otherwise entries are valid until an
    encoder is replaced, or its parameters are replaced or written to.
    """

    def __init__(self) -> None:
        self._state: tuple[object, ...] = ()
        self._known: dict[str, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def encode(self, pipe: Any, texts: Sequence[str]) -> Conditioning:
        """One row per text, on the text encoders' device and in their dtype. Long texts are truncated.

        Uses the pipeline's own `encode_prompt`. Learned words are handled by the tokenizer:
        `families.learnt_words`.
        """
        family = of(pipe)
        networks = family.networks(pipe)
        encoders = [networks[part] for part in family.text_encoders if part in networks]
        state = _state(encoders)
        if state is None or state != self._state:
            self._known.clear()
        missing = [text for text in dict.fromkeys(texts) if text not in self._known]
        # Normal tensors, not inference tensors: the caller may use them while gradients are recorded.
        with torch.inference_mode(False), torch.no_grad(), eval_mode(*encoders):
            for start in range(0, len(missing), _BATCH):
                chunk = missing[start : start + _BATCH]
                found = family.encode_prompts(pipe, chunk)
                for number, text in enumerate(chunk):
                    self._known[text] = {name: value[number] for name, value in found.items()}
        rows = [self._known[text] for text in texts]
        embeddings = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        if state is None:
            self._known.clear()
        self._state = state or ()
        return embeddings


def _state(encoders: Iterable[nn.Module]) -> tuple[object, ...] | None:
    """A value that changes whenever an encoder changes; None while one is trained.

    A tensor's version counter increases with every in-place write (optimizers, `load_state_dict`, merged
    adapters).
    """
    found: list[object] = []
    for encoder in encoders:
        parameters = list(encoder.parameters())
        if any(parameter.requires_grad for parameter in parameters):
            return None
        found += [id(encoder), *((parameter.data_ptr(), parameter._version) for parameter in parameters)]
    return tuple(found)
