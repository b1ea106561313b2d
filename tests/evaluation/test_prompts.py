"""Prompts and answers are those of lm-eval's own tasks, item by item.

lm-eval's definitions are built on the same items, brought into the published layout here, and every
request they make (context, continuation) is compared with the suite's.
"""

from pathlib import Path
from typing import Any

import datasets
import lm_eval
import pytest
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml

from duquant.evaluation.mmlu import SUBJECTS, local_subjects
from duquant.evaluation.mmlu_csv import read_rows
from duquant.evaluation.silence import silence
from duquant.evaluation.task_list import find_tasks
from tests.assets import ASSETS
from tests.task_files import PREPARED, PUBLISHED, write_mmlu_files, write_task_files

TASKS = ASSETS / "assets" / "tasks"
LIMIT = 60
DEFINITIONS = {
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "winogrande": "winogrande/default.yaml",
    "boolq": "super_glue/boolq/default.yaml",
    "piqa": "piqa/piqa.yaml",
    "lambada_openai": "lambada/lambada_openai.yaml",
}
Requests = list[tuple[str, str]]


def requests(task: Any, num_fewshot: int = 0) -> Requests:
    with silence():
        task.set_config(key="num_fewshot", value=num_fewshot)
        task.build_all_requests(limit=LIMIT)
    return [instance.args for instance in task.instances]


def lm_evals_own(definition: str, documents: dict[str, list[Any]]) -> ConfigurableTask:
    """A task of lm-eval, its data set replaced."""
    config = load_yaml(Path(lm_eval.__file__).parent / "tasks" / definition)
    for key in ("tag", "dataset_path", "dataset_name", "dataset_kwargs"):
        config.pop(key, None)
    split = config.get("test_split") or config["validation_split"]
    splits = {split: documents["test"]} if "dev" not in documents else documents
    config |= {
        "training_split": None,
        "validation_split": None if config.get("test_split") else split,
        "metadata": {"version": config["metadata"]["version"]},
    }
    config["custom_dataset"] = lambda **_: {
        name: datasets.Dataset.from_list(rows) for name, rows in splits.items()
    }
    with silence():
        return ConfigurableTask(config=config)


def published(task: str, fields: dict[str, Any]) -> dict[str, Any]:
    """An item in the published layout."""
    if task.startswith("arc"):
        labels = [str(number + 1) for number in range(len(fields["choices"]))]
        choices = {"text": fields["choices"], "label": labels}
        key = labels[fields["gold"]]
        return {"question": fields["question"], "choices": choices, "answerKey": key}
    if task == "winogrande":
        first, second = fields["contexts"]
        start = 0
        while first[start] == second[start]:
            start += 1
        start = first.rfind(" ", 0, start) + 1
        return {
            "sentence": f"{first[:start]}_ {fields['continuation']}",
            "option1": first[start:],
            "option2": second[start:],
            "answer": str(fields["gold"] + 1),
        }
    if task == "piqa":
        first, second = fields["choices"]
        return {"goal": fields["goal"], "sol1": first, "sol2": second, "label": fields["gold"]}
    if task == "boolq":
        return {
            "passage": fields["passage"],
            "question": fields["question"],
            "label": fields["gold"],
        }
    return {"text": fields["text"]}


@pytest.mark.parametrize("task", DEFINITIONS)
def test_the_published_layout(task: str, tmp_path: Path) -> None:
    data_dir = write_task_files(tmp_path, count=1)
    ours = find_tasks([task], data_dir=data_dir).tasks[task]
    own = lm_evals_own(DEFINITIONS[task], {"test": [PUBLISHED[task]]})
    assert requests(ours) == requests(own)
    assert ours.VERSION == own.VERSION
    assert [m["metric"] for m in ours.config.metric_list] == [
        m["metric"] for m in own.config.metric_list
    ]
    assert ours.doc_to_target(ours.eval_docs[0]) == own.doc_to_target(own.eval_docs[0])
    assert PREPARED[task]


@pytest.mark.skipif(not TASKS.is_dir(), reason=f"{TASKS} is not there: set DUQUANT_ASSETS")
@pytest.mark.parametrize("task", sorted(set(DEFINITIONS) - {"hellaswag"}))
def test_real_items(task: str) -> None:
    """HellaSwag's file has its prompts made already, so there is nothing to go back to."""
    ours = find_tasks([task], data_dir=TASKS).tasks[task]
    documents = [published(task, ours.eval_docs[n]) for n in range(LIMIT)]
    assert requests(ours) == requests(lm_evals_own(DEFINITIONS[task], {"test": documents}))


@pytest.mark.parametrize("num_fewshot", [0, 5])
@pytest.mark.parametrize("source", ["written", "real"])
def test_mmlu(num_fewshot: int, source: str, tmp_path: Path) -> None:
    directory = TASKS / "mmlu"
    if source == "written":
        directory = write_mmlu_files(tmp_path)
    elif not directory.is_dir():
        pytest.skip(f"{directory} is not there: set DUQUANT_ASSETS")
    assert len(SUBJECTS) == 57
    chosen = ("abstract_algebra", "us_foreign_policy")
    with silence():
        subjects = local_subjects(directory, chosen)
    for subject in chosen:
        documents = {
            split: read_rows(directory / split / f"{subject}_{split}.csv")
            for split in ("dev", "test")
        }
        own = lm_evals_own(f"mmlu/default/mmlu_{subject}.yaml", documents)
        ours = subjects[f"mmlu_{subject}"]
        assert requests(ours, num_fewshot) == requests(own, num_fewshot)
        assert ours.VERSION == own.VERSION
