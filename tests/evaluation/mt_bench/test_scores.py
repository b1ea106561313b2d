"""Scores equal what a sheet of paper gives."""

import io
from typing import Any

import pytest
from rich.console import Console

from duquant.evaluation.mt_bench.scores import score_models, score_pairs
from duquant.evaluation.mt_bench.tables import pair_table, score_table

CATEGORIES = {1: "writing", 2: "math", 3: "chess"}


def single(model: str, question: int, turn: int, score: float) -> dict[str, Any]:
    return {"model": model, "question_id": question, "turn": turn, "score": score}


def pair(models: str, question: int, first: str, second: str) -> dict[str, Any]:
    names = dict(zip(("model_1", "model_2"), models, strict=True))
    return {**names, "question_id": question, "turn": 1, "g1_winner": first, "g2_winner": second}


SINGLE = [
    single("a", 1, 1, 8.0), single("a", 1, 2, 6.0), single("a", 2, 1, 3.0), single("a", 2, 2, -1),
    single("b", 1, 1, 9.0), single("b", 1, 2, 9.0), single("b", 3, 1, 9.0), single("b", 3, 2, 5.0),
    single("c", 1, 1, -1),
]  # fmt: skip
M1, M2 = "model_1", "model_2"
PAIRS = [
    pair("ab", 1, M1, M1),  # a wins
    pair("ab", 2, M1, M2),  # the first in either order: a tie
    pair("ab", 1, "tie", "tie"),
    pair("ab", 2, "tie", M1),  # only one order: a tie
    pair("ab", 1, M1, "error"),  # does not count
    pair("cb", 1, M2, M2),  # b wins
]


def test_means_by_hand() -> None:
    b, a, c = score_models(SINGLE, CATEGORIES)
    assert [b.model, a.model, c.model] == ["b", "a", "c"], "the best first"
    assert a.categories == {"writing": 7.0, "math": 3.0}
    assert (a.turn_1, a.turn_2) == (5.5, 6.0)
    assert a.average == pytest.approx(17 / 3)
    assert (a.judged, a.malformed) == (3, 1)
    assert b.categories == {"writing": 9.0, "chess": 7.0}
    assert (b.turn_1, b.turn_2, b.average) == (9.0, 7.0, 8.0)
    assert (c.average, c.judged, c.malformed) == (None, 0, 1)


def test_wins_by_hand() -> None:
    a, b, c = score_pairs(PAIRS, CATEGORIES)
    assert (a.model, a.overall.win, a.overall.tie, a.overall.loss) == ("a", 1, 3, 0)
    assert (b.model, b.overall.win, b.overall.tie, b.overall.loss) == ("b", 1, 3, 1)
    assert (c.model, c.overall.win, c.overall.tie, c.overall.loss) == ("c", 0, 0, 1)
    assert (a.malformed, b.malformed, c.malformed) == (1, 1, 0)
    assert a.overall.rate() == pytest.approx(2.5 / 4)
    math = b.categories["math"]
    assert (math.win, math.tie, math.loss) == (0, 2, 0)
    plain = b.to_dict()
    rates = plain["win_rate"], plain["loss_rate"], plain["win_rate_adjusted"]
    assert rates == pytest.approx((0.2, 0.2, 0.5))


def test_baseline_counts_only_its_matches() -> None:
    (b,) = score_pairs(PAIRS, CATEGORIES, baseline="c")
    assert (b.model, b.overall.win, b.overall.tie, b.overall.loss) == ("b", 1, 0, 0)


def test_tables_show_the_numbers() -> None:
    printed = io.StringIO()
    console = Console(file=printed, width=80)
    console.print(score_table(score_models(SINGLE, CATEGORIES), "judge"))
    console.print(pair_table(score_pairs(PAIRS, CATEGORIES), "judge"))
    text = printed.getvalue()
    for shown in ("7.00", "5.67", "malformed", "1/3/0", "62.5 %", "chess"):
        assert shown in text
    assert text.index("writing") < text.index("math") < text.index("chess")
