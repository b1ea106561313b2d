"""Scores of judged models: means per category and turn, and wins, ties and losses.

As FastChat computes them: a model's average is the mean over all judged turns; malformed judgments
are left out. Of two models one wins a turn only if it does in both orders; everything else is a
tie. The adjusted win rate counts a tie as half a win.
"""

from collections.abc import Iterable
from statistics import fmean

from duquant.evaluation.mt_bench.json_lines import Record
from duquant.evaluation.mt_bench.verdicts import NO_SCORE
from duquant.scores.mt_bench import ModelScore, PairScore, Tally

Categories = dict[int, str]
"""Category of every question, by number."""


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
