"""Runs the whole package at full size without a download: Stable Diffusion 1.5 with random weights.

    python -m benchmarks.rehearsal [--device cpu] [--pixels 512] [--size tiny] [--keep FOLDER]

Builds a diffusers folder (U-Net of 860 million parameters, VAE, CLIP's text encoder with CLIP's own
vocabulary) and weights for the true classes of all encoders, then runs `job=finetune` with every method at
the smallest settings: LoRA at 512 pixels (256 where the machine is too slow for the time limit; the table
says so) with all metrics, the others at 64 pixels. What they leave is loaded in plain diffusers. The table
puts seconds and peak memory beside the plan's estimates. Images and scores mean nothing: only that everything
works, in 10 minutes and 16 GB on two cores, is shown. The exit status is 1 where a line says FAIL.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import stand_ins

GIB = 2**30
LIMIT_SECONDS, LIMIT_BYTES = 600.0, 16 * GIB
FAST = 0.08  # TFLOP/s of a convolution in float32, from which 512 pixels fit into the time
ALL_METRICS = (
    "similarity", "similarity_heldout", "face_rate", "aesthetics", "diversity", "clip_text", "clip_image",
    "memorisation", "dino", "kid", "fid", "vendi",
)  # fmt: skip
METHODS = {  # overrides in addition to those of every run
    "lora": [],
    "textual_inversion": [],
    "pivotal": ["steps.total=2", "steps.every=2"],
    "hypernetwork": [],
    # 8-bit AdamW and no checkpoint: 860 million weights with AdamW's numbers would not fit into 16 GB
    "dreambooth": ["method.prior_weight=0", "steps.optimizer=adamw8bit", "steps.checkpoint_every=0"],
}
PLAIN = """
import json, os, sys, torch
from diffusers import StableDiffusionPipeline
base, runs = sys.argv[1], json.loads(sys.argv[2])
torch.set_grad_enabled(False)
def load(folder):
    pipe = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True, safety_checker=None, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe
def draw(pipe, text):
    images = pipe(text, height=64, width=64, num_inference_steps=1, guidance_scale=1.0, output_type="np").images
    return bool((images == images).all()) and images.shape[1:3] == (64, 64)
pipe = load(base)
found = {}
if "textual_inversion" in runs:
    pipe.load_textual_inversion(runs["textual_inversion"])
    found["textual_inversion"] = draw(pipe, "a photo of customcls man")
if "lora" in runs:
    pipe.load_lora_weights(runs["lora"])
    found["lora"] = draw(pipe, "a photo of customcls man")
del pipe
if "dreambooth" in runs:
    if os.path.isfile(os.path.join(runs["dreambooth"], "model_index.json")):
        pipe = load(runs["dreambooth"])
    else:  # the U-Net alone
        from diffusers import UNet2DConditionModel
        pipe = load(base)
        pipe.unet = UNet2DConditionModel.from_pretrained(runs["dreambooth"] + "/unet", dtype=torch.float32)
    found["dreambooth"] = draw(pipe, "a photo of customcls man")
