"""Names become tasks; unknown ones are answered with similar ones, before anything slow."""

from pathlib import Path

import pytest

from duquant.evaluation import task_list
from duquant.evaluation.task_list import find_tasks
from tests.task_files import write_mmlu_files, write_task_files

DEFINITION = """
task: capitals
custom_dataset: !function questions.read
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: [Rome, Oslo]
doc_to_target: gold
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
READER = """
from datasets import Dataset

def read(**_):
    return {"test": Dataset.from_list([{"question": "Italy?", "gold": 0}])}
"""


def test_suite_tasks_read_local_files(tmp_path: Path) -> None:
    found = find_tasks(["piqa", "arc_easy", "piqa"], data_dir=write_task_files(tmp_path))
    assert list(found.tasks) == list(found.definitions) == ["piqa", "arc_easy"]
    assert len(found.tasks["piqa"].eval_docs) == 3


def test_a_category_of_mmlu_and_single_subjects(tmp_path: Path) -> None:
    directory = write_mmlu_files(tmp_path)
    found = find_tasks(["mmlu_other", "mmlu_anatomy"], mmlu_data_dir=directory)
    assert list(found.groups) == ["mmlu_other"]
    assert set(found.tasks) == {*found.groups["mmlu_other"], "mmlu_anatomy"}
    assert len(found.tasks) == 14


def test_unknown_names_are_answered_with_similar_ones() -> None:
    with pytest.raises(ValueError, match=r"there is no task arc_eazy; did you mean .*arc_easy"):
        find_tasks(["piqa", "arc_eazy"])


def test_lm_evals_names_are_all_known() -> None:
    """Tasks, groups and tags: the scan may know more than there is, never less."""
    names = ["arc_easy", "mmlu", "mmlu_anatomy", "mmlu_stem_tasks", "ai2_arc", "llama", "gsm8k"]
    scan = task_list._scan_of_lm_eval()
    assert set(names) <= scan.names
    assert scan.files["arc_challenge"].name == "arc_challenge.yaml"
    assert "mmlu" not in scan.files, "a group needs the index"


def test_a_name_like_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no task ¿; lm-eval has none like it"):
        find_tasks(["¿"], data_dir=write_task_files(tmp_path))


def test_missing_folders_are_named() -> None:
    for option in ("data_dir", "tasks_dir", "mmlu_data_dir"):
        with pytest.raises(ValueError, match="there is no folder nowhere"):
            find_tasks(["piqa"], **{option: Path("nowhere")})  # type: ignore[arg-type]


def test_a_local_definition_is_found_without_lm_evals_index(tmp_path: Path) -> None:
    (tmp_path / "capitals.yaml").write_text(DEFINITION)
    (tmp_path / "questions.py").write_text(READER)
    found = find_tasks(["capitals"], tasks_dir=tmp_path)
    assert len(found.tasks["capitals"].eval_docs) == 1
    assert list(found.definitions) == ["capitals"]


def test_examples_must_be_there(tmp_path: Path) -> None:
    folder, mmlu = write_task_files(tmp_path), write_mmlu_files(tmp_path / "mmlu")
    for name, shots, most in (("piqa", 1, 0), ("mmlu_anatomy", 6, 5)):
        with pytest.raises(ValueError, match=f"num_fewshot is {shots}, but .*{name} have {most} e"):
            find_tasks([name], data_dir=folder, mmlu_data_dir=mmlu, num_fewshot=shots)


def test_data_that_cannot_be_had_are_named(tmp_path: Path) -> None:
    (tmp_path / "capitals.yaml").write_text(DEFINITION)
    (tmp_path / "questions.py").write_text("def read(**_):\n    raise OSError('no network')")
    with pytest.raises(
        ValueError, match=r"capitals\.yaml: task capitals cannot be built: no network"
    ):
        find_tasks(["capitals"], tasks_dir=tmp_path)


def test_a_definition_that_is_no_yaml_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "capitals.yaml").write_text("task: capitals\noutput_type: [\n")
    with pytest.raises(ValueError, match=r"capitals\.yaml: task capitals cannot be built: line 3:"):
        find_tasks(["capitals"], tasks_dir=tmp_path)


def test_a_damaged_neighbour_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "capitals.yaml").write_text(DEFINITION)
    (tmp_path / "questions.py").write_text(READER)
    (tmp_path / "rivers.yaml").write_text("task: rivers\noutput_type: [\n")
    assert list(find_tasks(["capitals"], tasks_dir=tmp_path).tasks) == ["capitals"]
