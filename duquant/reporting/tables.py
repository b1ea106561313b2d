"""Tables of a report: rows of text, the same for HTML and Markdown."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from duquant.reporting.run_contents import RunContents
from duquant.reporting.run_files import Peaks


class Table(NamedTuple):
    """Rows of text.

    Attributes:
        columns: a heading per column; the first column names the row.
        rows: cells.
        title: what it is about; tables of one title stand together.
        notes: lines above it.
        folded: what stands in its place until it is opened.
    """

    columns: list[str]
    rows: list[list[str]]
    title: str = ""
    notes: tuple[str, ...] = ()
    folded: str = ""


Cells = dict[str, str]
"""Rows of one column by their names."""


class Column(NamedTuple):
    """One column, and what must be equal to stand beside another."""

    key: tuple[str, ...]
    name: str
    cells: Cells


def join(
    title: str, columns: Sequence[Column], notes: Iterable[str] = (), folded: str = ""
) -> Table:
    """Columns side by side; one that says the same as another of its name stands once."""
    distinct: list[Column] = []
    for column in columns:
        if not any(c.name == column.name and c.cells == column.cells for c in distinct):
            distinct.append(column)
    names = list(dict.fromkeys(row for column in distinct for row in column.cells))
    rows = [[name, *(column.cells.get(name, "–") for column in distinct)] for name in names]
    heads = [title.lower().removesuffix("s"), *(column.name for column in distinct)]
    return Table(heads, rows, title, tuple(notes), folded)


def recipe_table(runs: Sequence[RunContents]) -> Table:
    """The recipe's options; of several runs, those that differ stand first."""
    keys = list(dict.fromkeys(key for run in runs for key in run.recipe))
    rows = [[key, *(_plain(run.recipe.get(key)) for run in runs)] for key in keys]
    rows.sort(key=lambda row: len(set(row[1:])) == 1)
    return Table(["recipe", *(run.name for run in runs)], rows, "Recipe")


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
    if any(run.summary.get("distillation") for run in runs):
        rows.append(["distillation loss, first and last epoch", *map(_distilled, runs)])
    for kind in dict.fromkeys(kind for run in runs for kind in run.sizes):
        sizes = [run.sizes.get(kind) for run in runs]
        rows.append([f"{kind}, MB", *(_number(s and s / 1e6, ".2f") for s in sizes)])
    return Table(["cost", *(run.name for run in runs)], rows, "Cost")


def _distilled(run: RunContents) -> str:
    losses = [loss for turn in run.summary.get("distillation", []) for loss in turn["losses"]]
    return f"{losses[0]:.4g} → {losses[-1]:.4g}" if losses else "–"


def environment_table(runs: Sequence[RunContents]) -> Table:
    """Model, data, seeds, device and library versions."""
    facts = [
        {
            "model": run.summary["pretrained"],
            "dtype": run.summary["dtype"],
            "device": run.summary["device"],
            **{f"calibration.{k}": v for k, v in run.summary["calibration"].items()},
            **run.summary["versions"],
        }
        for run in runs
    ]
    keys = list(dict.fromkeys(key for fact in facts for key in fact))
    rows = [[key, *(_plain(fact.get(key)) for fact in facts)] for key in keys]
    return Table(["environment", *(run.name for run in runs)], rows, "Environment")


def block_table(run: RunContents) -> Table:
    """Every block: error, loss before and after, peaks of every site, time and memory."""
    rows = [
        [
            str(block["index"]),
            _number(block.get("relative_error"), ".1%"),
            _number(block["lwc_loss_first"], ".4g"),
            _number(block["lwc_loss_last"], ".4g"),
            *(_peaks(site) for site in block["sites"].values()),
            f"{block['seconds']:.1f}",
            f"{block['peak_memory_bytes'] / 1e9:.2f}",
        ]
        for block in run.summary["blocks"]
    ]
    first = run.summary["blocks"][0]["sites"] if run.summary["blocks"] else {}
    sites = [site.replace("_", " ") for site in first]
    columns = ["block", "error", "first loss", "last loss", *sites, "seconds", "GB"]
    notes = [
        f"Block {block['index']}: {words}"
        for block in run.summary["blocks"]
        for words in (block.get("complaint"), block.get("damping"))
        if words
    ]
    if sites:
        notes.append("Error: what quantization changes, of what the block adds to its input")
        notes.append("Largest activation of every site before → after its transform")
    if any(
        "condition" in site for block in run.summary["blocks"] for site in block["sites"].values()
    ):
        notes.append("In brackets: condition number of a transform that was trained")
    return Table(columns, rows, f"Blocks of {run.name}", tuple(notes))


def _peaks(site: Peaks) -> str:
    peaks = f"{site['peak_before']:.3g} → {site['peak_after']:.3g}"
    return peaks + (f" ({site['condition']:.2g})" if "condition" in site else "")


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _plain(value: object) -> str:
    return "–" if value is None else str(value)
