"""Errors and differences, against the formulas written out and against simulation."""

import math
import random
import statistics
from typing import Any

import pytest

from duquant.json_shapes import shaped
from duquant.scores.statistics import (
    Measurement,
    Metric,
    combine,
    difference,
    mean_of,
    perplexity_of,
)


def measurement(name: str, values: list[float], **options: int) -> Measurement:
    return Measurement(
        name, "1.0", 0, len(values), len(values), {"acc": mean_of(values)}, **options
    )


def test_the_error_of_a_mean() -> None:
    values = [1.0, 0.0, 0.0, 1.0, 1.0]
    metric = mean_of(values)
    assert metric.value == pytest.approx(0.6)
    assert metric.stderr == pytest.approx(statistics.stdev(values) / math.sqrt(5))
    assert metric.is_share
    assert mean_of([0.5]).stderr is None


def test_perplexity_and_its_error_against_resampling() -> None:
    generator = random.Random(0)
    losses = [generator.gauss(3.0, 0.5) for _ in range(400)]
    metric = perplexity_of(losses)
    assert metric.value == pytest.approx(math.exp(statistics.fmean(losses)))
    resampled = [math.exp(statistics.fmean(generator.choices(losses, k=400))) for _ in range(600)]
    # 600 resamplings know a deviation to about 3 %.
    assert metric.stderr == pytest.approx(statistics.stdev(resampled), rel=0.15)
    assert not metric.is_share
    assert not metric.higher_is_better


def test_a_difference_is_paired_item_by_item() -> None:
    model, reference = mean_of([1.0, 0.0, 1.0, 1.0]), mean_of([1.0, 0.0, 0.0, 1.0])
    apart = difference(model, reference)
    assert apart.is_paired
    assert apart.value == pytest.approx(0.25)
    assert apart.stderr == pytest.approx(statistics.stdev([0, 0, 1, 0]) / 2)
    assert apart.exceeds_stderr is False, "a single item of four decides it"
    same = difference(model, model)
    assert (same.value, same.stderr, same.exceeds_stderr) == (0, 0, False)


def test_a_difference_of_perplexities_against_resampling() -> None:
    generator = random.Random(1)
    first = [generator.gauss(3.0, 0.5) for _ in range(400)]
    second = [loss + generator.gauss(0.05, 0.02) for loss in first]
    apart = difference(perplexity_of(second), perplexity_of(first))
    resampled = []
    for _ in range(600):
        chosen = generator.choices(range(400), k=400)
        means = [
            math.exp(statistics.fmean(losses[i] for i in chosen)) for losses in (second, first)
        ]
        resampled.append(means[0] - means[1])
    assert apart.exceeds_stderr is True
    assert apart.stderr == pytest.approx(statistics.stdev(resampled), rel=0.15)


def test_without_items_errors_are_independent() -> None:
    apart = difference(Metric(0.5, 0.03), Metric(0.4, 0.04))
    assert not apart.is_paired
    assert apart.stderr == pytest.approx(0.05)
    assert difference(Metric(0.5, None), Metric(0.4, 0.04)).exceeds_stderr is None


def test_a_group_is_the_mean_over_items_not_over_tasks() -> None:
    members = [measurement("small", [1.0]), measurement("large", [0.0, 0.0, 1.0])]
    group = combine("both", members)
    assert group.metrics["acc"].value == pytest.approx(0.5)
    assert group.num_items == 4
    assert group.metrics["acc"].stderr == mean_of([1, 0, 0, 1]).stderr


def test_plain_values_and_back() -> None:
    one = measurement("one", [0.0, 1.0], fewest_shots=2)
    assert shaped(one.to_dict(), Measurement) == one
    assert "per_item" not in one.summary()["metrics"]["acc"]
    assert "log_likelihoods" not in one.summary()


@pytest.mark.parametrize("loss", [math.nan, math.inf, 800.0])
def test_a_measurement_of_no_numbers_is_refused(loss: float) -> None:
    def measure(metrics: dict[str, Metric], **options: Any) -> Measurement:
        return Measurement("text", "1", 0, 2, 2, metrics, **options)

    with pytest.raises(ValueError, match=r"^text: perplexity is (nan|inf): the model's numbers"):
        measure({"perplexity": perplexity_of([1.0, 2 * loss])})
    unlikely = -loss if math.isfinite(loss) else -math.inf
    measured = [[-1.0, -2.0], [-1.0, loss if math.isnan(loss) else unlikely]]
    if math.isfinite(loss):
        measure({}, log_likelihoods=measured)
        return
    with pytest.raises(ValueError, match=r"^text: log-likelihood is .*--dtype float32"):
        measure({}, log_likelihoods=measured)
