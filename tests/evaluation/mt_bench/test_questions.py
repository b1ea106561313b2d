"""Questions and answers are read as FastChat writes them, and checked line by line."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from duquant.evaluation.mt_bench.answers import answer_record, load_answers, load_references
from duquant.evaluation.mt_bench.questions import TEMPERATURES, Question, load_questions
from duquant.scores.mt_bench_cells import CATEGORIES
from tests.chat_bench import MT_BENCH, QUESTIONS, write_lines, write_questions, write_references

needs_mt_bench = pytest.mark.skipif(
    not MT_BENCH.is_dir(), reason="the benchmark's questions are not under DUQUANT_ASSETS"
)
GOOD = QUESTIONS[0]


@needs_mt_bench
def test_the_benchmark_has_ten_questions_of_each_category() -> None:
    questions = load_questions(MT_BENCH / "question.jsonl")
    assert [question.question_id for question in questions] == list(range(81, 161))
    assert Counter(q.category for q in questions) == dict.fromkeys(TEMPERATURES, 10)
    assert all(len(question.turns) == 2 for question in questions)


@needs_mt_bench
def test_its_references_are_those_the_judge_needs() -> None:
    questions = load_questions(MT_BENCH / "question.jsonl")
    references = load_references(MT_BENCH / "reference_answer_gpt-4.jsonl", questions)
    assert set(references) == {q.question_id for q in questions if q.needs_reference}
    assert all(len(turns) == 2 for turns in references.values())


def test_temperature_of_a_category() -> None:
    drawn = [Question(1, name, ("?",)).temperature for name in ("writing", "math", "stem", "new")]
    assert drawn == [0.7, 0.0, 0.1, 0.7]


def test_limit(tmp_path: Path) -> None:
    assert [q.question_id for q in load_questions(write_questions(tmp_path), 2)] == [1, 2]
    with pytest.raises(ValueError, match="limit is 0"):
        load_questions(write_questions(tmp_path), 0)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"question_id": "two"}, "question_id must be a whole number"),
        ({"question_id": 1}, "question 1 is there twice"),
        ({"category": None}, "category must be a text"),
        ({"turns": "Hello"}, "turns must be a list of texts"),
        ({"turns": []}, "turns must be a list of texts"),
        ({"turns": ["Hello", " "]}, "a turn is empty"),
    ],
)
def test_malformed_question(tmp_path: Path, change: dict[str, Any], complaint: str) -> None:
    file = write_lines(tmp_path / "bad.jsonl", [GOOD, {**GOOD, "question_id": 2, **change}])
    with pytest.raises(ValueError, match=f"bad.jsonl, line 2: {complaint}"):
        load_questions(file)


@pytest.mark.parametrize("choices", [None, [], [{"turns": "text"}], ["text"]])
def test_malformed_answer(tmp_path: Path, choices: object) -> None:
    bad = {**answer_record(1, "model", ["a", "b"]), "choices": choices}
    with pytest.raises(ValueError, match=r"answers.jsonl, line 1: .*turns"):
        load_answers(write_lines(tmp_path / "answers.jsonl", [bad]))


def test_references_are_asked_for_only_where_needed(tmp_path: Path) -> None:
    questions = load_questions(write_questions(tmp_path))
    assert load_references(None, [questions[0]]) == {}
    with pytest.raises(ValueError, match=r"1 questions.*2, math.*--reference_answers"):
        load_references(None, questions)
    assert load_references(write_references(tmp_path), questions)[2] == ("It is 4.", "It is 6.")


def test_every_category_of_the_tables_has_a_temperature() -> None:
    assert tuple(TEMPERATURES) == CATEGORIES
