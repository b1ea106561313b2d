"""What the JSON files of a run directory hold, for whoever reads them.

``fit`` and ``validate`` write a :class:`Summary`, ``evaluate`` an :class:`Evaluation`, ``mtbench``
a :class:`Judged`. Files may hold more than a reader asks for.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from duquant.json_files import read_json
from duquant.model.massive_tokens import MassiveSite
from duquant.scores.evaluated import Evaluated
from duquant.scores.mt_bench import ModelScore, PairScore
from duquant.scores.statistics import PERPLEXITY


class _Condition(TypedDict, total=False):
    condition: float


class Peaks(_Condition):
    """Largest activation of a site, before and after its transform.

    A transform that was trained has a condition number too.
    """

    peak_before: float
    peak_after: float


class _Error(TypedDict, total=False):
    relative_error: float | None
    site_errors: dict[str, float]
    massive_tokens: list[MassiveSite]
    complaint: str
    damping: str


class BlockEntry(_Error):
    """What is kept of one block's calibration, see ``callbacks/block_events.py``.

    Earlier releases kept no errors, no damping and no massive tokens.
    """

    index: int
    lwc_losses: list[float]
    lwc_loss_first: float | None
    lwc_loss_last: float | None
    skipped_steps: int
    seconds: float
    peak_memory_bytes: int
    sites: dict[str, Peaks]


class Seconds(TypedDict):
    """How long a calibration took."""

    total: float


class DistillationEntry(TypedDict):
    """What the turn of the whole model did."""

    losses: list[float]
    skipped_steps: int
    complaint: str
    seconds: float


class SummaryOfAnyVersion(TypedDict, total=False):
    """What summaries have had from some version on."""

    distillation: list[DistillationEntry]
    protocols: dict[str, str]
    baseline: str


class Summary(SummaryOfAnyVersion):
    """``summary.json`` and ``validation.json``."""

    pretrained: str
    perplexity: dict[str, dict[str, float]]
    protocol: str
    corpora: dict[str, str]
    calibration: dict[str, Any]
    recipe: dict[str, Any]
    recipe_in_words: str
    dtype: str
    versions: dict[str, str]
    device: str
    seconds: Seconds
    peak_memory_bytes: int
    blocks: list[BlockEntry]
    artifact: str


class Number(TypedDict):
    """A metric of a task."""

    value: float
    stderr: float | None
    is_share: bool


class TaskResult(TypedDict):
    """What one model did on one task."""

    metrics: dict[str, Number]
    num_items: int
    available_items: int
    backend: str
    kv_cache: str


class Apart(TypedDict):
    """How a metric of two models differs."""

    value: float
    stderr: float | None
    exceeds_stderr: bool | None


class Request(TypedDict, total=False):
    """What was asked for, as far as a report says it."""

    perplexity: dict[str, str]


class SingleEvaluation(TypedDict):
    """The results of one model."""

    evaluated: Evaluated
    labels: list[str]
    request: Request
    protocols: dict[str, str]
    groups: dict[str, list[str]]
    notes: list[str]
    results: dict[str, TaskResult]


class Evaluation(SingleEvaluation, total=False):
    """The same, and those of a model beside it."""

    compared_results: dict[str, TaskResult]
    differences: dict[str, dict[str, Apart]]


class Judged(TypedDict):
    """What a judge of MT-Bench found."""

    judge: str
    prompts: str
    questions: int
    model: str
    asked: dict[str, str]
    single: list[ModelScore]
    pairwise: dict[str, PairScore]


def read_summary(file: Path) -> Summary:
    """Read ``summary.json`` or ``validation.json``.

    Raises:
        ValueError: if it is missing or damaged, naming it.
    """
    return read_json(file, Summary)


def read_evaluation(file: Path) -> Evaluation:
    """Read the results of an ``evaluate``.

    Raises:
        ValueError: if the file is missing, damaged, or its parts do not belong together.
    """
    remedy = "delete it, and the same evaluate writes it again"
    evaluation = read_json(file, Evaluation, remedy)
    missing = _missing(evaluation)
    if missing is not None:
        raise ValueError(f"{file} is damaged: it has no {missing}; {remedy}")
    return evaluation


def read_judged(file: Path) -> Judged:
    """Read what a judge found.

    Raises:
        ValueError: if the file is missing or damaged, naming it.
    """
    return read_json(file, Judged, "delete it, and the same mtbench show writes it again")


def _missing(evaluation: Evaluation) -> str | None:
    """What one part of an evaluation refers to and another does not have."""
    own, beside = evaluation["results"], list[Mapping[str, Mapping[str, Any]]]()
    if "compared_results" in evaluation:
        beside.append({name: r["metrics"] for name, r in evaluation["compared_results"].items()})
    if len(evaluation["labels"]) != 1 + len(beside):
        return "label for every model"
    if "differences" in evaluation:
        beside.append(evaluation["differences"])
    for other in beside:
        for task, result in own.items():
            lacking = result["metrics"].keys() - other.get(task, {}).keys()
            if lacking:
                return f"{min(lacking)} of {task} for both models"
    sources = evaluation["request"].get("perplexity")
    for corpus in evaluation["protocols"]:
        if sources is None or corpus not in sources:
            return f"source of {corpus}"
        if (
            PERPLEXITY + corpus not in own
            or "perplexity" not in own[PERPLEXITY + corpus]["metrics"]
        ):
            return f"perplexity of {corpus}"
    return None
