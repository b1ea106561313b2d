"""Layouts of task records: the fields of the published data sets, and a prepared form of them.

Files of one task come in two layouts. The *published* one has the fields of the data set itself, as
the hub exports it. The *prepared* one, common in evaluation suites, has joined what a prompt needs:
``query``, ``choices``, ``gold``. Either becomes the same fields, from which the task's YAML makes
the prompt:

==============  ====================================  =============================================
task            published                             prepared
==============  ====================================  =============================================
arc_*           question, choices{text,label},        query, choices, gold
                answerKey
hellaswag       activity_label, ctx_a, ctx_b,         ctx (one string), endings, label
                endings, label
winogrande      sentence, option1, option2, answer    context_options, continuation, gold
boolq           passage, question, label or answer    query, choices, gold
piqa            goal, sol1, sol2, label               query, choices, gold
lambada_openai  text                                  text
==============  ====================================  =============================================
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Record = Mapping[str, Any]
Fields = dict[str, Any]


@dataclass(frozen=True)
class Layout:
    """One layout of a task's records.

    Attributes:
        keys: keys by which it is recognized.
        read: makes the task's fields of a record.
    """

    keys: tuple[str, ...]
    read: Callable[[Record], Fields]


def read_record(task: str, record: Any) -> Fields:
    """Fields of one record, in whichever layout it is.

    Raises:
        ValueError: if it is in none, or its values make no sense.
    """
    if not isinstance(record, dict):
        raise ValueError("it is not an object")
    for layout in LAYOUTS[task]:
        if all(key in record for key in layout.keys):
            return layout.read(record)
    wanted = " or ".join("{" + ", ".join(layout.keys) + "}" for layout in LAYOUTS[task])
    raise ValueError(f"it has {', '.join(record) or 'nothing'}; {task} needs {wanted}")


def _text(record: Record, key: str) -> str:
    value = record[key]
    if not isinstance(value, str):
        raise ValueError(f"{key} is {value!r}, not text")
    return value


def _texts(values: Any, key: str) -> list[str]:
    is_list = isinstance(values, list) and len(values) > 1
    if not is_list or not all(isinstance(value, str) and value for value in values):
        raise ValueError(f"{key} is no list of texts: {values!r}"[:200])
    return list(values)


def _index(value: Any, key: str, count: int) -> int:
    """An index below ``count``, also as the text of a number or as a truth value."""
    if isinstance(value, str) and value.strip().isdigit():
        value = int(value)
    if not isinstance(value, int) or not 0 <= value < count:
        raise ValueError(f"{key} is {value!r}; it must be 0 to {count - 1}")
    return int(value)


def _question_with_choices(record: Record) -> Fields:
    choices = _texts(record["choices"], "choices")
    question = _text(record, "query").removeprefix("Question: ")
    gold = _index(record["gold"], "gold", len(choices))
    return {"question": question, "choices": choices, "gold": gold}


def _published_arc(record: Record) -> Fields:
    choices = record["choices"]
    if not isinstance(choices, dict) or not {"text", "label"} <= choices.keys():
        raise ValueError(f"choices is {choices!r}; it must have text and label"[:200])
    texts, key = _texts(choices["text"], "choices.text"), record["answerKey"]
    if key not in choices["label"]:
        raise ValueError(f"answerKey is {key!r}; it must be one of {choices['label']}")
    question = _text(record, "question")
    return {"question": question, "choices": texts, "gold": choices["label"].index(key)}


def _prepared_hellaswag(record: Record) -> Fields:
    choices = _texts(record["endings"], "endings")
    gold = _index(record["label"], "label", len(choices))
    return {"query": _text(record, "ctx"), "choices": choices, "gold": gold}


def _published_hellaswag(record: Record) -> Fields:
    start = f"{_text(record, 'ctx_a')} {_text(record, 'ctx_b').capitalize()}"
    choices = [_without_artifacts(e) for e in _texts(record["endings"], "endings")]
    return {
        "query": _without_artifacts(f"{_text(record, 'activity_label')}: {start}"),
        "choices": choices,
        "gold": _index(record["label"], "label", len(choices)),
    }


def _without_artifacts(text: str) -> str:
    """Remove what WikiHow's markup left behind: ``[title]`` begins a sentence, the rest goes."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def _prepared_winogrande(record: Record) -> Fields:
    contexts = _texts(record["context_options"], "context_options")
    gold = _index(record["gold"], "gold", len(contexts))
    return {"contexts": contexts, "continuation": _text(record, "continuation"), "gold": gold}


def _published_winogrande(record: Record) -> Fields:
    before, gap, after = _text(record, "sentence").partition("_")
    if not gap:
        raise ValueError("sentence has no gap, written _")
    if record["answer"] not in ("1", "2"):
        raise ValueError(f"answer is {record['answer']!r}; it must be '1' or '2'")
    contexts = [before + _text(record, option) for option in ("option1", "option2")]
    return {
        "contexts": contexts,
        "continuation": after.strip(),
        "gold": int(record["answer"]) - 1,
    }


def _prepared_boolq(record: Record) -> Fields:
    passage, joint, question = _text(record, "query").rpartition("\nQuestion: ")
    if not joint:
        raise ValueError("query has no line that begins with 'Question: '")
    choices = [choice.lower() for choice in _texts(record["choices"], "choices")]
    if sorted(choices) != ["no", "yes"]:
        raise ValueError(f"choices are {', '.join(choices)}; they must be no and yes")
    answer = choices[_index(record["gold"], "gold", 2)]
    return {
        "passage": passage.removeprefix("Passage: "),
        "question": question.removesuffix("?"),
        "gold": ["no", "yes"].index(answer),
    }


def _published_boolq(record: Record) -> Fields:
    key = "label" if "label" in record else "answer"
    if key not in record:
        raise ValueError("it has neither label nor answer")
    passage, question = _text(record, "passage"), _text(record, "question")
    return {"passage": passage, "question": question, "gold": _index(record[key], key, 2)}


def _prepared_piqa(record: Record) -> Fields:
    fields = _question_with_choices(record)
    goal = fields.pop("question").removesuffix("\n")
    return {"goal": goal, **fields}


def _published_piqa(record: Record) -> Fields:
    choices = [_text(record, "sol1"), _text(record, "sol2")]
    gold = _index(record["label"], "label", 2)
    return {"goal": _text(record, "goal"), "choices": choices, "gold": gold}


def _lambada(record: Record) -> Fields:
    text = _text(record, "text")
    if " " not in text:
        raise ValueError("text has a single word, nothing to predict it from")
    return {"text": text}


_PREPARED = ("query", "choices", "gold")
_ARC = (
    Layout(("question", "choices", "answerKey"), _published_arc),
    Layout(_PREPARED, _question_with_choices),
)
LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "arc_easy": _ARC,
    "arc_challenge": _ARC,
    "hellaswag": (
        Layout(("activity_label", "ctx_a", "ctx_b", "endings", "label"), _published_hellaswag),
        Layout(("ctx", "endings", "label"), _prepared_hellaswag),
    ),
    "winogrande": (
        Layout(("sentence", "option1", "option2", "answer"), _published_winogrande),
        Layout(("context_options", "continuation", "gold"), _prepared_winogrande),
    ),
    "boolq": (
        Layout(("passage", "question"), _published_boolq),
        Layout(_PREPARED, _prepared_boolq),
    ),
    "piqa": (
        Layout(("goal", "sol1", "sol2", "label"), _published_piqa),
        Layout(_PREPARED, _prepared_piqa),
    ),
    "lambada_openai": (Layout(("text",), _lambada),),
}
