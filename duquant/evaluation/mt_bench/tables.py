"""Tables of scores, for people: a column per model, the best first."""

from collections.abc import Iterable

from rich.table import Table

from duquant.evaluation.mt_bench.questions import TEMPERATURES
from duquant.evaluation.mt_bench.scores import ModelScore, PairScore, Tally


def score_table(scores: list[ModelScore], judge: str) -> Table:
    """Mean scores: a row per category and turn."""
    table = _table(f"MT-Bench scores, 1 to 10, by {judge}", (s.model for s in scores))
    for name in _in_order({name for score in scores for name in score.categories}):
        table.add_row(name, *(_number(score.categories.get(name)) for score in scores))
    table.add_section()
    table.add_row("turn 1", *(_number(score.turn_1) for score in scores))
    table.add_row("turn 2", *(_number(score.turn_2) for score in scores))
    table.add_row("average", *(_number(score.average) for score in scores))
    table.add_section()
    table.add_row("turns judged", *(str(score.judged) for score in scores))
    table.add_row("malformed", *(str(score.malformed) for score in scores))
    return table


def pair_table(scores: list[PairScore], judge: str) -> Table:
    """Wins, ties and losses as ``win/tie/loss``: a row per category."""
    table = _table(f"MT-Bench comparisons (win/tie/loss) by {judge}", (s.model for s in scores))
    for name in _in_order({name for score in scores for name in score.categories}):
        table.add_row(name, *(_outcomes(score.categories.get(name)) for score in scores))
    table.add_section()
    table.add_row("all", *(_outcomes(score.overall) for score in scores))
    table.add_row("win rate*", *(_percent(score.overall.rate()) for score in scores))
    table.add_row("malformed", *(str(score.malformed) for score in scores))
    table.caption = "* a tie counts as half a win; a win needs both orders"
    return table


def _table(title: str, models: Iterable[str]) -> Table:
    table = Table(title=title)
    table.add_column("")
    for model in models:
        table.add_column(model, justify="right", overflow="fold")
    return table


def _in_order(names: set[str]) -> list[str]:
    """MT-Bench's categories in its order, then others."""
    return [name for name in TEMPERATURES if name in names] + sorted(names - TEMPERATURES.keys())


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _outcomes(tally: Tally | None) -> str:
    return "–" if tally is None else f"{tally.win}/{tally.tie}/{tally.loss}"
