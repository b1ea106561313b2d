"""Questions: two turns of one conversation, and how the field samples answers to them.

FastChat draws creative answers at temperature 0.7, answers with one right solution greedily, and
the rest nearly so; a category it does not list gets 0.7. Answers to math, reasoning and coding are
judged beside a reference answer, because judges often fail at them on their own (Zheng et al. 2023,
section 3.4).
"""

from dataclasses import dataclass
from pathlib import Path

from duquant.evaluation.mt_bench.json_lines import Record, read_records
from duquant.evaluation.mt_bench.surrogates import require_whole

TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
"""Sampling temperature per category, as FastChat sets it."""
OTHER_TEMPERATURE = 0.7
LARGEST_NUMBER = 2**53
"""Of a question: seeds are counted from it, and readers of JSON agree on it."""
JUDGED_BY_REFERENCE = ("math", "reasoning", "coding")
"""Categories whose judge sees a reference answer."""


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        question_id: its number, 81 to 160 in MT-Bench.
        category: its topic.
        turns: what the user says, one text per turn.
    """

    question_id: int
    category: str
    turns: tuple[str, ...]

    @property
    def temperature(self) -> float:
        """Sampling temperature; 0 means greedy."""
        return TEMPERATURES.get(self.category, OTHER_TEMPERATURE)

    @property
    def needs_reference(self) -> bool:
        """Whether the judge sees a reference answer."""
        return self.category in JUDGED_BY_REFERENCE


def load_questions(path: Path, limit: int | None = None) -> list[Question]:
    """Read questions in FastChat's format.

    Args:
        path: one JSON object per line with ``question_id``, ``category`` and ``turns``.
        limit: questions read at most, ``None`` for all.

    Raises:
        ValueError: for a limit below 1, or naming the file and the line that is malformed.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit}; at least one question is needed")
    questions: dict[int, Question] = {}
    for number, record in read_records(path):
        question = _question(record, f"{path}, line {number}")
        if question.question_id in questions:
            raise ValueError(
                f"{path}, line {number}: question {question.question_id} is there twice"
            )
        questions[question.question_id] = question
    return list(questions.values())[:limit]


def texts(value: object, where: str, name: str) -> tuple[str, ...]:
    """A non-empty JSON list of strings, as a tuple.

    Raises:
        ValueError: if it is anything else; ``where`` and ``name`` say what.
    """
    if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
        raise ValueError(f"{where}: {name} must be a list of texts")
    return tuple(value)


def identifier(record: Record, where: str) -> int:
    """The ``question_id`` of a record.

    Raises:
        ValueError: if it has none that is a whole number.
    """
    value = record.get("question_id")
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{where}: question_id must be a whole number, not {value!r}")
    if abs(value) > LARGEST_NUMBER:
        raise ValueError(f"{where}: question_id must be at most {LARGEST_NUMBER}")
    return value


def _question(record: Record, where: str) -> Question:
    category = record.get("category")
    if not isinstance(category, str) or not category:
        raise ValueError(f"{where}: category must be a text, not {category!r}")
    turns = texts(record.get("turns"), where, "turns")
    if not all(turn.strip() for turn in turns):
        raise ValueError(f"{where}: a turn is empty")
    for text in (category, *turns):
        require_whole(text, f"{where}: a text")
    return Question(identifier(record, where), category, turns)
