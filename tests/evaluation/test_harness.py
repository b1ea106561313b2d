"""lm-eval's numbers of a loaded model, against a loop over transformers without lm-eval."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from duquant.evaluation import harness
from duquant.evaluation.harness import EvaluatedModel, measure_task
from duquant.evaluation.loaded_model import ModelSource
from duquant.evaluation.record_layouts import LAYOUTS
from duquant.evaluation.task_list import find_tasks
from duquant.nn.packed_cache import PackedCache
from duquant.quickstart import MODEL_DIRECTORY
from tests.in_process import LIGHTNING_WARNINGS, FinishedRun
from tests.independent_scores import LETTERS, assert_agrees
from tests.small_run import VOCABULARY
from tests.task_files import write_mmlu_files, write_task_files
from tests.tiny_models import write_tiny_model

pytestmark = LIGHTNING_WARNINGS
SMALL = {"model_type": "llama", "num_hidden_layers": 2, "max_position_embeddings": 1024}


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


@pytest.mark.parametrize("task", LAYOUTS)
def test_written_items(task: str, source: ModelSource, model: Any, tmp_path: Path) -> None:
    found = find_tasks([task], data_dir=write_task_files(tmp_path, count=2)).tasks[task]
    answers: list[int] = []
    lm = EvaluatedModel(source, model, on_request=lambda: answers.append(1))
    measured = measure_task(lm, task, found, num_fewshot=0)
    assert_agrees(measured, list(found.eval_docs), model, source.tokenizer)
    assert len(answers) == sum(len(scores) for scores in measured.log_likelihoods)
    assert measured.num_truncated == 0
    assert measured.metrics["acc"].stderr is not None


def test_automatic_batches_have_about_equally_many_tokens(
    source: ModelSource, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [
        {"goal": "again and " * number, "sol1": "a name", "sol2": "the value of it", "label": 0}
        for number in range(1, 13)
    ]
    (tmp_path / "piqa.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    found = find_tasks(["piqa"], data_dir=tmp_path).tasks
    shapes: list[tuple[int, int]] = []
    call = EvaluatedModel._model_call

    def spy(self: EvaluatedModel, inps: torch.Tensor, **unused: Any) -> torch.Tensor:
        shapes.append((inps.shape[0], inps.shape[1]))
        return call(self, inps, **unused)

    monkeypatch.setattr(EvaluatedModel, "_model_call", spy)
    alone = measure_task(EvaluatedModel(source, model, 1), "piqa", found["piqa"])
    lengths = [length for _, length in shapes]
    assert max(rows for rows, _ in shapes) == 1
    shapes.clear()
    most = 3 * (max(lengths) + 1)  # three of the longest, and more of the shorter ones
    monkeypatch.setattr(harness, "TOKENS_AT_ONCE", most)
    together = measure_task(EvaluatedModel(source, model), "piqa", found["piqa"])
    assert sum(rows for rows, _ in shapes) == len(lengths)
    assert shapes[0][0] == 3
    assert len(shapes) < len(lengths) / 2
    assert all(rows * length <= most for rows, length in shapes)
    for one, other in zip(alone.log_likelihoods, together.log_likelihoods, strict=True):
        assert one == pytest.approx(other, rel=1e-4)  # padding changes the order of sums
    assert EvaluatedModel(source, model)._detect_batch_size() == 1, "of the whole context"


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
