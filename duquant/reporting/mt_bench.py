"""Tables of MT-Bench: scores per category and turn, and wins, ties and losses against others.

Columns stand in one table only if the same judge read the same questions with the same prompts. How
each model was asked is said above the table. Beside the runs stand the other models of their bench,
usually the full-precision original.
"""

from collections.abc import Iterator, Sequence

from duquant.reporting.run_contents import RunContents
from duquant.reporting.run_files import Judged
from duquant.reporting.tables import Column, Table, join
from duquant.scores.mt_bench_cells import (
    PAIR_ROWS,
    SCORE_ROWS,
    TIES,
    in_order,
    pair_cells,
    score_cells,
)

Found = tuple[RunContents, Judged]
"""A run, and what one judge found."""
SCORES, COMPARISONS = "MT-Bench scores, 1 to 10", "MT-Bench comparisons, win/tie/loss"


def mt_bench_tables(runs: Sequence[RunContents]) -> list[Table]:
    """A table of scores and one of comparisons for every judge, a column per model or pair."""
    found = [(run, judged) for run in runs for judged in run.mt_bench]
    groups: dict[tuple[str, ...], list[Found]] = {}
    for one in found:
        groups.setdefault(_key(one[1]), []).append(one)
    tables = []
    for key, alike in groups.items():
        scores, pairs = list(_scores(alike)), list(_pairs(alike))
        if scores:
            notes = (*key, *_asked(alike, scores))
            tables.append(_in_order(join(SCORES, scores, notes), SCORE_ROWS))
        if pairs:
            tables.append(_in_order(join(COMPARISONS, pairs, (*key, TIES)), PAIR_ROWS))
    return sorted(tables, key=lambda table: table.title != SCORES)


def _key(judged: Judged) -> tuple[str, ...]:
    words = f"{judged['prompts']}; a bench of {judged['questions']} questions"
    return (f"judge {judged['judge']}; {words}",)


def _name(run: RunContents, judged: Judged) -> str:
    """What a run's model is called: its name in the bench too, if that is another."""
    own = judged["model"]
    return own if own == run.name else f"{run.name} ({own})"


def _scores(alike: Sequence[Found]) -> Iterator[Column]:
    """Those of the runs, and behind them those of the other models of their benches."""
    own = {judged["model"] for _, judged in alike}
    others = []
    for run, judged in alike:
        for score in judged["single"]:
            cells = score_cells(score)
            if score.model == judged["model"]:
                yield Column((), _name(run, judged), cells)
            elif score.model not in own:
                others.append(Column((), score.model, cells))
    yield from others


def _pairs(alike: Sequence[Found]) -> Iterator[Column]:
    """Every pair once, from the side of the run that is named first."""
    seen = set()
    for run, judged in alike:
        for opponent, score in judged["pairwise"].items():
            pair = frozenset((judged["model"], opponent))
            if pair not in seen:
                seen.add(pair)
                cells = pair_cells(score)
                yield Column((), f"{_name(run, judged)} against {opponent}", cells)


def _asked(alike: Sequence[Found], columns: Sequence[Column]) -> Iterator[str]:
    shown = {column.name for column in columns}
    asked = [
        (_name(run, judged) if model == judged["model"] else model, how)
        for run, judged in alike
        for model, how in judged["asked"].items()
    ]
    yield from dict.fromkeys(f"{name}: {how}" for name, how in asked if name in shown)


def _in_order(table: Table, sections: Sequence[Sequence[str]]) -> Table:
    """Categories first, whichever column had them, then the sections below."""
    below = [name for section in sections for name in section]
    order = [*in_order({row[0] for row in table.rows} - set(below)), *below]
    rows = sorted(table.rows, key=lambda row: order.index(row[0]))
    return table._replace(columns=["category", *table.columns[1:]], rows=rows)
