"""MT-Bench scores in words: the rows of a model's column, in tables and in reports."""

from collections.abc import Iterable

from duquant.scores.mt_bench import ModelScore, PairScore, Tally

Cells = dict[str, str]
"""Rows of one column by their names."""
ABSENT = "–"
TIES = "win rate: a tie counts as half a win; a win needs both orders"
SCORE_ROWS = (("turn 1", "turn 2", "average"), ("questions", "turns judged", "malformed"))
PAIR_ROWS = (("all", "win rate"), ("malformed",))
"""What stands below the categories, in sections."""
CATEGORIES = (
    "writing",
    "roleplay",
    "extraction",
    "math",
    "coding",
    "reasoning",
    "stem",
    "humanities",
)
"""MT-Bench's, in its order."""


def score_cells(score: ModelScore) -> Cells:
    """The column of a model that was scored."""
    return {
        **{name: _number(score.categories[name]) for name in in_order(score.categories)},
        "turn 1": _number(score.turn_1),
        "turn 2": _number(score.turn_2),
        "average": _number(score.average),
        "questions": str(score.questions),
        "turns judged": str(score.judged),
        "malformed": str(score.malformed),
    }


def pair_cells(score: PairScore) -> Cells:
    """The column of a model that was compared."""
    return {
        **{name: _outcomes(score.categories[name]) for name in in_order(score.categories)},
        "all": _outcomes(score.overall),
        "win rate": _percent(score.overall.rate()),
        "malformed": str(score.malformed),
    }


def in_order(names: Iterable[str]) -> list[str]:
    """MT-Bench's categories in its order, then others."""
    given = set(names)
    return [name for name in CATEGORIES if name in given] + sorted(given - set(CATEGORIES))


def _number(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return ABSENT if value is None else f"{100 * value:.1f} %"


def _outcomes(tally: Tally) -> str:
    return f"{tally.win}/{tally.tie}/{tally.loss}"
