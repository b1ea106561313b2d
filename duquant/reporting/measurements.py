"""Tables of what was measured: perplexities by protocol, tasks by how they were asked.

Numbers stand in one table only if they were measured alike: the same windows of the same text, or
the same tasks with the same examples and ``--limit``. Everything that a reader must know before
quoting them (protocol, limit, examples, backend, KV cache) is said above the table.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from duquant.reporting.run_contents import VARIANTS, RunContents
from duquant.reporting.run_files import Apart, Evaluation, TaskResult
from duquant.reporting.tables import Cells, Column, Table, join
from duquant.scores.formatting import format_value
from duquant.scores.statistics import PERPLEXITY

DIFFERENCE = "difference"
UNMEASURED = "perplexity was not measured"


def perplexity_tables(runs: Sequence[RunContents]) -> list[Table]:
    """Perplexity by corpus and model, a table per protocol, a column per run."""
    columns = [column for run in runs for column in _perplexities(run)]
    columns = [c for c in columns if c.cells] or [c._replace(key=(UNMEASURED,)) for c in columns]
    summaries = [summary for run in runs for summary in (run.summary, run.validation) if summary]
    baselines = dict.fromkeys(filter(None, (s.get("baseline") for s in summaries)))
    return [
        join("Perplexity", [c for c in columns if c.key == notes], (*notes, *baselines))
        for notes in dict.fromkeys(column.key for column in columns)
    ]


def task_tables(runs: Sequence[RunContents]) -> list[Table]:
    """Tasks with standard errors, a table per way of asking; single subjects of MMLU folded."""
    tables = []
    found = [(run, evaluation) for run in runs for evaluation in run.evaluations]
    keys = {id(e): (*_notes_of_tasks(e), *_tasks(e)) for _, e in found if any(_tasks(e))}
    for key in dict.fromkeys(keys.values()):
        alike = [(run, e) for run, e in found if keys.get(id(e)) == key]
        columns = [c for run, e in alike for c in _task_columns(run, e, len(runs) > 1)]
        ways = tuple(dict.fromkeys(way for run, e in alike for way in _backends(e)))
        members = {name for group in alike[0][1]["groups"].values() for name in group}
        whole, parts = _split(columns, members)
        notes = (*_notes_of_tasks(alike[0][1]), *ways)
        tables.append(join("Tasks", whole, notes))
        if parts[0].cells:
            tables.append(join("Tasks", parts, folded="Single tasks of the groups above"))
    return tables


def _perplexities(run: RunContents) -> Iterator[Column]:
    """Those of fit, those of validate, and those of every evaluation."""
    for summary in filter(None, (run.summary, run.validation)):
        cells = {
            f"{corpus}, {label}": f"{values[variant]:.3f}"
            for corpus, values in summary["perplexity"].items()
            for variant, label in VARIANTS.items()
            if variant in values
        }
        protocols = summary.get("protocols", {})
        titles = [_title(name, text, summary["corpora"]) for name, text in protocols.items()]
        key = (*titles, summary["protocol"], "backend reference, KV cache none")
        yield Column(key, run.name, cells)
    for evaluation in run.evaluations:
        protocols = evaluation["protocols"]
        if protocols:
            sources = evaluation["request"]["perplexity"]
            titles = [_title(name, text, sources) for name, text in protocols.items()]
            yield Column((*titles, *_backends(evaluation)), run.name, _evaluated_cells(evaluation))


def _title(name: str, protocol: str, sources: dict[str, str]) -> str:
    return f"{name} ({Path(sources.get(name, name)).name}): {protocol}"


def _evaluated_cells(evaluation: Evaluation) -> Cells:
    """Perplexities of one evaluation, and the differences below."""
    cells = {}
    for corpus in evaluation["protocols"]:
        for label, results in _models(evaluation):
            metric = results[PERPLEXITY + corpus]["metrics"]["perplexity"]
            value = format_value(metric["value"], metric["stderr"], is_share=False)
            cells[f"{corpus}, {label}"] = value
        if "differences" in evaluation:
            apart = evaluation["differences"][PERPLEXITY + corpus]["perplexity"]
            cells[f"{corpus}, {DIFFERENCE}"] = _difference(apart, is_share=False)
    return cells


def _task_columns(run: RunContents, evaluation: Evaluation, has_others: bool) -> Iterator[Column]:
    """Items, every model, and their difference."""
    own = evaluation["results"]
    rows = {f"{task}, {m}": (task, m) for task in _tasks(evaluation) for m in own[task]["metrics"]}
    counts = {row: (own[t]["num_items"], own[t]["available_items"]) for row, (t, _) in rows.items()}
    start = f"{run.name}: " if has_others else ""
    whole = {row: str(n) if n == of else f"{n} of {of}" for row, (n, of) in counts.items()}
    yield Column((), "items", whole)
    for label, results in _models(evaluation):
        metrics = {row: results[task]["metrics"][m] for row, (task, m) in rows.items()}
        cells = {
            row: format_value(m["value"], m["stderr"], is_share=m["is_share"])
            for row, m in metrics.items()
        }
        yield Column((), start + label, cells)
    if "differences" in evaluation:
        apart = {
            row: _difference(
                evaluation["differences"][task][m], is_share=own[task]["metrics"][m]["is_share"]
            )
            for row, (task, m) in rows.items()
        }
        yield Column((), start + DIFFERENCE, apart)


def _difference(apart: Apart, *, is_share: bool) -> str:
    sign = "+" if apart["value"] >= 0 else ""
    mark = " *" if apart["exceeds_stderr"] else ""
    return f"{sign}{format_value(apart['value'], apart['stderr'], is_share=is_share)}{mark}"


def _notes_of_tasks(evaluation: Evaluation) -> tuple[str, ...]:
    """What the command said of its tasks, and seed and version."""
    asked = [part for part in evaluation["evaluated"]["parts"].values() if "lm_eval" in part]
    versions = {f"seed {part.get('seed')}, lm-eval {part['lm_eval']}" for part in asked}
    exceeds = "differences marked * are larger than their standard error"
    return (
        *evaluation["notes"],
        *sorted(versions),
        *([exceeds] if "differences" in evaluation else []),
    )


def _backends(evaluation: Evaluation) -> list[str]:
    """How every model computed."""
    return [
        f"{label}: backend {backend}, KV cache {cache}"
        for label, results in _models(evaluation)
        for backend, cache in dict.fromkeys((r["backend"], r["kv_cache"]) for r in results.values())
    ]


def _models(evaluation: Evaluation) -> list[tuple[str, dict[str, TaskResult]]]:
    """Results by what a model is called."""
    compared = [evaluation["compared_results"]] if "compared_results" in evaluation else []
    return list(zip(evaluation["labels"], [evaluation["results"], *compared], strict=True))


def _tasks(evaluation: Evaluation) -> tuple[str, ...]:
    return tuple(name for name in evaluation["results"] if not name.startswith(PERPLEXITY))


def _split(columns: list[Column], members: set[str]) -> tuple[list[Column], list[Column]]:
    """Rows that no group has, and those of groups' members."""

    def rows(column: Column, inside: bool) -> Column:
        cells = {r: c for r, c in column.cells.items() if (r.split(", ")[0] in members) is inside}
        return column._replace(cells=cells)

    return [rows(c, False) for c in columns], [rows(c, True) for c in columns]
