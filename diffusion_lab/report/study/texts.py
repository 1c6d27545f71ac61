"""Texts of a study's page: its answer, what it is made from, and what is missing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from diffusion_lab.report.study.resampling import replicates_for
from diffusion_lab.studies.answers import answer as answer_of
from diffusion_lab.studies.claim import HOLDS, NOT, UNCLEAR, Claim
from diffusion_lab.studies.claims import check_claims
from diffusion_lab.studies.claims_text import number
from diffusion_lab.studies.definition import QUICK, Study
from diffusion_lab.studies.table import Table

PLACES: Mapping[str, tuple[str, str]] = {
    "words": (
        "Which words of a prompt help",
        "Not answered here: it needs images of many prompts from one artefact. job=generate job.artefact=RUN/artefact writes "
        "them and job=score measures each; scores.csv has the phrase in every slot.",
    ),
    "negative": (
        "Negative prompts",
        "Not answered here: it needs the same prompts and noise with and without a negative prompt. Two runs of job=generate, "
        "one with prompts.negative=TEXT, then job=score of both.",
    ),
}


def title(place: Path, study: Study | None) -> str:
    if study is not None:
        return study.name
    return f"All runs in {place.resolve().parent.name}"


def facts(table: Table) -> list[str]:
    """How many runs, by status, and how many points have not begun or ended without a measurement."""
    counts = Counter(run.status for run in table.runs)
    counts.update(why.partition(":")[0] for _, why in table.pending)
    found = [f"{number} {status}" for status, number in sorted(counts.items())]
    if table.unreadable:
        found.append(f"{len(table.unreadable)} unreadable")
    return found


def source(table: Table) -> str:
    """ "Model miniature, method lora; 10 subjects (5 women, 5 men); 4, 8, 14 and 20 photos; 40 runs, 38 finished"."""
    runs = table.runs
    if not runs:
        return "No run of this study has been measured yet."
    genders = Counter({run.subject: run.gender for run in runs}.values())
    people = [
        f"{genders[kind]} {kind if genders[kind] == 1 else many}"
        for kind, many in (("woman", "women"), ("man", "men"))
        if genders[kind]
    ]
    subjects = len({run.subject for run in runs})
    finished = sum(run.finished for run in runs)
    numbers = sorted({run.n_images for run in runs if run.n_images})
    parts = [
        f"Model {listed(sorted({run.model for run in runs}))}, method {listed(sorted({run.method for run in runs}))}",
        _many(subjects, "subject") + (f" ({', '.join(people)})" if people else ""),
        f"{listed([str(n) for n in numbers])} training photos" if numbers else "",
        f"{_many(len({run.seed for run in runs}), 'seed')}",
        f"{_many(len(runs), 'run')} with evaluations, {finished} of them completed",
    ]
    return "; ".join(part for part in parts if part) + "."


def listed(words: Sequence[str], most: int = 8) -> str:
    """ "a", "a and b", "a, b and c"; of many only the first."""
    if len(words) > most:
        words = [*words[:most], f"{len(words) - most} more"]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _many(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def cautions(table: Table) -> list[str]:
    found = []
    encoders = {repr(sorted(run.encoders.items(), key=str)) for run in table.runs if run.encoders}
    if len(encoders) > 1:
        found.append(
            "The runs were measured with different encoders, so their values cannot be compared directly."
        )
    if len({run.subject for run in table.runs}) == 1:
        found.append(
            "All runs show one subject: intervals are for other prompts only, not for other subjects."
        )
    if table.unfinished:
        found.append(
            f"{_many(len(table.unfinished), 'run')} ended early or is still in progress; its evaluations up to now are used."
            if len(table.unfinished) == 1
            else f"{len(table.unfinished)} runs ended early or are still in progress; their evaluations up to now are used."
        )
    return found


def intervals(table: Table) -> str:
    """How the page's intervals are made, in one sentence."""
    replicates = replicates_for(table.runs)
    drawn = (
        f"subjects and prompts are drawn again, the prompts alike for all runs ({replicates} replicates)"
        if replicates
        else "subjects are drawn again"
    )
    return f"hierarchical bootstrap: {drawn}, with a correction for few subjects."


def answer(table: Table, study: Study | None) -> list[str]:
    """The sentences that answer the study's question; of a folder without a study, what the curves do."""
    text = answer_of("dynamics" if study is None else study.name.removesuffix(QUICK), table)
    return re.split(r"(?<=[.!?]) (?=[A-Z0-9])", text.replace(" %", "\N{NO-BREAK SPACE}%"))


KINDS: Mapping[str, str] = {HOLDS: "holds", NOT: "fails", UNCLEAR: "unclear"}  # verdict -> class of the style


def claims(table: Table, study: Study | None) -> list[dict[str, str]]:
    """The claims that the study answers, as texts; without a study all claims with data."""
    if not table.runs:
        return []
    found = check_claims(table)
    if study is None:
        shown = [claim for claim in found if claim.effect is not None]
    else:
        shown = [claim for claim in found if claim.study == study.name.removesuffix(QUICK)]
    return [claim_row(claim) for claim in shown]


def tally(claims: Sequence[Mapping[str, str]]) -> str:
    """ "3 hold, 1 does not hold, 2 cannot tell"."""
    counts = Counter(claim["verdict"] for claim in claims)
    said = {HOLDS: ("holds", "hold"), NOT: ("does not hold", "do not hold"), UNCLEAR: (UNCLEAR, UNCLEAR)}
    return ", ".join(
        f"{counts[v]} {one if counts[v] == 1 else many}" for v, (one, many) in said.items() if counts[v]
    )


def claim_row(claim: Claim) -> dict[str, str]:
    """A claim as texts; "-" for what is not known."""

    def text(value: float | None) -> str:
        return "-" if value is None else number(value)

    known = claim.low is not None and claim.high is not None
    return {
        "text": claim.text,
        "source": claim.source,
        "kind": KINDS[claim.verdict],
        "verdict": claim.verdict,
        "effect": text(claim.effect) + (f" {claim.unit}" if claim.effect is not None else ""),
        "measure": f"{claim.measured}, wanted: {claim.wanted}" if claim.wanted else claim.measured,
        "interval": f"{text(claim.low)} to {text(claim.high)}" if known else "-",
        "detectable": text(claim.smallest),
        "n": f"{_many(claim.subjects, 'subject')}, {_many(claim.runs, 'run')}",
        "data": claim.data,
        "note": claim.note,
    }


def place(name: str) -> dict[str, str]:
    """The section of a question that is answered elsewhere."""
    heading, text = PLACES[name]
    return {"name": name, "title": heading, "text": text}
