"""``report.html`` and ``report.md``: one run on a page, or several side by side.

The page is one file that needs nothing else: charts are SVG in the text, pictures PNG in base64,
and there is no script. Markdown has the same tables, for a pull request or an issue.
"""

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from duquant.atomic_files import write_text
from duquant.json_output import one_document
from duquant.plain_text import plain
from duquant.reporting.charts import draw_bars, draw_losses
from duquant.reporting.markdown import as_markdown
from duquant.reporting.measurements import perplexity_tables, task_tables
from duquant.reporting.mt_bench import mt_bench_tables
from duquant.reporting.run_contents import RunContents, read_run
from duquant.reporting.tables import (
    block_table,
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
    results = [*perplexity_tables(runs), *task_tables(runs), *mt_bench_tables(runs)]
    results.append(cost_table(runs))
    settings = [make(runs) for make in SETTINGS]
    page = environment.get_template("report.html.jinja").render(
        title=title,
        headline=[(run.name, _in_words(run)) for run in runs],
        results=results,
        settings=settings,
        runs=[(run, block_table(run), _charts(run)) for run in runs],
    )
    files = [directory / HTML, directory / MARKDOWN]
    write_text(files[0], page)
    write_text(
        files[1], as_markdown(title, [*results, *(block_table(run) for run in runs), *settings])
    )
    return files


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


def _charts(run: RunContents) -> list[tuple[str, str]]:
    blocks = run.summary["blocks"]
    curves = {f"block {b['index']}": b["lwc_losses"] for b in blocks if len(b["lwc_losses"]) > 1}
    charts = [("Learnable weight clipping", draw_losses(curves))] if curves else []
    if blocks:
        charts.append(("Time", draw_bars([block["seconds"] for block in blocks], "seconds")))
        memory = [block["peak_memory_bytes"] / 1e9 for block in blocks]
        charts.append(("Memory", draw_bars(memory, "peak so far, GB")))
    return charts
