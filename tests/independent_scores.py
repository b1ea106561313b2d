"""Log-likelihoods of task items once more: a loop over transformers, without lm-eval."""

import functools
from typing import Any

import pytest
import torch

from duquant.scores.statistics import Measurement

LETTERS = ("A", "B", "C", "D")


def prompts(task: str, item: dict[str, Any]) -> list[tuple[str, str]]:
    """Contexts and continuations, written out once more."""
    if task == "winogrande":
        return [(context, " " + item["continuation"]) for context in item["contexts"]]
    if task == "lambada_openai":
        context, _, word = item["text"].rpartition(" ")
        return [(context, " " + word)]
    if task == "boolq":
        context = f"{item['passage']}\nQuestion: {item['question']}?\nAnswer:"
        return [(context, " no"), (context, " yes")]
    if task == "hellaswag":
        context = item["query"]
    elif task.startswith("mmlu"):
        choices = "".join(f"\n{x}. {c}" for x, c in zip(LETTERS, item["choices"], strict=True))
        subject = task.removeprefix("mmlu_").replace("_", " ")
        start = f"The following are multiple choice questions (with answers) about {subject}."
        context = f"{start}\n\n{item['question'].strip()}{choices}\nAnswer:"
        return [(context, f" {letter}") for letter in LETTERS]
    else:
        context = f"Question: {item.get('question', item.get('goal'))}\nAnswer:"
    return [(context, " " + choice) for choice in item["choices"]]


@functools.lru_cache(maxsize=2)
@torch.no_grad()
def log_probabilities(model: Any, ids: tuple[int, ...]) -> torch.Tensor:
    """Of every next token ``(tokens, vocabulary)``, one sequence at a time."""
    scores: torch.Tensor = model(torch.tensor([ids])).logits[0].double().log_softmax(dim=-1)
    return scores


def log_likelihood(model: Any, tokenizer: Any, context: str, continuation: str) -> float:
    """Of the tokens that the continuation adds to the context."""
    whole = tokenizer(context + continuation).input_ids
    start = len(tokenizer(context).input_ids)
    whole = whole[-(int(model.config.max_position_embeddings) + 1) :]
    added = len(tokenizer(context + continuation).input_ids) - start
    scores = log_probabilities(model, tuple(whole[:-1]))
    return float(sum(scores[n - 1, whole[n]] for n in range(len(whole) - added, len(whole))))


def assert_agrees(measured: Measurement, items: list[Any], model: Any, tokenizer: Any) -> None:
    for item, found in zip(items, measured.log_likelihoods, strict=True):
        expected = [
            log_likelihood(model, tokenizer, *pair) for pair in prompts(measured.name, item)
        ]
        # float32 in batches that are padded, against one sequence alone.
        assert found == pytest.approx(expected, rel=1e-4, abs=2e-3)
