"""Measurements with standard errors, means of several tasks, and differences of two models.

Two models answer the same items, so the error of their difference is that of the *differences item
by item*: ``s(d) / √n``. It is smaller than what the two errors alone would suggest, because an item
that is hard for one model is hard for the other. A perplexity ``exp(m)`` changes by ``exp(m)``
times the change of the mean loss ``m``, so its items count with that factor. Metrics without values
per item have no such differences; their errors are added as independent ones, ``√(a² + b²)``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

LARGEST_LOSS = 700.0
"""Nats whose exponential is a number."""
PERPLEXITY = "perplexity_"
"""What the names of perplexities begin with, as if they were tasks."""


@dataclass(frozen=True)
class Metric:
    """One number of a task.

    Attributes:
        value: the number; accuracies are shares of 1.
        stderr: its standard error, or ``None`` if there is none.
        higher_is_better: which direction is better.
        per_item: the metric of every item, where ``value`` is their mean.
        is_exponential: ``value`` is ``exp`` of that mean instead.
    """

    value: float
    stderr: float | None
    higher_is_better: bool = True
    per_item: list[float] | None = None
    is_exponential: bool = False

    @property
    def is_share(self) -> bool:
        """Whether it can be read as a percentage."""
        if self.per_item is None or self.is_exponential:
            return False
        return all(0 <= value <= 1 for value in self.per_item)

    @property
    def slope(self) -> float:
        """How much ``value`` changes when the mean over items changes by 1."""
        return self.value if self.is_exponential else 1.0


@dataclass(frozen=True)
class Measurement:
    """What one model did on one task.

    Attributes:
        name: the task.
        version: version of its definition.
        num_fewshot: examples asked for in a prompt.
        num_items: items measured.
        available_items: items there are.
        published_items: items of the published data set, where it is known.
        metrics: numbers by name.
        num_truncated: requests that were longer than the context and lost their beginning.
        fewest_shots: examples of the prompt that had to lose most, where prompts are fitted.
        log_likelihoods: of every choice of every item, in nats.
        seconds: time it took.
        backend: arithmetic the model computed in.
        kv_cache: how keys and values of earlier tokens were kept, "none" where they were not.

    Raises:
        ValueError: if a number is NaN or infinite: nothing was measured then.
    """

    name: str
    version: str
    num_fewshot: int
    num_items: int
    available_items: int
    metrics: dict[str, Metric]
    published_items: int | None = None
    num_truncated: int = 0
    fewest_shots: int | None = None
    log_likelihoods: list[list[float]] = field(default_factory=list)
    seconds: float = 0.0
    backend: str = ""
    kv_cache: str = "none"

    def __post_init__(self) -> None:
        """Refuse what an overflow or a damaged model came to."""
        numbers = {label: metric.value for label, metric in self.metrics.items()}
        numbers["log-likelihood"] = sum(value for row in self.log_likelihoods for value in row)
        for label, number in numbers.items():
            if not math.isfinite(number):
                raise ValueError(
                    f"{self.name}: {label} is {number}: the model's numbers are not finite; "
                    f"measure in another precision, --dtype float32"
                )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with those of every item."""
        return asdict(self)

    def summary(self) -> dict[str, Any]:
        """Plain values without those of single items."""
        values = self.to_dict()
        del values["log_likelihoods"]
        for name, metric in values["metrics"].items():
            del metric["per_item"]
            metric["is_share"] = self.metrics[name].is_share
        return values


@dataclass(frozen=True)
class Difference:
    """A model's metric minus the reference's.

    Attributes:
        value: the difference.
        stderr: its standard error.
        is_paired: whether that is the error of differences item by item.
        exceeds_stderr: whether the difference is larger than its error.
    """

    value: float
    stderr: float | None
    is_paired: bool
    exceeds_stderr: bool | None


def mean_of(values: Sequence[float]) -> Metric:
    """Mean of items with its standard error, ``s / √n``."""
    count = len(values)
    mean = math.fsum(values) / count
    spread = math.fsum((value - mean) ** 2 for value in values)
    stderr = math.sqrt(spread / (count - 1) / count) if count > 1 else None
    return Metric(mean, stderr, per_item=list(values))


def combine(
    name: str, members: Sequence[Measurement], published_items: int | None = None
) -> Measurement:
    """Mean over all items of several tasks, for the metrics that all of them have.

    Args:
        name: what they are called together.
        members: the tasks.
        published_items: items that all of them have as published, where it is known.
    """
    shared = [
        metric
        for metric in members[0].metrics
        if all(metric in m.metrics and _is_mean(m.metrics[metric]) for m in members)
    ]
    return Measurement(
        name=name,
        version="/".join(sorted({member.version for member in members})),
        num_fewshot=max(member.num_fewshot for member in members),
        num_items=sum(member.num_items for member in members),
        available_items=sum(member.available_items for member in members),
        published_items=published_items,
        metrics={
            metric: mean_of([v for m in members for v in m.metrics[metric].per_item or []])
            for metric in shared
        },
        num_truncated=sum(member.num_truncated for member in members),
        fewest_shots=min(
            (m.fewest_shots for m in members if m.fewest_shots is not None), default=None
        ),
        seconds=sum(member.seconds for member in members),
        backend=members[0].backend,
        kv_cache=members[0].kv_cache,
    )


def _is_mean(metric: Metric) -> bool:
    return metric.per_item is not None and not metric.is_exponential


def perplexity_of(losses: Sequence[float]) -> Metric:
    """Exponential of the mean loss with its standard error, ``exp(m) · s / √n``."""
    mean = mean_of(losses)
    value = math.exp(mean.value) if mean.value < LARGEST_LOSS else math.inf
    stderr = None if mean.stderr is None else value * mean.stderr
    return Metric(value, stderr, False, list(losses), is_exponential=True)


def differences(
    model: Mapping[str, Measurement], reference: Mapping[str, Measurement]
) -> dict[str, Any]:
    """By task and metric, how the model differs from the reference."""
    return {
        name: {
            metric: asdict(difference(value, reference[name].metrics[metric]))
            for metric, value in own.metrics.items()
        }
        for name, own in model.items()
    }


def difference(model: Metric, reference: Metric) -> Difference:
    """How a model's metric differs from the reference's."""
    value = model.value - reference.value
    stderr: float | None
    is_paired = (
        model.per_item is not None
        and reference.per_item is not None
        and len(model.per_item) == len(reference.per_item)
    )
    if is_paired:
        pairs = zip(model.per_item or [], reference.per_item or [], strict=True)
        stderr = mean_of([model.slope * a - reference.slope * b for a, b in pairs]).stderr
    elif model.stderr is None or reference.stderr is None:
        stderr = None
    else:
        stderr = math.hypot(model.stderr, reference.stderr)
    exceeds = None if stderr is None else abs(value) > stderr
    return Difference(value, stderr, is_paired, exceeds)
