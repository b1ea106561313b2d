"""Tables of scores, for people."""

from rich.table import Table

from duquant.evaluation.mt_bench.questions import TEMPERATURES
from duquant.evaluation.mt_bench.scores import ModelScore, PairScore


def score_table(scores: list[ModelScore], judge: str) -> Table:
    """Mean scores: a row per model, a column per category."""
    names = _in_order({name for score in scores for name in score.categories})
    table = Table(title=f"MT-Bench scores, 1 to 10, by {judge}")
    table.add_column("model", overflow="fold")
    for name in [*names, "turn 1", "turn 2", "average", "judged"]:
        table.add_column(name, justify="right")
    for score in scores:
        means = [score.categories.get(name) for name in names]
        means += [score.turn_1, score.turn_2, score.average]
        table.add_row(score.model, *map(_number, means), _judged(score.judged, score.malformed))
    return table


def pair_table(scores: list[PairScore], judge: str) -> Table:
    """Wins, ties and losses: a row per model, a column per category as ``win/tie/loss``."""
    names = _in_order({name for score in scores for name in score.categories})
    table = Table(title=f"MT-Bench comparisons (win/tie/loss) by {judge}")
    table.add_column("model", overflow="fold")
    for name in [*names, "all", "win rate*", "malformed"]:
        table.add_column(name, justify="right")
    for score in scores:
        tallies = [score.categories.get(name) for name in names] + [score.overall]
        cells = [f"{t.win}/{t.tie}/{t.loss}" if t else "–" for t in tallies]
        rate = score.overall.rate()
        shown = "–" if rate is None else f"{100 * rate:.1f} %"
        table.add_row(score.model, *cells, shown, str(score.malformed))
    table.caption = "* a tie counts as half a win; a win needs both orders"
    return table


def _in_order(names: set[str]) -> list[str]:
    """MT-Bench's categories in its order, then others."""
    return [name for name in TEMPERATURES if name in names] + sorted(names - TEMPERATURES.keys())


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _judged(judged: int, malformed: int) -> str:
    return f"{judged} ({malformed} malformed)" if malformed else str(judged)
