"""MMLU: the published categories, damaged files, and prompts that lose examples until they fit."""

from pathlib import Path
from typing import Any

import lm_eval
import pytest
from lm_eval.tasks._yaml_loader import load_yaml

from duquant.evaluation.mmlu import (
    PUBLISHED_ITEMS,
    SUBJECTS,
    FittingTask,
    local_subjects,
    mmlu_groups,
)
from duquant.evaluation.mmlu_csv import read_rows, subject_file
from duquant.evaluation.silence import silence
from tests.assets import ASSETS
from tests.task_files import write_mmlu_files

MMLU = ASSETS / "assets" / "tasks" / "mmlu"


def test_categories_are_lm_evals() -> None:
    own: dict[str, set[str]] = {}
    for file in (Path(lm_eval.__file__).parent / "tasks/mmlu/default").glob("mmlu_*.yaml"):
        config = load_yaml(file, recursive=False)
        own.setdefault(config["tag"].removesuffix("_tasks"), set()).add(config["task"])
    groups = mmlu_groups()
    assert {name: set(groups[name]) for name in own} == own
    assert sorted(groups["mmlu"]) == sorted(task for tasks in own.values() for task in tasks)


@pytest.mark.skipif(not MMLU.is_dir(), reason=f"{MMLU} is not there: set DUQUANT_ASSETS")
def test_real_files_have_as_many_items_as_published() -> None:
    counts = {
        f"mmlu_{subject}": len(read_rows(subject_file(subject, "test", MMLU)))
        for subject in SUBJECTS
    }
    for group, members in mmlu_groups().items():
        assert sum(counts[member] for member in members) == PUBLISHED_ITEMS[group]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("question,A,B,C,D,answer", "'answer'; it must be one of A, B, C, D"),
        ("What?,1,2,3,4,E", "'E'"),
        ("What?,1,2,3,4,", "''"),
        ("What?,1,2,3,A", "5 columns"),
        ('"What?,1,2,3,4,A', "line 2"),
    ],
)
def test_damage_is_named_by_file_and_line(tmp_path: Path, row: str, words: str) -> None:
    file = tmp_path / "anatomy_test.csv"
    file.write_text(f"What is 1 + 1?,1,2,3,4,B\n{row}\n")
    with pytest.raises(ValueError, match=rf"anatomy_test\.csv, line [23]: .*{words}|{words}"):
        read_rows(file)


def test_missing_and_empty_files_are_named(tmp_path: Path) -> None:
    directory = write_mmlu_files(tmp_path)
    (directory / "test" / "virology_test.csv").unlink()
    with pytest.raises(ValueError, match=r"there is no .*virology_test\.csv"):
        local_subjects(directory)
    (directory / "test" / "virology_test.csv").write_text("")
    with pytest.raises(ValueError, match=r"virology_test\.csv has no rows"):
        local_subjects(directory)


@pytest.fixture(scope="module")
def anatomy(tmp_path_factory: pytest.TempPathFactory) -> FittingTask:
    directory = write_mmlu_files(tmp_path_factory.mktemp("mmlu"))
    with silence():
        return local_subjects(directory, ["anatomy"])["mmlu_anatomy"]


def prompt(task: FittingTask, longest: float) -> Any:
    task.fits, task.shots = lambda text: len(text) <= longest, []
    return task.fewshot_context(task.eval_docs[0], num_fewshot=5)


def test_a_prompt_loses_its_last_examples_until_it_fits(anatomy: FittingTask) -> None:
    whole = prompt(anatomy, float("inf"))
    assert anatomy.shots == [5]
    assert whole.count("Answer:") == 6
    shorter = prompt(anatomy, len(whole) - 1)
    assert anatomy.shots == [4]
    assert shorter.count("Answer:") == 5
    question = whole.split("\n\n")[-1]
    assert shorter == "\n\n".join([*whole.split("\n\n")[:5], question])


def test_an_instruction_and_the_question_always_stay(anatomy: FittingTask) -> None:
    least = prompt(anatomy, 0)
    assert anatomy.shots == [0]
    assert least.startswith("The following are multiple choice questions")
    assert least.count("Answer:") == 1
