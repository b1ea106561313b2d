"""lm-eval's numbers of a loaded model, against a loop over transformers without lm-eval."""

import functools
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from duquant.evaluation import harness
from duquant.evaluation.harness import EvaluatedModel, measure_task
from duquant.evaluation.loaded_model import ModelSource
from duquant.evaluation.record_layouts import LAYOUTS
from duquant.evaluation.statistics import Measurement
from duquant.evaluation.task_list import find_tasks
from duquant.nn.packed_cache import PackedCache
from duquant.quickstart import MODEL_DIRECTORY
from tests.assets import ASSETS
from tests.in_process import LIGHTNING_WARNINGS, FinishedRun
from tests.small_run import VOCABULARY
from tests.task_files import write_mmlu_files, write_task_files
from tests.tiny_models import write_tiny_model

pytestmark = LIGHTNING_WARNINGS
TASKS = ASSETS / "assets" / "tasks"
ITEMS = 50
SMALL = {"model_type": "llama", "num_hidden_layers": 2, "max_position_embeddings": 1024}
LETTERS = ("A", "B", "C", "D")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    """Two random blocks with the embedded model's tokenizer and context."""
    directory = tmp_path_factory.mktemp("model")
    write_tiny_model(directory, {**SMALL, "vocab_size": VOCABULARY})
    for file in MODEL_DIRECTORY.glob("tokenizer*"):
        shutil.copy(file, directory)
    return ModelSource.find(str(directory))


@pytest.fixture(scope="module")
def model(source: ModelSource) -> Any:
    return source.load("float32", "cpu", "auto")


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
    whole = tokenizer(context + continuation, add_special_tokens=False).input_ids
    start = len(tokenizer(context, add_special_tokens=False).input_ids)
    whole = whole[-(int(model.config.max_position_embeddings) + 1) :]
    added = len(tokenizer(context + continuation, add_special_tokens=False).input_ids) - start
    scores = log_probabilities(model, tuple(whole[:-1]))
    return float(sum(scores[n - 1, whole[n]] for n in range(len(whole) - added, len(whole))))


def assert_agrees(measured: Measurement, items: list[Any], model: Any, source: Any) -> None:
    for item, found in zip(items, measured.log_likelihoods, strict=True):
        expected = [
            log_likelihood(model, source.tokenizer, *pair) for pair in prompts(measured.name, item)
        ]
        # float32 in batches that are padded, against one sequence alone.
        assert found == pytest.approx(expected, rel=1e-4, abs=2e-3)


@pytest.mark.skipif(not TASKS.is_dir(), reason=f"{TASKS} is not there: set DUQUANT_ASSETS")
@pytest.mark.parametrize("task", [*LAYOUTS, "mmlu_anatomy"])
def test_log_likelihoods_of_fifty_items(task: str, source: ModelSource, model: Any) -> None:
    found = find_tasks([task], data_dir=TASKS, mmlu_data_dir=TASKS / "mmlu").tasks[task]
    lm = EvaluatedModel(source, model, batch_size=16)
    measured = measure_task(lm, task, found, num_fewshot=0, limit=ITEMS)
    items = [found.eval_docs[n] for n in range(ITEMS)]
    assert measured.num_items == len(measured.log_likelihoods) == ITEMS
    assert_agrees(measured, items, model, source)
    if "choices" in items[0]:
        right = [
            float(
                max(range(len(scores)), key=scores.__getitem__)
                == item.get("gold", item.get("answer"))
            )
            for scores, item in zip(measured.log_likelihoods, items, strict=True)
        ]
        assert measured.metrics["acc"].per_item == right
        assert measured.metrics["acc"].value == pytest.approx(sum(right) / ITEMS)


@pytest.mark.parametrize("task", LAYOUTS)
def test_written_items(task: str, source: ModelSource, model: Any, tmp_path: Path) -> None:
    found = find_tasks([task], data_dir=write_task_files(tmp_path, count=2)).tasks[task]
    answers: list[int] = []
    lm = EvaluatedModel(source, model, on_request=lambda: answers.append(1))
    measured = measure_task(lm, task, found, num_fewshot=0)
    assert_agrees(measured, list(found.eval_docs), model, source)
    assert len(answers) == sum(len(scores) for scores in measured.log_likelihoods)
    assert measured.num_truncated == 0
    assert measured.metrics["acc"].stderr is not None


def test_lambadas_perplexity_is_the_exponential_of_its_losses(
    source: ModelSource, model: Any, tmp_path: Path
) -> None:
    found = find_tasks(["lambada_openai"], data_dir=write_task_files(tmp_path)).tasks
    measured = measure_task(EvaluatedModel(source, model), *found.popitem())
    metric = measured.metrics["perplexity"]
    assert metric.is_exponential
    assert not metric.higher_is_better
    assert metric.per_item == [-scores[0] for scores in measured.log_likelihoods]


def test_prompts_of_mmlu_are_fitted_to_the_context(
    source: ModelSource, model: Any, tmp_path: Path
) -> None:
    found = find_tasks(["mmlu_anatomy"], mmlu_data_dir=write_mmlu_files(tmp_path)).tasks
    task = found["mmlu_anatomy"]
    lm = EvaluatedModel(source, model)
    whole = measure_task(lm, "mmlu_anatomy", task, num_fewshot=5)
    assert (whole.fewest_shots, whole.num_truncated) == (5, 0)
    longest = max(len(lm.tok_encode(i.args[0])) for i in task.instances)
    lm._max_length = longest - 1
    shorter = measure_task(lm, "mmlu_anatomy", task, num_fewshot=5)
    assert (shorter.fewest_shots, shorter.num_truncated) == (4, 0)
    lm._max_length = 20
    cut = measure_task(lm, "mmlu_anatomy", task, num_fewshot=5)
    assert cut.fewest_shots == 0
    assert cut.num_truncated == 2 * len(LETTERS), "nothing is left to drop but tokens"


GENERATION = """
task: sums
custom_dataset: !function questions.read
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["."], max_gen_toks: 6}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
QUESTIONS = """
from datasets import Dataset

def read(**_):
    texts = ["The value of a name", "If it is empty"]
    return {"test": Dataset.from_list([{"question": text, "answer": "2"} for text in texts])}
"""


def test_text_is_generated_with_the_packed_cache(
    finished_run: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same text as with an ordinary cache, since attention sees the same integers."""
    (tmp_path / "sums.yaml").write_text(GENERATION)
    (tmp_path / "questions.py").write_text(QUESTIONS)
    task = find_tasks(["sums"], tasks_dir=tmp_path).tasks["sums"]
    source = ModelSource.find(str(finished_run.output / "model"))
    lm = EvaluatedModel(source, source.load("auto", "cpu", "auto"), batch_size=2)
    caches: list[PackedCache] = []

    class Watched(PackedCache):
        def __init__(self, model: Any) -> None:
            super().__init__(model)
            caches.append(self)

    monkeypatch.setattr(harness, "PackedCache", Watched)
    measured = measure_task(lm, "sums", task)
    packed = [instance.resps for instance in task.instances]
    assert caches
    assert caches[0].num_bytes() > 0
    assert measured.log_likelihoods == []

    def refused(model: Any) -> PackedCache:
        raise ValueError("no packed cache")

    monkeypatch.setattr(harness, "PackedCache", refused)
    measure_task(lm, "sums", task)
    assert [instance.resps for instance in task.instances] == packed
