"""The study of the metrics, on few people: its statistics by hand, and answers that must come out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from diffusion_lab.config import Metrics
from diffusion_lab.encoders.bank import EncoderBank
from diffusion_lab.miniature import trust


@pytest.fixture(scope="module")
def bank() -> EncoderBank:
    return EncoderBank(Metrics(encoders="miniature"))


def test_auc_counts_pairs_and_ties_half() -> None:
    a, b = np.array([3.0, 2.0, np.nan]), np.array([1.0, 2.0])
    pairs = [1.0 if x > y else 0.5 if x == y else 0.0 for x in (3.0, 2.0) for y in (1.0, 2.0)]
    assert trust.auc(a, b) == pytest.approx(np.mean(pairs))
    assert math.isnan(trust.auc(np.array([np.nan]), b))


def test_rank_correlation_leaves_undefined_pairs_out() -> None:
    assert trust.spearman([1, 2, 3, 4], [1.0, np.nan, 2.0, 9.0]) == pytest.approx(1.0)
    assert trust.spearman([1, 2, 3], [3.0, 2.0, 1.0]) == pytest.approx(-1.0)


def test_too_few_values_are_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        trust.answer("similarity", "question", "statistic", [0.5, math.nan])


def test_planted_copies_are_found_and_new_pictures_are_not(bank: EncoderBank) -> None:
    answers = trust.ask_copies(bank, people=2)
    assert [a.n for a in answers] == [2] * len(trust.COPIES)
    assert min(a.mean for a in answers) > 0.95


def test_captions_with_another_attire_score_lower(bank: EncoderBank) -> None:
    (found,) = trust.ask_words(bank, sets=2, size=12, slots=["attire"])
    assert found.mean > 0.9


def test_aesthetics_follow_quality(bank: EncoderBank) -> None:
    quality, rating = trust.ask_quality(bank, sets=2, size=30)
    assert quality.mean > 0.6
    assert rating.mean > 0.7


def test_table_has_a_row_for_each_answer() -> None:
    one = trust.answer("similarity", "falls", "rank correlation", [0.9, 1.0, 0.95])
    text = trust.table([one])
    assert len(text.splitlines()) == 3
    assert "| 0.950 |" in text
