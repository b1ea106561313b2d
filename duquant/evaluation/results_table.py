"""Results on a terminal: one row per task and metric, means of groups below their tasks."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from duquant.evaluation.statistics import Difference, Measurement, Metric, difference

Measurements = Mapping[str, Measurement]


def print_results(
    title: str,
    labels: list[str],
    measured: list[Measurements],
    groups: Mapping[str, Any],
    console: Console,
) -> None:
    """Show one model, or two and how they differ.

    Args:
        title: what the table is called.
        labels: what the models are called.
        measured: of each model, tasks and groups by name, in the order of the rows.
        groups: names that are means over several tasks.
        console: where to print.
    """
    table = Table(title=title, title_justify="left")
    for column in ("", "metric", "shots", "items"):
        table.add_column(column, justify="right" if column in ("shots", "items") else "left")
    for label in labels:
        table.add_column(label, justify="right")
    if len(measured) == 2:
        table.add_column("difference", justify="right")
        table.add_column("beyond error", justify="center")
    for name, own in measured[0].items():
        for metric, value in own.metrics.items():
            cells = [name, metric, str(own.num_fewshot), _items(own), format_metric(value)]
            if len(measured) == 2:
                reference = measured[1][name].metrics[metric]
                apart = difference(value, reference)
                cells += [format_metric(reference), *format_difference(apart, value.is_share)]
            table.add_row(*cells, style="bold" if name in groups else None)
    console.print(table)
    for note in notes(measured[0]):
        console.print(note, soft_wrap=True, highlight=False)


def format_metric(metric: Metric) -> str:
    """``45.20 ± 1.31``, shares in percent."""
    factor = 100 if metric.is_share else 1
    error = "" if metric.stderr is None else f" ± {metric.stderr * factor:.2f}"
    return f"{metric.value * factor:.2f}{error}"


def format_difference(apart: Difference, is_share: bool) -> tuple[str, str]:
    """The difference with its error, and whether it exceeds it."""
    factor = 100 if is_share else 1
    error = "" if apart.stderr is None else f" ± {apart.stderr * factor:.2f}"
    exceeds = {True: "yes", False: "no", None: "?"}[apart.exceeds_stderr]
    return f"{apart.value * factor:+.2f}{error}", exceeds


def notes(measured: Measurements) -> list[str]:
    """What a reader must know before quoting the numbers."""
    found = []
    for name, own in measured.items():
        if own.published_items not in (None, own.available_items):
            found.append(
                f"{name}: the data have {own.available_items} items, the published set "
                f"{own.published_items}"
            )
        if own.num_items < own.available_items and own.log_likelihoods:
            found.append(f"{name}: the first {own.num_items} of {own.available_items} items")
        if own.num_truncated:
            found.append(f"{name}: {own.num_truncated} requests exceeded the context and were cut")
        if own.fewest_shots is not None and own.fewest_shots < own.num_fewshot:
            found.append(f"{name}: prompts were cut to as few as {own.fewest_shots} examples")
    return found


def _items(measured: Measurement) -> str:
    return str(measured.num_items)
