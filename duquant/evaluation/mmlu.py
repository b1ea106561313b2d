"""MMLU's 57 subjects in four categories, and their few-shot prompts, which must fit the context.

The original evaluation asks every question after five examples. Where that is longer than the
model's context, it leaves out the last example, then the one before, until the prompt fits.
(lm-eval alone cuts tokens off the front, which takes the instruction and half an example first.)
The letter with the highest likelihood is the answer; categories and the total are means over
questions, not over subjects.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml

from duquant.evaluation.local_items import TASKS_DIRECTORY
from duquant.evaluation.mmlu_csv import SPLITS, read_rows, subject_file

CATEGORIES = {
    "stem": [
        "abstract_algebra", "anatomy", "astronomy", "college_biology", "college_chemistry",
        "college_computer_science", "college_mathematics", "college_physics", "computer_security",
        "conceptual_physics", "electrical_engineering", "elementary_mathematics",
        "high_school_biology", "high_school_chemistry", "high_school_computer_science",
        "high_school_mathematics", "high_school_physics", "high_school_statistics",
        "machine_learning",
    ],
    "humanities": [
        "formal_logic", "high_school_european_history", "high_school_us_history",
        "high_school_world_history", "international_law", "jurisprudence", "logical_fallacies",
        "moral_disputes", "moral_scenarios", "philosophy", "prehistory", "professional_law",
        "world_religions",
    ],
    "social_sciences": [
        "econometrics", "high_school_geography", "high_school_government_and_politics",
        "high_school_macroeconomics", "high_school_microeconomics", "high_school_psychology",
        "human_sexuality", "professional_psychology", "public_relations", "security_studies",
        "sociology", "us_foreign_policy",
    ],
    "other": [
        "business_ethics", "clinical_knowledge", "college_medicine", "global_facts",
        "human_aging", "management", "marketing", "medical_genetics", "miscellaneous",
        "nutrition", "professional_accounting", "professional_medicine", "virology",
    ],
}  # fmt: skip
SUBJECTS = tuple(subject for subjects in CATEGORIES.values() for subject in subjects)
MOST_SHOTS = 5
PUBLISHED_ITEMS = {
    "mmlu": 14042,
    "mmlu_stem": 3153,
    "mmlu_humanities": 4705,
    "mmlu_social_sciences": 3077,
    "mmlu_other": 3107,
}
"""Test questions of all subjects and of each category."""
DESCRIPTION = "The following are multiple choice questions (with answers) about {}.\n\n"


class FittingTask(ConfigurableTask):
    """A task whose prompts lose examples until they fit the model's context.

    Attributes:
        fits: whether a prompt fits; set by whoever knows the model.
        shots: how many examples each prompt got, in the order of the items.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config=config)
        self.fits: Callable[[str], bool] = lambda prompt: True
        self.shots: list[int] = []

    def fewshot_context(self, doc: Any, num_fewshot: int, **options: Any) -> Any:
        """The longest prompt with at most ``num_fewshot`` examples that fits."""
        for shots in range(num_fewshot, -1, -1):
            prompt = super().fewshot_context(doc, num_fewshot=shots, **options)
            if shots == 0 or self.fits(prompt):
                self.shots.append(shots)
                return prompt
        raise AssertionError("no shots at all are always accepted")


def mmlu_groups() -> dict[str, tuple[str, ...]]:
    """Task names of every category, and of all."""
    groups = {
        f"mmlu_{category}": tuple(f"mmlu_{subject}" for subject in subjects)
        for category, subjects in CATEGORIES.items()
    }
    return {"mmlu": tuple(name for names in groups.values() for name in names), **groups}


def local_subjects(directory: Path, subjects: Sequence[str] = SUBJECTS) -> dict[str, FittingTask]:
    """Subjects of a folder in the original layout, by the names of their tasks.

    Raises:
        ValueError: if a file is missing or damaged, naming file and line.
    """
    for subject in subjects:  # every file is read before the first task is built
        for split in SPLITS:
            read_rows(subject_file(subject, split, directory))
    return {f"mmlu_{subject}": _subject_task(subject, directory) for subject in subjects}


def _subject_task(subject: str, directory: Path) -> FittingTask:
    config = load_yaml(TASKS_DIRECTORY / "mmlu_subject.yaml")
    return FittingTask(
        config={
            **config,
            "task": f"mmlu_{subject}",
            "description": DESCRIPTION.format(subject.replace("_", " ")),
            "dataset_kwargs": {"subject": subject, "data_dir": str(directory)},
        }
    )
