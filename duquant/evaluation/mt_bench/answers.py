"""Answers in FastChat's schema: one line per question, one choice, one text per turn.

``{"question_id": 81, "answer_id": …, "model_id": …, "choices": [{"index": 0, "turns": [a₁, a₂]}],
"tstamp": …}``. Reference answers are stored the same way, by the model that gave them.
"""

import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from duquant.evaluation.mt_bench.json_lines import Record, read_records
from duquant.evaluation.mt_bench.questions import Question, identifier, texts

Answers = dict[int, tuple[str, ...]]
"""What was answered in every turn, by question number."""


def answer_record(question_id: int, model_id: str, turns: Sequence[str]) -> Record:
    """A line of an answer file."""
    return {
        "question_id": question_id,
        "answer_id": uuid.uuid4().hex,
        "model_id": model_id,
        "choices": [{"index": 0, "turns": list(turns)}],
        "tstamp": time.time(),
    }


def load_answers(path: Path) -> Answers:
    """Read an answer file; of choices the first counts, of repeated questions the last.

    Raises:
        ValueError: naming the file and the line that is malformed.
    """
    answers: Answers = {}
    for number, record in read_records(path):
        where = f"{path}, line {number}"
        choices = record.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise ValueError(f"{where}: choices must be a list of objects with turns")
        turns = texts(choices[0].get("turns"), where, "turns of the first choice")
        answers[identifier(record, where)] = turns
    return answers


def load_references(path: Path | None, questions: list[Question]) -> Answers:
    """Read the reference answers that the judge of these questions sees.

    Raises:
        ValueError: if there is no file and a question needs one, or it is malformed.
    """
    if path is not None:
        return load_answers(path)
    needing = [question for question in questions if question.needs_reference]
    if needing:
        raise ValueError(
            f"{len(needing)} questions (the first is {needing[0].question_id}, "
            f"{needing[0].category}) are judged beside a reference answer; give "
            f"--reference_answers FILE"
        )
    return {}
