"""A small byte-level BPE vocabulary in CLIP's format: any text can be encoded, captions are short."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion_lab.miniature.phrases import NOUNS, SLOTS, caption
from diffusion_lab.recipes.miniature.export import save_part

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
MAX_LENGTH = 77
MERGES = 990  # with 512 bytes and 2 special tokens: about 1500 entries

_WORDS = """
the be to of and in that have it for not on with he as you do at this but his by from they we say her she or
an will my one all would there their what so up out if about who get which go me when make can like time no
just him know take people into year your good some could them see other than then now look only come its
over think also back after use two how our work first well way even new want because any these give day most
us is are was were has had been person man woman boy girl child baby face head hair eye eyes nose mouth hand
hands arm leg dog cat horse bird animal toy car house tree flower mountain river sea sky sun moon star city
street room kitchen table chair book glass bottle cup bowl photo picture image painting drawing sketch
portrait art style light dark bright color red green blue yellow black white purple orange pink brown gray
gold silver big small old young tall short long happy sad angry serious smiling laughing surprised wearing
holding standing sitting walking running looking left right front behind under over water fire snow rain
summer winter spring autumn morning evening night backpack sneaker shoe shirt dress suit tie hat cap
beautiful detailed quality high low best worst close wide view background foreground shot camera lens film
vintage modern abstract realistic cinematic dramatic soft sharp blurry noisy cropped extra fingers limbs
custom class subject ohwx sks rare unique token word text number three four five six seven eight nine ten
hundred
""".split()  # noqa: SIM905


def corpus() -> Iterator[str]:
    """Captions of the world and common English words, each as often as it should weigh."""
    for noun in NOUNS:
        for slot, phrases in SLOTS.items():
            for phrase in phrases:
                yield from itertools.repeat(caption(noun, {slot: phrase}), 60)
    yield from itertools.repeat(" ".join(_WORDS), 12)


def train_tokenizer(folder: Path, texts: Iterator[str] | None = None, merges: int = MERGES) -> Any:
    """Train on ``texts`` (default :func:`corpus`), save to ``folder``, return the CLIPTokenizer as loaded."""
    from tokenizers import pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    backend = CLIPTokenizer().backend_tokenizer  # CLIP's normaliser and pre-tokeniser
    trainer = trainers.BpeTrainer(
        vocab_size=512 + merges,
        end_of_word_suffix="</w>",
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts if texts is not None else corpus(), trainer)
    learned = [
        tuple(m) if isinstance(m, list) else tuple(m.split(" "))
        for m in json.loads(backend.to_str())["model"]["merges"]
    ][:merges]
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    entries = [*characters, *(c + "</w>" for c in characters), *(a + b for a, b in learned), BOS, EOS]
    vocab = {entry: i for i, entry in enumerate(dict.fromkeys(entries))}
    tokenizer = CLIPTokenizer(
        vocab=vocab,
        merges=learned,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        unk_token=EOS,
        model_max_length=MAX_LENGTH,
    )
    save_part(tokenizer, folder)
    return load_tokenizer(folder)


def load_tokenizer(folder: Path) -> Any:
    """The CLIPTokenizer saved in ``folder``."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(folder)


def encode(tokenizer: Any, texts: list[str], length: int | None = MAX_LENGTH) -> Tensor:
    """int64 [n, length], padded with the end token; ``length=None``: as long as the longest (at most 77)."""
    rows = [tokenizer(text, truncation=True, max_length=MAX_LENGTH).input_ids for text in texts]
    width = length or max(len(row) for row in rows)
    ids = np.full((len(rows), width), tokenizer.eos_token_id, dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    return torch.from_numpy(ids)
