"""What a report says of one run, read from the files of its run directory.

Nothing is computed again: the summary, the blocks' records, evaluations and pictures are what the
run left. A part that is not there (no tasks evaluated, no model yet) is missing from the report.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from duquant.export.model_card import size_breakdown
from duquant.model.checkpoint import INDEX
from duquant.reporting.pictures import read_pictures
from duquant.reporting.run_files import (
    Evaluation,
    Judged,
    Summary,
    read_evaluation,
    read_judged,
    read_summary,
)
from duquant.scores.mt_bench import SCORES_FOLDER

VARIANTS = {
    "full_precision": "full precision",
    "round_to_nearest": "round to nearest",
    "quantized": "quantized",
}


@dataclass(frozen=True)
class RunContents:
    """One run, as far as it got.

    Attributes:
        name: what the run is called in a table.
        summary: ``summary.json``.
        validation: ``validation.json`` of a later measurement, if there is one.
        evaluations: the results of every ``evaluate`` below the run.
        mt_bench: what every judge of MT-Bench found.
        pictures: the outlier picture of each block by its number, as PNG bytes in base64.
        sizes: bytes of the model directory by what they are for.
    """

    name: str
    summary: Summary
    validation: Summary | None
    evaluations: list[Evaluation]
    mt_bench: list[Judged]
    pictures: dict[int, str]
    sizes: dict[str, int]

    @property
    def recipe(self) -> dict[str, Any]:
        """The recipe as ``{"rotation.block_size": 128, …}``."""
        return flat(self.summary["recipe"])

    def measured(self) -> dict[str, Any]:
        """Plain values of all but the pictures."""
        return {key: value for key, value in vars(self).items() if key != "pictures"}


def read_run(directory: Path, name: str | None = None) -> RunContents:
    """Read a run directory.

    Args:
        directory: where fit put it.
        name: what to call it (default: the folder's name).

    Raises:
        ValueError: if it holds no finished run, or a file of it is damaged, naming it.
    """
    file = directory / "summary.json"
    if not file.is_file():
        raise ValueError(f"{directory} holds no finished run: it has no summary.json")
    validation = directory / "validation.json"
    model = directory / "model"
    return RunContents(
        name=name or directory.resolve().name,
        summary=read_summary(file),
        validation=read_summary(validation) if validation.is_file() else None,
        evaluations=[read_evaluation(f) for f in sorted(directory.rglob("results/*.json"))],
        mt_bench=[read_judged(f) for f in sorted((directory / SCORES_FOLDER).glob("*.json"))],
        pictures=read_pictures(directory),
        sizes=size_breakdown(model) if (model / INDEX).is_file() else {},
    )


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, keys joined by dots."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            result.update(flat(value, f"{prefix}{key}."))
        else:
            result[f"{prefix}{key}"] = value
    return result
