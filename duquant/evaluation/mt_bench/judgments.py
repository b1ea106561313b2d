"""Judgments in FastChat's schema: a score of one model's turn, or a comparison of two models'.

======== ==================================================================
single   question_id, model, judge, user_prompt, judgment, score, turn, tstamp
pairwise question_id, model_1, model_2, g1_winner, g2_winner, judge,
         g1_user_prompt, g1_judgment, g2_user_prompt, g2_judgment, turn, tstamp
======== ==================================================================

``judge`` is the judge's name and its prompt's. Game 1 shows model 1 first, game 2 model 2; a winner
is "model_1", "model_2", "tie" or "error", a missing score -1.
"""

from pathlib import Path

from duquant.evaluation.mt_bench.json_lines import Record, read_records
from duquant.evaluation.mt_bench.matches import MatchKey
from duquant.evaluation.mt_bench.verdicts import NO_SCORE

NEEDED: dict[str, tuple[type, ...]] = {"question_id": (int,), "turn": (int,)}
NEEDED_OF_SCORES: dict[str, tuple[type, ...]] = {"model": (str,), "score": (int, float)}
NEEDED_OF_COMPARISONS: dict[str, tuple[type, ...]] = {
    "model_1": (str,),
    "model_2": (str,),
    "g1_winner": (str,),
    "g2_winner": (str,),
}


OUTCOMES = {"model_1", "model_2", "tie", "error"}
LARGEST_SCORE = 1000
"""Scores end at 10; this keeps out what is no number."""


def match_key(record: Record, where: str) -> MatchKey:
    """What a judgment is about.

    Raises:
        ValueError: if it lacks what a judgment needs.
    """
    is_comparison = "model_1" in record
    kind = NEEDED_OF_COMPARISONS if is_comparison else NEEDED_OF_SCORES
    for name, types in {**NEEDED, **kind}.items():
        if not isinstance(record.get(name), types) or isinstance(record[name], bool):
            raise ValueError(f"{where}: a judgment has no usable {name}")
    if not is_comparison and not abs(record["score"]) <= LARGEST_SCORE:
        raise ValueError(f"{where}: a judgment has no usable score")
    if is_comparison and not OUTCOMES.issuperset((record["g1_winner"], record["g2_winner"])):
        raise ValueError(f"{where}: a winner is one of {', '.join(sorted(OUTCOMES))}")
    names = ("model_1", "model_2") if is_comparison else ("model",)
    return record["question_id"], record["turn"], tuple(record[name] for name in names)


def has_verdict(record: Record) -> bool:
    """Whether the judge of a judgment came to a verdict."""
    if "model_1" in record:
        return "error" not in (record["g1_winner"], record["g2_winner"])
    return bool(record["score"] != NO_SCORE)


def load_judgments(path: Path) -> list[Record]:
    """Read judgments.

    Raises:
        ValueError: naming the file and the line that is malformed.
    """
    numbered = read_records(path)
    for number, record in numbered:
        match_key(record, f"{path}, line {number}")
    return [record for _, record in numbered]
