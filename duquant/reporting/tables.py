"""Tables of a report: rows of text, the same for HTML and Markdown."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from duquant.reporting.run_contents import VARIANTS, RunContents


class Table(NamedTuple):
    """A heading per column and rows of text; the first column names the row."""

    columns: list[str]
    rows: list[list[str]]


def perplexity_table(runs: Sequence[RunContents]) -> Table:
    """Perplexity by corpus and variant, a column per run."""
    corpora = list(dict.fromkeys(corpus for run in runs for corpus in run.perplexities))
    rows = []
    for corpus in corpora:
        for variant, label in VARIANTS.items():
            values = [run.perplexities.get(corpus, {}).get(variant) for run in runs]
            if any(value is not None for value in values):
                rows.append([f"{corpus}, {label}", *(_number(value, ".3f") for value in values)])
    return Table(["perplexity", *(run.name for run in runs)], rows)


def task_table(runs: Sequence[RunContents]) -> Table:
    """Evaluated tasks with standard errors, a column per evaluation."""
    columns = [
        (f"{run.name}/{folder}" if len(runs) > 1 else folder, evaluation["results"])
        for run in runs
        for folder, evaluation in run.evaluations.items()
    ]
    keys = dict.fromkeys(
        (task, metric)
        for _, results in columns
        for task, result in results.items()
        for metric in result["metrics"]
    )
    rows = [
        [f"{task}, {metric}", *(_measured(results, task, metric) for _, results in columns)]
        for task, metric in keys
    ]
    return Table(["task", *(name for name, _ in columns)], rows)


def recipe_table(runs: Sequence[RunContents]) -> Table:
    """The recipe's options; of several runs, those that differ stand first."""
    keys = list(dict.fromkeys(key for run in runs for key in run.recipe))
    rows = [[key, *(_plain(run.recipe.get(key)) for run in runs)] for key in keys]
    rows.sort(key=lambda row: len(set(row[1:])) == 1)
    return Table(["recipe", *(run.name for run in runs)], rows)


def cost_table(runs: Sequence[RunContents]) -> Table:
    """Time, memory, skipped steps and sizes."""
    rows = [
        ["calibration, seconds", *(f"{run.summary['seconds']['total']:.1f}" for run in runs)],
        ["peak memory, GB", *(f"{run.summary['peak_memory_bytes'] / 1e9:.2f}" for run in runs)],
        [
            "LWC steps skipped",
            *(str(sum(block["skipped_steps"] for block in run.summary["blocks"])) for run in runs),
        ],
    ]
    for kind in dict.fromkeys(kind for run in runs for kind in run.sizes):
        sizes = [run.sizes.get(kind) for run in runs]
        rows.append([f"{kind}, MB", *(_number(s and s / 1e6, ".2f") for s in sizes)])
    return Table(["cost", *(run.name for run in runs)], rows)


def environment_table(runs: Sequence[RunContents]) -> Table:
    """Model, data, seeds, device and library versions."""
    facts = [
        {
            "model": run.summary["pretrained"],
            "dtype": run.summary["dtype"],
            "device": run.summary["device"],
            "protocol": run.summary["protocol"],
            **{f"calibration.{k}": v for k, v in run.summary["calibration"].items()},
            **run.summary["versions"],
        }
        for run in runs
    ]
    keys = list(dict.fromkeys(key for fact in facts for key in fact))
    rows = [[key, *(_plain(fact.get(key)) for fact in facts)] for key in keys]
    return Table(["environment", *(run.name for run in runs)], rows)


def block_table(run: RunContents) -> Table:
    """Every block: loss before and after, peaks of every site, time and memory."""
    rows = [
        [
            str(block["index"]),
            _number(block["lwc_loss_first"], ".4g"),
            _number(block["lwc_loss_last"], ".4g"),
            *(f"{s['peak_before']:.3g} → {s['peak_after']:.3g}" for s in block["sites"].values()),
            f"{block['seconds']:.1f}",
            f"{block['peak_memory_bytes'] / 1e9:.2f}",
        ]
        for block in run.summary["blocks"]
    ]
    first = run.summary["blocks"][0]["sites"] if run.summary["blocks"] else {}
    sites = [f"peak, {site.replace('_', ' ')}" for site in first]
    return Table(["block", "first loss", "last loss", *sites, "seconds", "GB"], rows)


def _measured(results: dict[str, Any], task: str, metric: str) -> str:
    value = results.get(task, {}).get("metrics", {}).get(metric)
    if value is None:
        return "–"
    error = "" if value["stderr"] is None else f" ± {value['stderr']:.4g}"
    return f"{value['value']:.4g}{error}"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _plain(value: object) -> str:
    return "–" if value is None else str(value)