print("FOUND " + json.dumps(found))
"""


@dataclass
class Outcome:
    """The measured and the planned cost of a phase (None without a plan)."""

    phase: str
    seconds: float
    peak_bytes: float | None = None
    planned_seconds: float | None = None
    planned_bytes: float | None = None


@dataclass
class Report:
    outcomes: list[Outcome] = field(default_factory=list)
    lines: list[tuple[bool, str]] = field(default_factory=list)

    def check(self, passed: bool, words: str) -> None:
        self.lines.append((passed, words))
        print(f"{'PASS' if passed else 'FAIL'}  {words}", flush=True)


def run(arguments: list[str], log: Path) -> tuple[int, float, float]:
    """Exit status, seconds and peak resident bytes of a command, whose output goes into `log`."""
    environment = {
        **os.environ, "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "TOKENIZERS_PARALLELISM": "false",
        # Waiting threads yield: otherwise they would occupy the cores of a busy machine.
        "OMP_WAIT_POLICY": "PASSIVE",
    }  # fmt: skip
    started = time.perf_counter()
    with log.open("w") as out:
        process = subprocess.Popen(arguments, stdout=out, stderr=subprocess.STDOUT, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, time.perf_counter() - started, usage.ru_maxrss * 1024.0


def words(folder: Path, method: str, pixels: int, device: str) -> list[str]:
    """The command line of a run."""
    everything = method == "lora"
    encoders = stand_ins.encoder_words(folder) if everything else []
    names = ",".join(ALL_METRICS if everything else ("face_rate",))
    return [
        "model=folder", f"model.path={folder / 'model'}", f"model.resolution={pixels}", f"model.device={device}",
        "data=folder", f"data.folder={folder / 'pictures'}", "data.class_noun=man", "data.n_images=2",
        "data.n_heldout=1", f"method={method}", "steps.total=1", "steps.every=1", "steps.batch_size=1",
        "prompts=file", f"prompts.path={folder / 'prompts.txt'}", "prompts.n=2", "prompts.images_per_prompt=1",
        "prompts.sampling_steps=1", "prompts.guidance_scale=1", "prompts.batch_size=1", "metrics=full",
        f"metrics.names=[{names}]", "tracker=files", *encoders, *METHODS[method],
        f"hydra.run.dir={folder / 'runs' / method}",
    ]  # fmt: skip


def finetune(
    report: Report, folder: Path, method: str, pixels: int, device: str, full_size: bool
) -> Path | None:
    """One run of the product; its artefact."""
    target = folder / "runs" / method
    arguments = [sys.executable, "-m", "diffusion_lab", *words(folder, method, pixels, device)]
    status, seconds, peak = run(arguments, folder / f"{method}.log")
    whole = Outcome(f"{method}, {pixels} pixels", seconds, peak)
    report.outcomes.append(whole)
    if status != 0:
        tail = (folder / f"{method}.log").read_text("utf-8", errors="replace").strip()[-600:]
        report.check(False, f"{method}: exit status {status}: {tail}")
        return None
    result = json.loads((target / "result.json").read_text("utf-8"))
    report.check(result["status"] == "completed", f"{method}: status {result['status']}")
    planned = result["cost"]["estimate"]
    phases: list[Outcome] = []
    for phase, spent in planned.items():
        measured = result["cost"].get(phase)
        if measured:
            phases.append(
                Outcome(f"  {phase}", measured["seconds"], measured["peak_memory_bytes"],
                        spent["seconds"], spent["peak_memory_bytes"])
            )  # fmt: skip
    # The run makes the system forget its peak where a phase ends, so its own records of the phases count too.
    peak = max(peak, *(one.peak_bytes or 0.0 for one in phases))
    report.outcomes += phases
    whole.peak_bytes = peak
    largest = max(spent["peak_memory_bytes"] for spent in planned.values())
    report.check(
        peak < LIMIT_BYTES, f"{method}: peak of {peak / GIB:.1f} GiB is under {LIMIT_BYTES / GIB:.0f}"
    )
    if full_size:  # the plan's figures for the encoders are those of full size
        report.check(
            0.5 < largest / peak < 2,
            f"{method}: planned {largest / GIB:.1f} GiB, took {peak / GIB:.1f}: within a factor of 2",
        )
    if method == "lora":
        report.check(*_scores(result))
    artefact = target / "artefact"
    report.check(artefact.is_dir(), f"{method}: left an artefact")
    return artefact if artefact.is_dir() else None


def _scores(result: dict[str, Any]) -> tuple[bool, str]:
    """Of every metric: has it values, or a stated reason for none? Faces need not be found in noise."""
    last = result["evaluations"][-1] if isinstance(result.get("evaluations"), list) else result["evaluations"]
    told = json.dumps(last)
    missing = [name for name in ALL_METRICS if f'"{name}"' not in told]
    return not missing, f"lora: all {len(ALL_METRICS)} metrics are in the record" + (
        f", but for {', '.join(missing)}" if missing else ""
    )


def load_elsewhere(report: Report, folder: Path, artefacts: dict[str, Path]) -> None:
    """The artefacts in plain diffusers: no code of ours in that process."""
    places = {
        "lora": artefacts.get("lora", Path()) / "pytorch_lora_weights.safetensors",
        "textual_inversion": artefacts.get("textual_inversion", Path()) / "learned_embeds.safetensors",
        "dreambooth": artefacts.get("dreambooth", Path()),
    }
    if not (places["dreambooth"] / "model_index.json").is_file():
        # Where step 0 is recommended, as with weights that mean nothing it may be, the artefact is a note of
        # the untouched model: what the last step left is loaded then.
        places["dreambooth"] = places["dreambooth"].parent / "adapters" / "step-000001"
    there = {name: str(path) for name, path in places.items() if name in artefacts}
    script = folder / "plain.py"
    script.write_text(PLAIN)
    log = folder / "plain.log"
    status, seconds, peak = run([sys.executable, str(script), str(folder / "model"), json.dumps(there)], log)
    report.outcomes.append(Outcome("loaded in plain diffusers", seconds, peak))
    told = log.read_text("utf-8", errors="replace")
    found = (
        json.loads(told.partition("FOUND ")[2].splitlines()[0]) if status == 0 and "FOUND " in told else {}
    )
    for name in there:
        reason = "" if found else f": exit status {status}: {told.strip()[-300:]}"
        report.check(bool(found.get(name)), f"{name}: its artefact draws in plain diffusers{reason}")


def table(report: Report) -> str:
    """Markdown."""

    def cell(value: float | None, unit: float, digits: int) -> str:
        return "" if value is None else f"{value / unit:.{digits}f}"

    rows = [
        f"| {one.phase} | {cell(one.seconds, 1, 0)} | {cell(one.planned_seconds, 1, 0)} | "
        f"{cell(one.peak_bytes, GIB, 1)} | {cell(one.planned_bytes, GIB, 1)} |"
        for one in report.outcomes
    ]
    head = "| phase | seconds | planned | peak, GiB | planned |\n|---|---|---|---|---|"
    return "\n".join([head, *rows])


def rehearse(folder: Path, *, size: str, device: str, pixels: int, methods: list[str]) -> Report:
    """All of it, in `folder`."""
    report = Report()
    began, spent = time.perf_counter(), sum(os.times()[:4])
    if not (folder / "prompts.txt").is_file():  # written last: a complete folder is reused
        stand_ins.build(folder, size)
    report.outcomes.append(Outcome("model and encoders built", time.perf_counter() - began))
    artefacts: dict[str, Path] = {}
    for method in methods:
        side = pixels if method == "lora" else 64
        artefact = finetune(report, folder, method, side, device, size == "full")
        if artefact is not None:
            artefacts[method] = artefact
    load_elsewhere(report, folder, artefacts)
    total = time.perf_counter() - began
    report.outcomes.append(Outcome("all", total))
    report.check(*_in_time(total, sum(os.times()[:4]) - spent))
    return report


def _in_time(wall: float, processor: float) -> tuple[bool, str]:
    """By the clock; where other programs held the cores, by the processor time that this one had, spread over them."""
    cores = len(os.sched_getaffinity(0))
    told = f"{wall:.0f} s by the clock, {processor:.0f} s of processor time on {cores} cores"
    if wall < LIMIT_SECONDS:
        return True, f"{told}: under {LIMIT_SECONDS:.0f}"
    busy = os.getloadavg()[2] > 1.5 * cores
    alone = processor / cores
    return busy and alone < LIMIT_SECONDS, f"{told}" + (
        f"; the machine was busy (load {os.getloadavg()[2]:.1f}): {alone:.0f} s on its cores alone"
        if busy
        else ""
    )


def affordable(device: str) -> int:
    """512 pixels, or 256 if this machine, at its current load, would take too long."""
    import torch

    from diffusion_lab.plan.calibrate import achieved

    if device != "cpu":
        return 512
    return 512 if achieved(torch.device("cpu"), "fp32") >= FAST else 256


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pixels", type=int, default=0, help="of the LoRA; 0: 512, or what the time allows")
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--keep", default="", help="folder that stays; else a temporary one")
    options = parser.parse_args(arguments)
    pixels = options.pixels or (affordable(options.device) if options.size == "full" else 64)
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as temporary:
        folder = Path(options.keep or temporary).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        report = rehearse(
            folder, size=options.size, device=options.device, pixels=pixels, methods=options.methods
        )
    print(f"\n{options.size} size on {options.device}, LoRA at {pixels} pixels\n\n{table(report)}")
    return int(not all(passed for passed, _ in report.lines))


if __name__ == "__main__":
    sys.exit(main())
