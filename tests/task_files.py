"""Small files of every local task, in the layouts in which they are published and prepared."""

import csv
import json
from pathlib import Path
from typing import Any

from duquant.evaluation.mmlu import SUBJECTS

Record = dict[str, Any]
PUBLISHED: dict[str, Record] = {
    "arc_easy": {
        "question": "What melts ice?",
        "choices": {"text": ["frost", "warmth", "night"], "label": ["A", "B", "C"]},
        "answerKey": "B",
    },
    "hellaswag": {
        "activity_label": "Washing a car",
        "ctx_a": "A man fills a bucket.",
        "ctx_b": "he",
        "endings": ["walks to the car [title] he waits.", "sleeps [step] now."],
        "label": "0",
    },
    "winogrande": {
        "sentence": "The ball did not fit the box, since the _ was too big.",
        "option1": "ball",
        "option2": "box",
        "answer": "1",
    },
    "boolq": {"passage": "Ice is frozen water.", "question": "is ice water", "label": 1},
    "piqa": {"goal": "Cool a drink", "sol1": "add ice", "sol2": "add salt", "label": 0},
    "lambada_openai": {"text": "He took the cup and drank from the cup"},
}
PREPARED: dict[str, Record] = {
    "arc_easy": {
        "query": "Question: What melts ice?",
        "choices": ["frost", "warmth", "night"],
        "gold": 1,
    },
    "hellaswag": {
        "ctx": "Washing a car: A man fills a bucket. He",
        "endings": ["walks to the car. he waits.", "sleeps now."],
        "label": 0,
    },
    "winogrande": {
        "context_options": [
            "The ball did not fit the box, since the ball",
            "The ball did not fit the box, since the box",
        ],
        "continuation": "was too big.",
        "gold": 0,
    },
    "boolq": {
        "query": "Passage: Ice is frozen water.\nQuestion: is ice water?",
        "choices": ["no", "yes"],
        "gold": 1,
    },
    "piqa": {
        "query": "Question: Cool a drink\n",
        "choices": ["add ice", "add salt"],
        "gold": 0,
    },
    "lambada_openai": {"text": "He took the cup and drank from the cup"},
}
for _layout in (PUBLISHED, PREPARED):
    _layout["arc_challenge"] = _layout["arc_easy"]


def write_task_files(directory: Path, *, count: int = 3) -> Path:
    """Every task's file, the same item ``count`` times."""
    directory.mkdir(parents=True, exist_ok=True)
    for task, record in PREPARED.items():
        text = "".join(json.dumps(record) + "\n" for _ in range(count))
        (directory / f"{task}.jsonl").write_text(text, encoding="utf-8")
    return directory


def write_mmlu_files(directory: Path, *, count: int = 2) -> Path:
    """All subjects in the original layout: five examples and ``count`` questions each."""
    for split, rows in (("dev", 5), ("test", count)):
        (directory / split).mkdir(parents=True, exist_ok=True)
        for subject in SUBJECTS:
            with (directory / split / f"{subject}_{split}.csv").open("w", newline="") as opened:
                writer = csv.writer(opened)
                for n in range(rows):
                    writer.writerow([f"What is {n} + 1?", n, n + 1, n + 2, n + 3, "B"])
    return directory
