"""``report.html`` and ``report.md``: one run on a page, or several side by side.

The page is one file that needs nothing else: charts are SVG in the text, pictures PNG in base64.
Its only script sorts tables; without it they are sorted by what hurts most. The page forbids the
browser to load anything or to run any other script. Markdown has the same tables, for a pull
request or an issue.
"""

import base64
import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from duquant.atomic_files import write_text
from duquant.json_output import one_document
from duquant.plain_text import plain
from duquant.reporting.block_tables import (
    block_tables,
    compared_errors,
    error_of,
    picture_anchor,
)
from duquant.reporting.charts import draw_bars, draw_losses, with_own_names
from duquant.reporting.markdown import as_markdown
from duquant.reporting.measurements import perplexity_tables, task_tables
from duquant.reporting.mt_bench import mt_bench_tables
from duquant.reporting.run_contents import RunContents, read_run
from duquant.reporting.tables import (
    Linked,
    Table,
    cost_table,
    environment_table,
    recipe_table,
)
from duquant.terminal import say
from duquant.user_paths import user_path

SETTINGS = (recipe_table, environment_table)
HTML, MARKDOWN = "report.html", "report.md"


def write_report(directory: Path, runs: Sequence[RunContents]) -> list[Path]:
    """Write the report of one or several runs.

    Args:
        directory: where ``report.html`` and ``report.md`` go.
        runs: what they are about.

    Returns:
        The two files.
    """
    environment = Environment(
        loader=PackageLoader("duquant.reporting", "templates"),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    title = ", ".join(run.name for run in runs)
    anchors = [f"run-{number}" for number in range(1, len(runs) + 1)]
    linked = [replace(r, name=Linked(r.name, a)) for r, a in zip(runs, anchors, strict=True)]
    results = [*perplexity_tables(linked), *task_tables(linked), *mt_bench_tables(linked)]
    results.append(cost_table(linked))
    if len(runs) > 1:
        results.append(compared_errors(runs))
    settings = [make(linked) for make in SETTINGS]
    of_runs = [block_tables(run, anchor) for run, anchor in zip(runs, anchors, strict=True)]
    parts = zip(runs, anchors, of_runs, strict=True)
    script = _template("report.js")
    page = environment.get_template("report.html.jinja").render(
        title=title,
        policy=_policy(script),
        style=Markup(_template("report.css")),
        script=Markup(script),
        results=_groups(results),
        settings=_groups(settings),
        runs=[_shown_run(run, anchor, tables) for run, anchor, tables in parts],
    )
    written = [directory / HTML, directory / MARKDOWN]
    write_text(written[0], page)
    tables = [*results, *(table for tables in of_runs for table in tables), *settings]
    write_text(written[1], as_markdown(title, tables))
    return written


def report(runs: list[str], output_dir: str | None = None, json: bool = False) -> None:
    """Put what runs did and measured on one page, side by side.

    Args:
        runs: run directories, as fit's --output_dir.
        output_dir: where report.html and report.md go (default: the run's directory; of several
            runs, the current one).
        json: print what the page is made from as one JSON document, and all else on standard error.
    """
    if not runs:
        raise ValueError("no run was given: name at least one run directory")
    paths = [user_path(run) for run in runs]
    contents = [read_run(path, name) for path, name in zip(paths, _names(runs), strict=True)]
    if output_dir is None:
        output_dir = runs[0] if len(runs) == 1 else "."
    with one_document(json) as document:
        files = write_report(user_path(output_dir), contents)
        for file in files:
            say(file)
        document["files"] = list(map(str, files))
        document["runs"] = [run.measured() for run in contents]


def _shown(value: object) -> object:
    """A text without signs that a page cannot hold; what is escaped already stays as it is."""
    return value if isinstance(value, Markup) else plain(value)


def _names(runs: Sequence[str]) -> list[str]:
    """The folder's name of each run; what was given where two have the same."""
    names = [user_path(run).resolve().name for run in runs]
    return names if len(set(names)) == len(names) else list(runs)


def _in_words(run: RunContents) -> str:
    model = Path(run.summary["pretrained"]).name
    return f"{model}, {run.summary['recipe_in_words']}"


def _template(name: str) -> str:
    return (files("duquant.reporting") / "templates" / name).read_text(encoding="utf-8")


def _policy(script: str) -> str:
    """What a browser may load: nothing but pictures in the text; of scripts only ours may run."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; "
        f"style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    )


def _groups(tables: Sequence[Table]) -> list[dict[str, Any]]:
    """Sections of a page: tables of one title stand together."""
    groups = [(title, list(alike)) for title, alike in groupby(tables, lambda table: table.title)]
    return [
        {
            "anchor": "-".join("".join(c if c.isalnum() else " " for c in title.lower()).split()),
            "title": title,
            "tables": alike,
        }
        for title, alike in groups
    ]


def _shown_run(run: RunContents, anchor: str, tables: Sequence[Table]) -> dict[str, Any]:
    """What the page says of one run."""
    charts = enumerate(_charts(run), 1)
    return {
        "anchor": anchor,
        "name": run.name,
        "words": _in_words(run),
        "tables": tables,
        "charts": [(head, with_own_names(svg, f"{anchor}-{n}")) for n, (head, svg) in charts],
        "pictures": _pictures(run, anchor),
    }


def _pictures(run: RunContents, anchor: str) -> list[dict[str, Any]]:
    """The outlier pictures; that of the worst block is open."""
    blocks = {block["index"]: block for block in run.summary["blocks"]}
    shown = [blocks[index] for index in run.pictures if index in blocks]
    worst = max(shown, key=error_of)["index"] if shown else None
    pictures = []
    for index, png in run.pictures.items():
        peaks = [
            f"{site.replace('_', ' ')} {peak['peak_before']:.3g} before and "
            f"{peak['peak_after']:.3g} after the transform"
            for site, peak in (blocks[index]["sites"].items() if index in blocks else ())
        ]
        words = f"Largest activation per channel of every site of block {index}"
        pictures.append(
            {
                "block": index,
                "anchor": picture_anchor(anchor, index),
                "is_open": index == worst,
                "words": ": ".join([words, "; ".join(peaks)] if peaks else [words]),
                "png": png,
            }
        )
    return pictures


def _charts(run: RunContents) -> list[tuple[str, str]]:
    blocks, charts = run.summary["blocks"], []
    errors = [error_of(block) for block in blocks]
    if any(error >= 0 for error in errors):
        shares = [100 * error if 0 <= error < math.inf else 0.0 for error in errors]
        words = f"Error of every block in percent, from {min(shares):.3g} to {max(shares):.3g}"
        charts.append(("Error", draw_bars(shares, "error, %", words)))
    curves = {f"block {b['index']}": b["lwc_losses"] for b in blocks if len(b["lwc_losses"]) > 1}
    if curves:
        words = "Loss of learnable weight clipping over the epochs, a curve per block"
        charts.append(("Learnable weight clipping", draw_losses(curves, words)))
    if blocks:
        seconds = [block["seconds"] for block in blocks]
        words = f"Seconds that every block took, {sum(seconds):.3g} in all"
        charts.append(("Time", draw_bars(seconds, "seconds", words)))
        memory = [block["peak_memory_bytes"] / 1e9 for block in blocks]
        words = f"Peak memory up to every block, {max(memory):.3g} GB at most"
        charts.append(("Memory", draw_bars(memory, "peak so far, GB", words)))
    return charts
