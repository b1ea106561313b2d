"""Rows as one Markdown table."""

import math
from collections.abc import Sequence

from tests.benchmarks.real_models.measuring import Row
from tests.benchmarks.real_models.rows import FULL_PRECISION

METRICS = ("acc", "exact_match")
"""The metric of a task that the table shows, the first that it has; the file has all."""


def as_table(rows: Sequence[Row]) -> str:
    """A row for every recipe and setting, a column for every text and task.

    With a full-precision row, differences of log perplexity stand beside the perplexities.
    """
    texts = list(dict.fromkeys(name for row in rows for name in row["perplexity"]))
    tasks = list(dict.fromkeys(name for row in rows for name in row["tasks"]))
    heads = ["recipe", "numbers", *(head for text in texts for head in (text, "nats")), *tasks]
    heads += ["calibration", "CPU time", "peak memory", "weights"]
    full = next((row["perplexity"] for row in rows if row["recipe"] == FULL_PRECISION), {})
    lines = [heads, ["---"] * len(heads), *(_cells(row, texts, tasks, full) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(
    row: Row, texts: Sequence[str], tasks: Sequence[str], full: dict[str, float]
) -> list[str]:
    cells = [row["recipe"], row["setting"]]
    for text in texts:
        value, reference = row["perplexity"].get(text), full.get(text)
        is_compared = value is not None and reference is not None
        cells.append("–" if value is None else f"{value:,.2f}")
        cells.append(f"{math.log(value / reference):.3f}" if is_compared else "–")
    for task in tasks:
        metrics = row["tasks"].get(task, {})
        name = next((name for name in METRICS if name in metrics), next(iter(metrics), None))
        cells.append("–" if name is None else f"{name} {metrics[name]['value']:.4g}")
    return [
        *cells,
        f"{row['calibration_seconds']:.0f} s",
        f"{row['cpu_seconds']:.0f} s",
        f"{row['peak_memory_bytes'] / 1e9:.2f} GB",
        f"{row['model_bytes'] / 1e6:.0f} MB",
    ]
