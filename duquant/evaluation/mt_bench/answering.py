"""Ask a model every question that it has not answered yet.

How it was asked (model, template, length, seed, questions) stands beside the answers. Going on with
another model or template would give a file that belongs to neither, so that is refused.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from duquant.atomic_files import write_durably, write_json
from duquant.evaluation.mt_bench.answers import answer_record, load_answers
from duquant.evaluation.mt_bench.bench_directory import AnswerSettings, BenchDirectory
from duquant.evaluation.mt_bench.concurrency import in_parallel
from duquant.evaluation.mt_bench.json_lines import append_record, recover_records
from duquant.evaluation.mt_bench.progress import StepProgress
from duquant.evaluation.mt_bench.questions import Question
from duquant.json_files import read_json
from duquant.run_description import compare_runs


def answered(bench: BenchDirectory, model_id: str, settings: dict[str, Any]) -> set[int]:
    """Questions that an earlier run with the same settings answered; half a last line is dropped.

    Args:
        bench: where the answers are.
        model_id: name of the model.
        settings: how the model is asked, plain values.

    Returns:
        Their numbers.

    Raises:
        ValueError: if the answers were given otherwise, naming what differs.
    """
    file, stored = bench.answers(model_id), bench.settings(model_id)
    records = recover_records(file)
    if not records:
        return set()
    if not stored.is_file():
        raise ValueError(
            f"{file} holds answers but {stored.name} is missing, so nothing tells how they came "
            f"about; give another --model_id or --output_dir"
        )
    differences = compare_runs(read_json(stored, AnswerSettings), settings)
    if differences:
        raise ValueError(
            f"{file} holds answers of another run ({'; '.join(differences)}); give another "
            f"--model_id or --output_dir"
        )
    return set(load_answers(file))


def require_same_questions(bench: BenchDirectory, questions: Path) -> None:
    """Check that a directory is for these questions, or for none yet.

    Raises:
        ValueError: if other questions are in it.
    """
    kept = bench.questions
    if kept.is_file() and kept.read_bytes() != questions.read_bytes():
        raise ValueError(
            f"{bench.path} is about the questions in {kept}, which are not those of {questions}; "
            f"give another --output_dir"
        )


def begin(bench: BenchDirectory, model_id: str, settings: dict[str, Any], questions: Path) -> None:
    """Write down how the model is asked, and what."""
    content = questions.read_bytes()

    def copy(temporary: Path) -> None:
        temporary.write_bytes(content)

    if not bench.questions.is_file():
        write_durably(bench.questions, copy)
    write_json(bench.settings(model_id), settings)


class Chat(Protocol):
    """Whatever answers questions."""

    def answer(self, question: Question, seed: int) -> list[str]:
        """One text per turn of a question; sampling starts from ``seed``."""


def answer_questions(
    chat: Chat,
    questions: list[Question],
    bench: BenchDirectory,
    model_id: str,
    seed: int,
    done: set[int],
    parallel: int = 1,
) -> None:
    """Answer what is not ``done``, several at a time; each answer is on disk at once.

    With one at a time every answer is on disk before the next question is asked.
    """
    left = [question for question in questions if question.question_id not in done]

    def answer(question: Question) -> list[str]:
        return chat.answer(question, seed + question.question_id)

    answers: Iterable[tuple[Question, list[str]]]
    if parallel == 1:
        answers = ((question, answer(question)) for question in left)
    else:
        answers = in_parallel(answer, left, parallel)
    file = bench.answers(model_id)
    with StepProgress("answering", len(questions), len(questions) - len(left)) as progress:
        for question, turns in answers:
            append_record(file, answer_record(question.question_id, model_id, turns))
            progress.step(f"question {question.question_id} ({question.category})")
