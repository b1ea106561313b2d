"""Scores of judged models: means per category and turn, and wins, ties and losses.

As FastChat computes them: a model's average is the mean over all judged turns; malformed judgments
are left out. Of two models one wins a turn only if it does in both orders; everything else is a
tie. The adjusted win rate counts a tie as half a win.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from duquant.evaluation.mt_bench.json_lines import Record
from duquant.evaluation.mt_bench.verdicts import NO_SCORE

Categories = dict[int, str]
"""Category of every question, by number."""


@dataclass(frozen=True)
class ModelScore:
    """Mean scores of a model, from 1 to 10; ``None`` where nothing was judged.

    Attributes:
        model: its name.
        categories: mean over both turns, by category.
        turn_1: mean of first turns.
        turn_2: mean of second turns.
        average: mean of all turns.
        questions: questions with a scored turn.
        judged: turns that were scored.
        malformed: turns whose judgment had no score.
    """

    model: str
    categories: dict[str, float]
    turn_1: float | None
    turn_2: float | None
    average: float | None
    questions: int
    judged: int
    malformed: int


@dataclass
class Tally:
    """Outcomes of a model's matches.

    Attributes:
        win: turns won in both orders.
        tie: turns with any other outcome.
        loss: turns lost in both orders.
    """

    win: int = 0
    tie: int = 0
    loss: int = 0

    def count(self, outcome: str) -> None:
        """Add one outcome: "win", "tie" or "loss"."""
        setattr(self, outcome, getattr(self, outcome) + 1)

    def rate(self) -> float | None:
        """Adjusted win rate, 0 to 1: ``(win + tie / 2) / (win + tie + loss)``."""
        total = self.win + self.tie + self.loss
        return (self.win + self.tie / 2) / total if total else None


@dataclass
class PairScore:
    """How a model did against all its opponents.

    Attributes:
        model: its name.
        overall: all its matches.
        categories: the same by category.
        malformed: matches with a judgment that had no verdict; they count nowhere else.
    """

    model: str
    overall: Tally = field(default_factory=Tally)
    categories: dict[str, Tally] = field(default_factory=dict)
    malformed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with the rates."""
        plain = asdict(self)
        total = self.overall.win + self.overall.tie + self.overall.loss
        plain["win_rate"] = self.overall.win / total if total else None
        plain["loss_rate"] = self.overall.loss / total if total else None
        plain["win_rate_adjusted"] = self.overall.rate()
        return plain


def score_models(judgments: Iterable[Record], categories: Categories) -> list[ModelScore]:
    """Mean scores, the best model first.

    Args:
        judgments: records of single scores.
        categories: category of every question.
    """
    by_model: dict[str, list[Record]] = {}
    for record in judgments:
        by_model.setdefault(record["model"], []).append(record)
    scores = [_model_score(model, found, categories) for model, found in by_model.items()]
    return sorted(scores, key=lambda s: (-(s.average or 0.0), s.model))


def score_pairs(
    judgments: Iterable[Record], categories: Categories, baseline: str | None = None
) -> list[PairScore]:
    """Wins, ties and losses, the best model first.

    Args:
        judgments: records of comparisons.
        categories: category of every question.
        baseline: count only matches against this model, and leave it out itself.
    """
    scores: dict[str, PairScore] = {}
    for record in judgments:
        models = record["model_1"], record["model_2"]
        if baseline is not None and baseline not in models:
            continue
        for model, outcome in zip(models, _outcomes(record), strict=True):
            score = scores.setdefault(model, PairScore(model))
            if outcome == "malformed":
                score.malformed += 1
                continue
            score.overall.count(outcome)
            category = categories.get(record["question_id"])
            if category is not None:
                score.categories.setdefault(category, Tally()).count(outcome)
    found = [score for model, score in scores.items() if model != baseline]
    return sorted(found, key=lambda s: (-(s.overall.rate() or 0.0), s.model))


def _model_score(model: str, records: list[Record], categories: Categories) -> ModelScore:
    scored = [record for record in records if record["score"] != NO_SCORE]
    by_category: dict[str, list[float]] = {}
    for record in scored:
        category = categories.get(record["question_id"])
        if category is not None:
            by_category.setdefault(category, []).append(record["score"])
    first, second = ([r["score"] for r in scored if r["turn"] == turn] for turn in (1, 2))
    return ModelScore(
        model,
        {category: fmean(values) for category, values in by_category.items()},
        _mean(first),
        _mean(second),
        _mean([record["score"] for record in scored]),
        questions=len({record["question_id"] for record in scored}),
        judged=len(scored),
        malformed=len(records) - len(scored),
    )


def _mean(values: list[float]) -> float | None:
    return fmean(values) if values else None


def _outcomes(record: Record) -> tuple[str, str]:
    """What a match is for either model."""
    first, second = record["g1_winner"], record["g2_winner"]
    if "error" in (first, second):
        return "malformed", "malformed"
    if first == "tie" or first != second:
        return "tie", "tie"
    return ("win", "loss") if first == "model_1" else ("loss", "win")
