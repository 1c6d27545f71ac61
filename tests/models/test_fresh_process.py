"""What every method leaves, drawn with by plain diffusers and peft in a process that has none of this package."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffusion_lab.artefacts import kohya
from diffusion_lab.config.schema import Steps
from diffusion_lab.methods.dreambooth import DreamBooth
from diffusion_lab.methods.hypernetwork import Hypernetwork
from diffusion_lab.methods.lora import Lora
from diffusion_lab.training.loop import evaluated_weights, training_step
from tests.methods.cases import pivotal, ti

PROMPT = "a photo of customcls dog"
RATE = {"learning_rate": 2e-2}
LORA = {"weight_name": "pytorch_lora_weights.safetensors"}
WORD = {"weight_name": "learned_embeds.safetensors"}
# name: method, and what its reader calls on the pipe: (function, keywords) in turn
CASES: dict[str, tuple[Any, list[tuple[str, dict[str, str]]]]] = {
    "lora": (Lora(rank=4, alpha=2.0, text_encoder=True, **RATE), [("load_lora_weights", LORA)]),
    "kohya": (
        Lora(rank=4, alpha=2.0, text_encoder=True, targets=["to_q", "to_out.0", "conv1", "ff.net.2"], **RATE),
        [("load_lora_weights", {"weight_name": kohya.FILE_NAME})],
    ),
    "kohya_stabilised": (
        Lora(rank=4, rank_stabilised=True, **RATE),
        [("load_lora_weights", {"weight_name": kohya.FILE_NAME})],
    ),
    "dora": (Lora(rank=4, dora=True, text_encoder=True, **RATE), [("load_lora_weights", LORA)]),
    "loha": (Lora(variant="loha", rank=4, **RATE), [("peft", {"part": "unet"})]),
    "lokr": (Lora(variant="lokr", rank=4, **RATE), [("peft", {"part": "unet"})]),
    "oft": (
        Lora(variant="oft", rank=4, text_encoder=True, **RATE),
        [("peft", {"part": "unet"}), ("peft", {"part": "text_encoder"})],
    ),
    "dreambooth": (
        DreamBooth(prior_weight=0.0, text_encoder=True, ema=True, learning_rate=1e-3),
        [("pipeline", {})],
    ),
    "textual_inversion": (ti(vectors=3), [("load_textual_inversion", WORD)]),
    "textual_inversion_a1111": (
        ti(vectors=2),
        [
            (
                "load_textual_inversion",
                {"weight_name": "learned_embeds_a1111.safetensors", "token": "customcls"},
            )
        ],
    ),
    "pivotal": (
        pivotal(0.3, vectors=2, text_encoder=True),
        [("load_textual_inversion", WORD), ("load_lora_weights", LORA)],
    ),
    "hypernetwork": (
        Hypernetwork(layers=[1.0, 1.5, 1.0], activation="relu", layer_norm=True, dropout=0.2, **RATE),
        [("hypernetwork", {})],
    ),
}

SCRIPT = """
import json, sys
from pathlib import Path
import numpy, torch
from diffusers import StableDiffusionPipeline
from peft import PeftModel
from safetensors import safe_open

root, base, prompt, cases, threads = Path(sys.argv[1]), *json.loads(sys.argv[2])
torch.set_num_threads(threads)

def hypernetwork(pipe, path):
    '''The web UI's forward pass from the file alone: context + f(context), keys 0, values 1.'''
    with safe_open(path, "pt") as file:
        weights, header = {k: file.get_tensor(k) for k in file.keys()}, file.metadata()
    act = {"relu": torch.relu}[json.loads(header["activation_func"])]
    norm, n = json.loads(header["is_layer_norm"]), len(json.loads(header["layer_structure"])) - 1
    dropouts = json.loads(header["dropout_structure"])

    def f(x, which):
        width, index = x.shape[-1], 0
        get = lambda part: weights[f"{width}.{which}.linear.{index}.{part}"]
        for layer in range(n):
            x = torch.nn.functional.linear(x, get("weight"), get("bias"))
            index += 1
            if layer < n - 1:
                x, index = act(x), index + 1
            if norm:
                x = torch.nn.functional.layer_norm(x, x.shape[-1:], get("weight"), get("bias"))
                index += 1
            index += layer < n - 1 and dropouts[layer + 1] > 0
        return x

    for name, module in pipe.unet.named_modules():
        if name.endswith("attn2"):
            for which, layer in enumerate((module.to_k, module.to_v)):
                layer.register_forward_pre_hook(lambda _, inputs, which=which: (inputs[0] + f(inputs[0], which),))

for name, calls in cases.items():
    folder = root / name
    whole = calls[0][0] == "pipeline"
    pipe = StableDiffusionPipeline.from_pretrained(folder if whole else base, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    for call, words in calls:
        if call == "peft":
            part = words["part"]
            setattr(pipe, part, PeftModel.from_pretrained(getattr(pipe, part), folder / part).eval())
        elif call == "hypernetwork":
            hypernetwork(pipe, folder / "hypernetwork.safetensors")
        elif not whole:
            getattr(pipe, call)(folder, **words)
    generator = torch.Generator().manual_seed(1)
    image = pipe(prompt, num_inference_steps=2, output_type="np", generator=generator).images
    numpy.save(root / f"{name}.npy", image)
assert not any(name.startswith("diffusion_lab") for name in sys.modules)
"""


def image(pipe: Any) -> np.ndarray:
    generator = torch.Generator().manual_seed(1)
    return np.asarray(pipe(PROMPT, num_inference_steps=2, output_type="np", generator=generator).images)


@pytest.fixture(scope="module")
def drawn(make_state_once, tiny_sd_folder: Path, tmp_path_factory) -> dict[str, list[np.ndarray]]:
    """By case: the image here, and the image there. One process for all of them: its imports take longest."""
    root = tmp_path_factory.mktemp("fresh")
    found = {}
    for name, (method, _) in CASES.items():
        state = make_state_once(method=method)
        for _ in range(4):
            training_step(state, Steps(batch_size=2))
            state.step += 1
        with evaluated_weights(state):
            found[name] = [image(state.pipe)]
            if hasattr(method, "complete"):
                method.complete(state.pipe, root / name)
        state.save(root / name)
    calls = {name: calls for name, (_, calls) in CASES.items()}
    wanted = json.dumps([str(tiny_sd_folder), PROMPT, calls, torch.get_num_threads()])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(root), wanted], cwd=root, capture_output=True, text=True,
        timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    for name in CASES:
        found[name].append(np.load(root / f"{name}.npy"))
    return found


@pytest.mark.parametrize("case", CASES)
def test_the_same_image_in_a_fresh_process(drawn, tiny_pipe, case: str) -> None:
    ours, theirs = drawn[case]
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=2e-5)  # 0..1: rounding, by the order of sums
    assert np.abs(ours - image(tiny_pipe)).max() > 1e-3, "there is an effect to lose"
