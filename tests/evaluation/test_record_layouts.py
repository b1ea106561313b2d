"""Both layouts of every task say the same, and records that say nonsense are refused."""

from typing import Any

import pytest

from duquant.evaluation.record_layouts import LAYOUTS, read_record
from tests.task_files import PREPARED, PUBLISHED


def test_every_task_is_covered() -> None:
    assert LAYOUTS.keys() == PUBLISHED.keys() == PREPARED.keys()


@pytest.mark.parametrize("task", sorted(LAYOUTS))
def test_both_layouts_give_the_same_item(task: str) -> None:
    assert read_record(task, PUBLISHED[task]) == read_record(task, PREPARED[task])


def test_an_answer_of_boolq_is_found_by_its_word() -> None:
    record = {**PREPARED["boolq"], "choices": ["Yes", "No"], "gold": 0}
    assert read_record("boolq", record)["gold"] == 1, "1 is yes, wherever the record has it"


@pytest.mark.parametrize(
    ("task", "change", "words"),
    [
        ("arc_easy", {"gold": 3}, "gold is 3; it must be 0 to 2"),
        ("arc_easy", {"gold": "B"}, "gold is 'B'"),
        ("arc_easy", {"choices": "frost"}, "choices is no list"),
        ("arc_easy", {"choices": ["frost", ""]}, "choices is no list"),
        ("arc_easy", {"query": None}, "query is None, not text"),
        ("winogrande", {"continuation": 4}, "continuation is 4, not text"),
        ("boolq", {"query": "Ice is water?"}, "no line that begins"),
        ("boolq", {"choices": ["maybe", "yes"]}, "they must be no and yes"),
        ("hellaswag", {"label": -1}, "label is -1"),
        ("lambada_openai", {"text": "Word"}, "single word"),
    ],
)
def test_nonsense_is_named(task: str, change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_record(task, {**PREPARED[task], **change})


def test_published_nonsense_is_named() -> None:
    for task, change, words in (
        ("arc_easy", {"answerKey": "D"}, "answerKey is 'D'"),
        ("arc_easy", {"choices": {"text": ["a", "b"]}}, "text and label"),
        ("winogrande", {"sentence": "No gap."}, "no gap"),
        ("winogrande", {"answer": 1}, "'1' or '2'"),
    ):
        with pytest.raises(ValueError, match=words):
            read_record(task, {**PUBLISHED[task], **change})


@pytest.mark.parametrize("record", [{"something": 1}, {}, [], "text"])
def test_other_records_are_refused(record: Any) -> None:
    with pytest.raises(ValueError, match=r"not an object|needs {goal, sol1, sol2, label} or"):
        read_record("piqa", record)
