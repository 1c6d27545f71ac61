"""The command line of the study."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from diffusion_lab.recipes.trust import questions
from diffusion_lab.recipes.trust.answers import Answer, table
from diffusion_lab.recipes.trust.page import write_page
from diffusion_lab.system.atomic import write_text

ASKED = (
    questions.ask_identity,
    questions.ask_scene,
    questions.ask_quality,
    questions.ask_variety,
    questions.ask_copies,
    questions.ask_faces,
    questions.ask_words,
)


def study(people: int = 20) -> list[Answer]:
    """All questions, about ``people`` people (two or more)."""
    from diffusion_lab.config.schema import Metrics
    from diffusion_lab.evaluation.encoders.bank import EncoderBank

    bank = EncoderBank(Metrics(encoders="miniature"))
    answers: list[Answer] = []
    for ask in ASKED:
        answers += ask(bank, people)
        print(f"{ask.__name__}: done", flush=True)
    return answers


def write(answers: list[Answer], folder: Path) -> None:
    """trust.json, trust.md and trust.html into ``folder``."""
    write_text(folder / "trust.json", json.dumps([asdict(one) for one in answers], indent=1) + "\n")
    write_text(folder / "trust.md", table(answers))
    write_page(folder / "trust.html", answers)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m diffusion_lab.recipes.trust",
        description="Ask the metrics about a world whose truth is known.",
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--people", type=int, default=20)
    asked = parser.parse_args(arguments)
    answers = study(asked.people)
    write(answers, asked.folder)
    print(table(answers))


if __name__ == "__main__":
    from diffusion_lab.values.checks import command

    raise SystemExit(command(main))
