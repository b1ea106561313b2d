"""Results on a terminal: one row per task and metric, means of groups below their tasks."""

from collections.abc import Mapping, Sequence

from rich.console import Console

from duquant.scores.formatting import format_difference, format_metric
from duquant.scores.statistics import PERPLEXITY, Measurement, difference
from duquant.terminal import say
from duquant.terminal_table import PlainTable, show_table

WIDEST = 1000
"""Columns where there is no terminal to ask: a file has room for every number."""
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
