"""Tables of scores, for people: a column per model, the best first."""

from collections.abc import Sequence

from duquant.scores.mt_bench import ModelScore, PairScore
from duquant.scores.mt_bench_cells import (
    ABSENT,
    PAIR_ROWS,
    SCORE_ROWS,
    TIES,
    Cells,
    in_order,
    pair_cells,
    score_cells,
)
from duquant.terminal_table import PlainTable


def score_table(scores: list[ModelScore], judge: str) -> PlainTable:
    """Mean scores: a row per category and turn."""
    title = f"MT-Bench scores, 1 to 10, by {judge}"
    return _table(title, scores, [score_cells(score) for score in scores], SCORE_ROWS)


def pair_table(scores: list[PairScore], judge: str) -> PlainTable:
    """Wins, ties and losses as ``win/tie/loss``: a row per category."""
    title = f"MT-Bench comparisons (win/tie/loss) by {judge}"
    return _table(title, scores, [pair_cells(score) for score in scores], PAIR_ROWS, TIES)


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
