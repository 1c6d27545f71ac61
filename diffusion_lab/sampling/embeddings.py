"""Prompts' embeddings, computed once for as long as the text encoder stays as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from diffusion_lab.system.modes import eval_mode

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

_BATCH = 64  # texts a forward pass


class PromptEmbeddings:
    """Text -> what the U-Net's cross-attention sees. Owned by the caller, one for a run.

    While any parameter of the text encoder trains nothing is kept. Otherwise what was computed serves until
    the encoder is replaced, gets other parameters or has one of them written to.
    """

    def __init__(self) -> None:
        self._state: tuple[object, ...] = ()
        self._known: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self._known)

    def encode(self, pipe: StableDiffusionPipeline, texts: Sequence[str]) -> Tensor:
        """[len(texts), tokens, d] on the text encoder's device, in its dtype; a text over 77 tokens is cut.

        Uses the pipeline's own `encode_prompt`. Learnt words are the tokenizer's business: `families.learnt_words`.
        """
        state = _state(pipe.text_encoder)
        if state is None or state != self._state:
            self._known.clear()
        missing = [text for text in dict.fromkeys(texts) if text not in self._known]
        # Ordinary tensors, not inference tensors: a caller may reuse them where gradients are recorded.
        with torch.inference_mode(False), torch.no_grad(), eval_mode(pipe.text_encoder):
            for start in range(0, len(missing), _BATCH):
                chunk = missing[start : start + _BATCH]
                found, _ = pipe.encode_prompt(
                    chunk,
                    device=pipe.text_encoder.device,
                    num_images_per_prompt=1,
                    do_classifier_free_guidance=False,
                )
                self._known.update(zip(chunk, found, strict=True))
        embeddings = torch.stack([self._known[text] for text in texts])
        if state is None:
            self._known.clear()
        self._state = state or ()
        return embeddings


def _state(encoder: nn.Module) -> tuple[object, ...] | None:
    """Changes when the encoder does; None while it trains.

    A tensor's version counter grows with every in-place write (optimizers, `load_state_dict`, adapters
    merged).
    """
    parameters = list(encoder.parameters())
    if any(parameter.requires_grad for parameter in parameters):
        return None
    return (id(encoder), *((parameter.data_ptr(), parameter._version) for parameter in parameters))
