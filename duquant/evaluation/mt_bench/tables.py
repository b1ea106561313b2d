"""Tables of scores, for people: a column per model, the best first."""

from collections.abc import Iterable, Sequence

from duquant.evaluation.mt_bench.questions import TEMPERATURES
from duquant.evaluation.mt_bench.scores import ModelScore, PairScore, Tally
from duquant.terminal import PlainTable

Cells = dict[str, str]
"""Rows of one column by their names."""
ABSENT = "–"
TIES = "win rate: a tie counts as half a win; a win needs both orders"
SCORE_ROWS = (("turn 1", "turn 2", "average"), ("questions", "turns judged", "malformed"))
PAIR_ROWS = (("all", "win rate"), ("malformed",))
"""What stands below the categories, in sections."""


def score_table(scores: list[ModelScore], judge: str) -> PlainTable:
    """Mean scores: a row per category and turn."""
    title = f"MT-Bench scores, 1 to 10, by {judge}"
    return _table(title, scores, [score_cells(score) for score in scores], SCORE_ROWS)


def pair_table(scores: list[PairScore], judge: str) -> PlainTable:
    """Wins, ties and losses as ``win/tie/loss``: a row per category."""
    title = f"MT-Bench comparisons (win/tie/loss) by {judge}"
    return _table(title, scores, [pair_cells(score) for score in scores], PAIR_ROWS, TIES)


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
    return [name for name in TEMPERATURES if name in given] + sorted(given - TEMPERATURES.keys())


def _table(
    title: str,
    scores: Sequence[ModelScore | PairScore],
    columns: list[Cells],
    sections: Sequence[Sequence[str]],
    caption: str | None = None,
) -> PlainTable:
    table = PlainTable(title, caption)
    table.add_column("")
    for score in scores:
        table.add_column(score.model, justify="right", overflow="fold")
    categories = in_order({name for score in scores for name in score.categories})
    for section in (categories, *sections):
        for name in section:
            table.add_row(name, *(cells.get(name, ABSENT) for cells in columns))
        table.add_section()
    return table


def _number(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return ABSENT if value is None else f"{100 * value:.1f} %"


def _outcomes(tally: Tally) -> str:
    return f"{tally.win}/{tally.tie}/{tally.loss}"
