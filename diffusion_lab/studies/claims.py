"""Every claim of the sources, checked on a table."""

from __future__ import annotations

from collections.abc import Sequence

from diffusion_lab.studies.claim import HOLDS, NOT, UNCLEAR, Asked, Claim
from diffusion_lab.studies.claims_counts import counts_claims
from diffusion_lab.studies.claims_dynamics import dynamics_claims
from diffusion_lab.studies.claims_methods import methods_claims
from diffusion_lab.studies.claims_models import model_claims, negative_claims
from diffusion_lab.studies.claims_stop import stop_claims
from diffusion_lab.studies.pool import Pool
from diffusion_lab.studies.table import Table

__all__ = ["HOLDS", "NOT", "UNCLEAR", "Claim", "check_claims", "tally"]

ELSEWHERE: Sequence[tuple[Asked, str]] = (
    (
        Asked(
            "words_face_rate",
            "Some parts of prompts perform much better than others at showing a face.",
            "000, Inspecting the influence of prompt components and 'magic words'",
            "words",
            "share",
            "face rate by phrase",
        ),
        "scores by phrase are needed",
    ),
    (
        Asked(
            "logo_order",
            "On a logo DreamBooth is best, LoRA okay, Textual Inversion not great, especially in OCR.",
            "004, Results",
            "logo",
            "0 to 1",
            "mean of detection confidence and OCR score (published: .725, .595, .545)",
        ),
        "a study of a logo with detection and OCR is needed",
    ),
    (
        Asked(
            "people_agree",
            "The similarity score correlates highly with people's labels.",
            "001, Appendix A",
            "",
            "rank correlation",
            "labels of five people against the score",
        ),
        "people's labels are needed; this study has none",
    ),
)  # fmt: skip


def check_claims(table: Table) -> list[Claim]:
    """Every claim in the order of the sources; those without data are "cannot tell" and say which study answers them."""
    pool = Pool(table)
    return [
        *dynamics_claims(pool),
        *stop_claims(pool),
        *counts_claims(pool),
        *model_claims(pool),
        *negative_claims(pool),
        *methods_claims(pool),
        *(asked.missing(why) for asked, why in ELSEWHERE),
    ]


def tally(claims: Sequence[Claim]) -> dict[str, int]:
    """How many hold, do not hold, and cannot be told."""
    return {verdict: sum(claim.verdict == verdict for claim in claims) for verdict in (HOLDS, NOT, UNCLEAR)}
