"""What a judge found, as tables for people and as JSON."""

from dataclasses import asdict, dataclass
from typing import Any

from duquant.evaluation.mt_bench.bench_directory import BenchDirectory
from duquant.evaluation.mt_bench.judgments import load_judgments
from duquant.evaluation.mt_bench.scores import Categories, score_models, score_pairs
from duquant.evaluation.mt_bench.tables import pair_table, score_table
from duquant.scores.mt_bench import ModelScore, PairScore
from duquant.terminal_table import PlainTable


@dataclass(frozen=True)
class Results:
    """Everything of one judge.

    Attributes:
        judge: its name.
        single: mean scores, the best model first.
        pairwise: wins, ties and losses, the best model first.
    """

    judge: str
    single: list[ModelScore]
    pairwise: list[PairScore]

    def tables(self) -> list[PlainTable]:
        """A table for each way of judging that was used."""
        tables = [score_table(self.single, self.judge)] if self.single else []
        return tables + ([pair_table(self.pairwise, self.judge)] if self.pairwise else [])

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "judge": self.judge,
            "single": [asdict(score) for score in self.single],
            "pairwise": [score.to_dict() for score in self.pairwise],
        }


def collect_results(
    bench: BenchDirectory,
    judge: str,
    categories: Categories,
    models: list[str],
    baseline: str | None,
) -> Results:
    """Read what a judge wrote.

    Args:
        bench: where it is.
        judge: the judge's name.
        categories: category of every question.
        models: models to show, none for all.
        baseline: count only comparisons with this model.

    Raises:
        ValueError: if there is nothing, or a file is malformed.
    """
    singles, pairs = bench.judgments(judge, "single"), bench.judgments(judge, "pairwise")
    if not singles.is_file() and not pairs.is_file():
        raise ValueError(f"{bench.path} holds no judgments of {judge}; mtbench judge makes them")
    scores = score_models(load_judgments(singles) if singles.is_file() else [], categories)
    tallies = score_pairs(load_judgments(pairs) if pairs.is_file() else [], categories, baseline)
    results = Results(
        judge,
        [score for score in scores if not models or score.model in models],
        [tally for tally in tallies if not models or tally.model in models],
    )
    if not results.single and not results.pairwise:
        raise ValueError(f"{judge} has judged none of the models asked for")
    return results
