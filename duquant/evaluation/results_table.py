"""Results on a terminal: one row per task and metric, means of groups below their tasks."""

from collections.abc import Mapping, Sequence

from rich.console import Console

from duquant.evaluation.statistics import PERPLEXITY, Difference, Measurement, Metric, difference
from duquant.terminal import PlainTable, say, show_table

WIDEST = 1000
"""Columns where there is no terminal to ask: a file has room for every number."""
LARGE = 10_000
Measurements = Mapping[str, Measurement]
Groups = Mapping[str, tuple[str, ...]]


def print_results(
    title: str,
    labels: list[str],
    measured: list[Measurements],
    groups: Groups,
    limit: int | None,
    console: Console,
    prompts: Sequence[str] = (),
) -> None:
    """Show one model, or two and how they differ.

    Args:
        title: what the table is called.
        labels: what the models are called.
        measured: of each model, tasks and groups by name, in the order of the rows.
        groups: names that are means over several tasks, and these tasks.
        limit: items of a task at most.
        console: where to print.
        prompts: how they were put.
    """
    table = PlainTable()
    table.add_column("", overflow="fold")
    table.add_column("", overflow="fold")
    for label in [*labels, "difference"] if len(measured) == 2 else labels:
        table.add_column(label, justify="right", no_wrap=True)
    if len(measured) == 2:
        table.add_column("> error", justify="center", no_wrap=True, min_width=len("> error"))
    for name, own in measured[0].items():
        for metric, value in own.metrics.items():
            cells = [name, metric, format_metric(value)]
            if len(measured) == 2:
                reference = measured[1][name].metrics[metric]
                apart = difference(value, reference)
                cells += [format_metric(reference), *format_difference(apart, value.is_share)]
            table.add_row(*cells, style="bold" if name in groups else None)
    if not console.is_terminal:
        console.width = WIDEST
    say(title, console, "italic")
    show_table(table, console)
    for note in [*notes(measured[0], groups, limit, prompts), *backends(labels, measured)]:
        say(note, console)


def format_metric(metric: Metric) -> str:
    """``45.20 ± 1.31``, shares in percent."""
    return format_value(metric.value, metric.stderr, is_share=metric.is_share)


def format_value(value: float, stderr: float | None, *, is_share: bool) -> str:
    """A number with its error, shares in percent."""
    factor = 100 if is_share else 1
    return _number(value * factor) + _error(stderr, factor)


def format_difference(apart: Difference, is_share: bool) -> tuple[str, str]:
    """The difference with its error, and whether it exceeds it."""
    exceeds = {True: "yes", False: "no", None: "?"}[apart.exceeds_stderr]
    sign = "+" if apart.value >= 0 else ""
    return sign + format_value(apart.value, apart.stderr, is_share=is_share), exceeds


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) < LARGE else f"{value:.3g}"


def _error(stderr: float | None, factor: int) -> str:
    return "" if stderr is None else f" ± {_number(stderr * factor)}"


def notes(
    measured: Measurements, groups: Groups, limit: int | None, prompts: Sequence[str] = ()
) -> list[str]:
    """What a reader must know before quoting the numbers."""
    found = ["± one standard error"]
    tasks = [own for name, own in measured.items() if not name.startswith(PERPLEXITY)]
    if tasks:
        shots = sorted({own.num_fewshot for own in tasks})
        asked = f"{'/'.join(map(str, shots))}-shot{'; all items' if limit is None else ''}"
        found = [f"{asked}; accuracies in percent, ± one standard error", *prompts]
    if tasks and limit is not None:
        found.append(f"--limit {limit}: a taste, not the published protocol")
    for name, own in measured.items():
        if _is_part(name, groups):
            continue  # what is said of the whole is said of it
        if own.published_items not in (None, own.available_items):
            found.append(
                f"{name}: the data have {own.available_items} items, the published set "
                f"{own.published_items}"
            )
        if own.num_truncated:
            found.append(f"{name}: {own.num_truncated} requests exceeded the context and were cut")
        if own.fewest_shots is not None and own.fewest_shots < own.num_fewshot:
            found.append(f"{name}: prompts were cut to as few as {own.fewest_shots} examples")
    return found


def backends(labels: list[str], measured: list[Measurements]) -> list[str]:
    """How each model computed, and kept keys and values while it generated text."""
    found = []
    for label, measurements in zip(labels, measured, strict=True):
        ways = dict.fromkeys((own.backend, own.kv_cache) for own in measurements.values())
        words = "; ".join(f"backend {backend}, KV cache {cache}" for backend, cache in ways)
        found.append(f"{label}: {words}")
    return found


def _is_part(name: str, groups: Groups) -> bool:
    """Whether a group has a task, or all tasks of a smaller group."""
    own = set(groups.get(name, (name,)))
    return any(own < set(members) for members in groups.values())
