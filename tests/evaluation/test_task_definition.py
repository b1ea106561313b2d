"""The digest of a task changes with what its number depends on, and with nothing else."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from duquant.evaluation.task_list import find_tasks
from tests.task_files import write_mmlu_files, write_task_files

DEFINITION = """
task: capitals
custom_dataset: !function questions.read
test_split: test
fewshot_split: train
output_type: multiple_choice
doc_to_text: !function questions.ask
doc_to_choice: [Rome, Oslo]
doc_to_target: gold
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
metadata: {version: 1.0, source: an atlas}
"""
READER = """
from datasets import Dataset

FORM = "{question}"

def ask(doc):
    return FORM.format(**doc)

def read(**_):
    test = [{"question": "Italy?", "gold": 0}]
    train = [{"question": "Norway?", "gold": 1}]
    return {"test": Dataset.from_list(test), "train": Dataset.from_list(train)}
"""
Digest = Callable[..., str]


@pytest.fixture
def digest(tmp_path: Path) -> Digest:
    """Digest of the capitals with one text replaced by another, in a folder of its own."""

    def write(old: str = "", new: str = "", num_fewshot: int | None = None) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        (folder / "capitals.yaml").write_text(DEFINITION.replace(old, new))
        (folder / "questions.py").write_text(READER.replace(old, new))
        found = find_tasks(["capitals"], tasks_dir=folder, num_fewshot=num_fewshot)
        return found.definitions["capitals"]

    return write


def test_the_folder_does_not_matter(digest: Digest) -> None:
    assert digest() == digest()
    assert digest("an atlas", "a globe") == digest(), "metadata is no part of the question"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("[Rome, Oslo]", "[Roma, Oslo]"),
        ("metric: acc,", "metric: acc_norm,"),
        ('FORM = "{question}"', 'FORM = "Capital of {question}"'),
        ("Italy?", "Italia?"),
        ("metric_list", "description: Capitals.\nmetric_list"),
    ],
)
def test_an_edit_makes_another_task(digest: Digest, old: str, new: str) -> None:
    assert digest(old, new) != digest()


def test_examples_belong_to_prompts_that_show_them(digest: Digest) -> None:
    assert digest(num_fewshot=1) != digest(num_fewshot=0) == digest()


def test_local_files_are_their_items(tmp_path: Path) -> None:
    folder = write_task_files(tmp_path)
    before = find_tasks(["piqa"], data_dir=folder).definitions
    file = folder / "piqa.jsonl"
    file.write_text(file.read_text() + os.linesep)
    assert find_tasks(["piqa"], data_dir=folder).definitions == before, "a blank line is no item"
    first, _, rest = file.read_text().partition("\n")
    file.write_text(rest)
    assert find_tasks(["piqa"], data_dir=folder).definitions != before
    file.write_text(f"{first}\n{rest}")
    assert find_tasks(["piqa"], data_dir=folder).definitions == before


def test_the_examples_of_mmlu_count_with_shots(tmp_path: Path) -> None:
    folder, name = write_mmlu_files(tmp_path), "mmlu_anatomy"

    def digests() -> list[str]:
        shots = (None, 0, 5)
        found = [find_tasks([name], mmlu_data_dir=folder, num_fewshot=s) for s in shots]
        return [tasks.definitions[name] for tasks in found]

    unasked, zero, five = digests()
    assert unasked == zero != five
    file = folder / "dev" / "anatomy_dev.csv"
    file.write_text("".join(reversed(file.read_text().splitlines(keepends=True))))
    assert digests()[:2] == [unasked, zero]
    assert digests()[2] != five
