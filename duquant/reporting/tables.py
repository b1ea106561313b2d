"""Tables of a report: rows of text, the same for HTML and Markdown."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from duquant.reporting.run_contents import RunContents


class Linked(str):
    """A text that leads to another place of the page.

    Args:
        text: what is shown.
        target: the identifier of that place.
    """

    __slots__ = ("target",)
    target: str

    def __new__(cls, text: object, target: str) -> "Linked":
        """The text, with its target beside it."""
        self = super().__new__(cls, text)
        self.target = target
        return self


class Table(NamedTuple):
    """Rows of text.

    Attributes:
        columns: a heading per column; the first column names the row.
        rows: cells; a :class:`Linked` one is a link where there can be any.
        title: what it is about; tables of one title stand together.
        notes: lines above it.
        folded: what stands in its place until it is opened.
        descends_by: the column by which the rows descend, where a reader may choose another.
    """

    columns: list[str]
    rows: list[list[str]]
    title: str = ""
    notes: tuple[str, ...] = ()
    folded: str = ""
    descends_by: str = ""


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
        rows.append([f"{kind}, MB", *(number(s and s / 1e6, ".2f") for s in sizes)])
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


def number(value: float | None, form: str) -> str:
    """A number as text; a dash where there is none."""
    return "–" if value is None else format(value, form)


def _plain(value: object) -> str:
    return "–" if value is None else str(value)
