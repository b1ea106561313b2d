"""A bench of a few questions of our own, with answers of models that do not exist."""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from duquant.evaluation.mt_bench.answers import answer_record
from duquant.evaluation.mt_bench.bench_directory import BenchDirectory
from duquant.quickstart import MODEL_DIRECTORY
from tests.assets import ASSETS
from tests.tiny_models import write_tiny_model

MT_BENCH = ASSETS / "assets" / "tasks" / "mt_bench"
"""The benchmark's own questions and reference answers."""
QUESTIONS: list[dict[str, Any]] = [
    {"question_id": 1, "category": "writing", "turns": ["Write: {hello}.", "Shorter."]},
    {"question_id": 2, "category": "math", "turns": ["2 + 2?", "And 3 + 3?"]},
    {"question_id": 3, "category": "stem", "turns": ["Why is ice light?", "And steam?"]},
]
"""Creative, with a reference, and nearly greedy; braces must not confuse the prompts."""
REFERENCES = {2: ["It is 4.", "It is 6."]}


def write_lines(path: Path, records: Iterable[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_questions(directory: Path) -> Path:
    return write_lines(directory / "questions.jsonl", QUESTIONS)


def write_references(directory: Path) -> Path:
    records = [answer_record(number, "gpt-4", turns) for number, turns in REFERENCES.items()]
    return write_lines(directory / "references.jsonl", records)


def write_bench(directory: Path, *models: str) -> BenchDirectory:
    """A bench whose models have answered: ``alpha on 1, turn 2``."""
    bench = BenchDirectory(directory / "bench")
    write_lines(bench.questions, QUESTIONS)
    for model in models:
        write_lines(
            bench.answers(model),
            [
                answer_record(q["question_id"], model, answer_turns(model, q["question_id"]))
                for q in QUESTIONS
            ],
        )
    return bench


def answer_turns(model: str, question_id: int) -> list[str]:
    return [f"{model} on {question_id}, turn {turn}" for turn in (1, 2)]


def write_chat_model(directory: Path, **options: Any) -> Path:
    """A random LLaMA with a real tokenizer and room for a conversation."""
    sizes = {"vocab_size": 1024, "max_position_embeddings": 512, "bos_token_id": 0}
    write_tiny_model(directory, {"model_type": "llama", "eos_token_id": 0, **sizes, **options})
    for file in MODEL_DIRECTORY.glob("tokenizer*"):
        shutil.copy(file, directory)
    return directory
