"""Real items of every task on a real model: a dozen in full precision, fewer in W4A4.

Which texts a task asks for, and how its answers are scored, does not depend on the weights. W4A4
shows that the quantized model is what is asked.
"""

from pathlib import Path

import pytest

import duquant
from duquant.evaluation.harness import EvaluatedModel, measure_task
from duquant.evaluation.loaded_model import ModelSource
from duquant.evaluation.record_layouts import LAYOUTS
from duquant.evaluation.task_list import find_tasks
from duquant.nn.execution import Backend
from duquant.recipe_learning import LWCConfig
from duquant.recipe_parts import RotationConfig
from tests.assets import ASSETS
from tests.in_process import LIGHTNING_WARNINGS
from tests.independent_scores import assert_agrees

MODEL, TASKS = ASSETS / "assets" / "models" / "ref-llama", ASSETS / "assets" / "tasks"
TEXT = ASSETS / "assets" / "text" / "wikitext2_valid.txt"
pytestmark = [
    *LIGHTNING_WARNINGS,
    pytest.mark.skipif(
        not (MODEL.is_dir() and TASKS.is_dir()),
        reason=f"{MODEL} or {TASKS} is not there: set DUQUANT_ASSETS",
    ),
]
ITEMS = {"full precision": 12, "W4A4": 3}


@pytest.fixture(scope="module", params=["full precision", "W4A4"])
def asked(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[EvaluatedModel, int]:
    """A model and how many items it is asked.

    One row at a time: with padding, sums differ in the last bit and four bits turn it around.
    """
    directory: Path = MODEL
    backend: Backend = "auto"
    if request.param == "W4A4":
        backend = "integer"
        directory = duquant.quantize(
            MODEL,
            TEXT.read_text(encoding="utf-8"),
            duquant.Recipe(rotation=RotationConfig(max_steps=8), lwc=LWCConfig(epochs=0)),
            output_dir=tmp_path_factory.mktemp("quantized"),
            num_samples=4,
            sequence_length=64,
        )
    source = ModelSource.find(str(directory))
    model = source.load("float32", "cpu", backend)
    return EvaluatedModel(source, model, batch_size=1), ITEMS[request.param]


@pytest.mark.parametrize("task", [*LAYOUTS, "mmlu_anatomy"])
def test_log_likelihoods_of_real_items(task: str, asked: tuple[EvaluatedModel, int]) -> None:
    lm, num_items = asked
    found = find_tasks([task], data_dir=TASKS, mmlu_data_dir=TASKS / "mmlu").tasks[task]
    measured = measure_task(lm, task, found, num_fewshot=0, limit=num_items)
    items = [found.eval_docs[n] for n in range(num_items)]
    assert measured.num_items == len(measured.log_likelihoods) == num_items
    assert_agrees(measured, items, lm.model, lm.tokenizer)
    if task == "lambada_openai":
        return  # one answer each
    likeliest = [max(range(len(s)), key=s.__getitem__) for s in measured.log_likelihoods]
    gold = [item.get("gold", item.get("answer")) for item in items]
    assert measured.metrics["acc"].value == sum(map(int.__eq__, likeliest, gold)) / num_items
