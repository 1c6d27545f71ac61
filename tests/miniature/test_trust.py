"""The study of the metrics, on few people: its statistics by hand, and answers that must come out."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from diffusion_lab.config.schema import Metrics
from diffusion_lab.evaluation.encoders.bank import EncoderBank
from diffusion_lab.recipes.auc import auc
from diffusion_lab.recipes.trust import __main__ as command
from diffusion_lab.recipes.trust import answers, questions
from diffusion_lab.recipes.trust.answers import Answer, answer


@pytest.fixture(scope="module")
def bank() -> EncoderBank:
    return EncoderBank(Metrics(encoders="miniature"))


def test_auc_counts_pairs_and_ties_half() -> None:
    a, b = np.array([3.0, 2.0, np.nan]), np.array([1.0, 2.0])
    pairs = [1.0 if x > y else 0.5 if x == y else 0.0 for x in (3.0, 2.0) for y in (1.0, 2.0)]
    assert auc(a, b) == pytest.approx(np.mean(pairs))
    assert math.isnan(auc(np.array([np.nan]), b))


def test_rank_correlation_leaves_undefined_pairs_out() -> None:
    assert answers.spearman([1, 2, 3, 4], [1.0, np.nan, 2.0, 9.0]) == pytest.approx(1.0)
    assert answers.spearman([1, 2, 3], [3.0, 2.0, 1.0]) == pytest.approx(-1.0)


def test_too_few_values_are_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        answer("similarity", "question", "statistic", [0.5, math.nan])


def test_an_interval_stays_within_the_statistics_range_and_is_none_where_all_are_alike() -> None:
    for statistic, values in (
        ("rank correlation with that number", [1.0, 0.99, 0.9]),
        ("AUC against new pictures", [1.0, 0.9, 1.0]),
        ("share of faces found", [0.0, 0.1, 0.0]),
    ):
        found = answer("a", "b", statistic, values)
        assert found.low is not None
        assert found.high is not None
        assert -1 <= found.low < found.mean < found.high <= 1
        assert statistic.startswith("rank") or found.low >= 0
    alike = answer("a", "b", "AUC against new pictures", [1.0, 1.0, 1.0])
    assert (alike.low, alike.high) == (None, None)
    assert "| 1.000 | all alike | 3 |" in answers.table([alike])


def test_curves_average_over_people_and_leave_out_what_nobody_has() -> None:
    nan = math.nan
    curve = answers.curve_of([0, 1, 2, 3], [[1.0, 2.0, nan, nan], [3.0, 4.0, 5.0, nan]])
    assert [(point.at, point.mean) for point in curve] == [(0, 2), (1, 3), (2, 5)]
    assert curve[0].low is not None
    assert curve[0].low < 2
    assert curve[2].low is None  # one person alone has no interval
    assert [point.at for point in answers.curve_of(["hat"], [[1.0], [2.0]])] == ["hat"]


def test_planted_copies_are_found_and_new_pictures_are_not(bank: EncoderBank) -> None:
    found = questions.ask_copies(bank, people=2)
    assert [a.n for a in found] == [2] * len(questions.COPIES)
    assert min(a.mean for a in found) > 0.95
    for one in found:
        new, copies = one.curve
        assert (new.at, copies.at) == ("new pictures", "copies")
        assert copies.mean > new.mean


def test_captions_with_another_attire_score_lower(bank: EncoderBank) -> None:
    (found,) = questions.ask_words(bank, sets=2, size=12, slots=["attire"])
    assert found.mean > 0.9


def test_aesthetics_follow_quality(bank: EncoderBank) -> None:
    quality, rating = questions.ask_quality(bank, sets=2, size=30)
    assert quality.mean > 0.6
    assert rating.mean > 0.7
    merits = [float(point.at) for point in rating.curve]
    assert merits == sorted(merits)
    assert rating.curve[-1].mean > rating.curve[0].mean


def test_a_scene_has_a_point_a_phrase_and_names_the_worst(bank: EncoderBank) -> None:
    (found,) = questions.ask_scene(bank, people=2, slots=["lighting"])
    worst = max(found.curve, key=lambda point: point.mean)
    assert f"worst phrase: {worst.at}" in found.question
    assert found.mean == pytest.approx(worst.mean)
    assert found.axes[0] == "lighting"


def few() -> list[Answer]:
    """One answer of each shape that the page draws."""
    line = answers.curve_of([0.0, 0.5, 1.0], [[0.9, 0.6, 0.2], [0.8, 0.5, 0.3]])
    phrases = answers.curve_of(["soft", "neon <b>"], [[0.1, 0.2], [0.0, 0.3]])
    copies = answers.curve_of(["new pictures", "copies"], [[0.5, 0.9], [0.6, 1.0]])
    return [
        answer("similarity", "falls", "rank correlation", [0.9, 1.0, 0.95], line, ("distance", "similarity")),
        answer(
            "similarity", "is indifferent to lighting", "lost", [0.2, 0.3], phrases, ("lighting", "share")
        ),
        answer("aesthetics", "follows", "rank correlation", [0.9, 0.8], line, ("rating", "aesthetics")),
        answer("diversity", "grows", "rank correlation", [1.0, 1.0], line, ("slots", "diversity")),
        answer("memorisation", "finds copies (noise)", "AUC", [1.0, 0.9], copies, ("noise", "memorisation")),
        answer("face_rate", "quality: blurry", "share of faces found", [0.1, 0.2]),
        answer("clip_text", "follows style", "share", [1.0, 0.9]),
    ]


def test_table_has_a_row_for_each_answer() -> None:
    text = answers.table(few())
    assert len(text.splitlines()) == 2 + 7
    assert "| 0.950 |" in text


def test_the_folder_has_numbers_table_and_a_page_that_loads_nothing(tmp_path: Path) -> None:
    command.write(few(), tmp_path / "new")
    told = json.loads((tmp_path / "new" / "trust.json").read_text())
    assert told[0]["curve"][0][:2] == [0.0, pytest.approx(0.85)]
    assert (tmp_path / "new" / "trust.md").read_text() == answers.table(few())
    page = (tmp_path / "new" / "trust.html").read_text()
    assert re.findall(r'id="chart-(\w+)"', page) == [
        "identity", "scene", "quality", "variety", "copies", "faces", "words",
    ]  # fmt: skip
    assert "default-src 'none'" in page
    markup = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert not re.search(r'(src|href)="(?!data:)', markup)
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])  # type: ignore[index]
    assert set(data["figures"]) == set(re.findall(r'id="chart-(\w+)"', page))
    command.write(few()[-1:], tmp_path / "one")
    assert re.findall(r'id="chart-(\w+)"', (tmp_path / "one" / "trust.html").read_text()) == ["words"]


def test_the_command_is_there() -> None:
    asked = [sys.executable, "-m", "diffusion_lab.recipes.trust", "--help"]
    done = subprocess.run(asked, capture_output=True, text=True, check=True)
    assert "--people" in done.stdout
