"""``python -m diffusion_lab.recipes.miniature FOLDER``: train the miniature's networks from drawn portraits."""

from __future__ import annotations

import argparse
from pathlib import Path


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and run the recipe."""
    parser = argparse.ArgumentParser(prog="python -m diffusion_lab.recipes.miniature", description=__doc__)
    parser.add_argument("folder", type=Path, help="where pictures, checkpoints, weights and figures go")
    parser.add_argument("--stages", nargs="+", help="default: all, in order")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ...")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies numbers of pictures and steps")
    parser.add_argument("--prediction-type", default="epsilon", choices=("epsilon", "v_prediction"))
    parser.add_argument("--start", type=Path, help="a U-Net's folder to begin from; cut where it is wider")
    given = parser.parse_args(arguments)
    from diffusion_lab.recipes.miniature.recipe import run

    run(
        given.folder,
        stages=given.stages,
        device=given.device,
        seed=given.seed,
        scale=given.scale,
        prediction_type=given.prediction_type,
        start=given.start,
    )


if __name__ == "__main__":
    from diffusion_lab.values.checks import command

    raise SystemExit(command(main))
