"""What others chose as a name is printed as it is, and nothing in the project prints otherwise."""

import ast
import io
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from callbacks.endings import fail
from callbacks.run_summary import print_summary
from duquant.evaluation.mt_bench.progress import StepProgress
from duquant.evaluation.mt_bench.tables import pair_table, score_table
from duquant.evaluation.progress import EvaluationProgress
from duquant.evaluation.results_table import print_results
from duquant.plain_text import plain
from duquant.scores.mt_bench import ModelScore, PairScore, Tally
from duquant.scores.statistics import Measurement, Metric
from duquant.terminal import complain, say
from duquant.terminal_table import show_table
from tests.assets import REPOSITORY
from tests.foreign_names import NAMES
from tests.test_architecture import project_sources

OURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
"""What rich itself sends to a terminal: styles, and the cursor of a bar."""
TRAINS = "duquant.quickstart.train"
"""A program of its own, which names nothing that others chose."""
IMPORTS_NOTHING = "callbacks.early_interrupt"
"""It speaks while the others are still being imported, and quotes nobody."""


def summary(name: str) -> dict[str, Any]:
    return {
        "dtype": name,
        "recipe_in_words": f"W4A4 {name}",
        "perplexity": {name: {"full_precision": 2.0, "quantized": 3.0}},
        "pretrained": name,
        "protocols": {name: name},
        "protocol": name,
        "artifact": name,
        "blocks": [],
        "seconds": {"total": 1.0},
        "peak_memory_bytes": 10,
    }


def results(name: str, console: Console) -> None:
    metrics = {f"m{name}": Metric(0.5, 0.1)}
    measured = Measurement(name, name, 0, 20, 20, metrics, backend=name, kv_cache=name)
    print_results(name, [name], [{name: measured}], {name: (name,)}, None, console)


def scores(name: str, console: Console) -> None:
    tally = Tally(1, 1, 1)
    scored = ModelScore(name, {name: 7.0}, 7.0, 7.0, 7.0, 1, 2, 0)
    show_table(score_table([scored], name), console)
    show_table(pair_table([PairScore(name, tally, {name: tally})], name), console)


def steps(name: str, console: Console) -> None:
    with StepProgress(name, 2, 1, console) as progress:
        progress.step(name)


def evaluation(name: str, console: Console) -> None:
    progress = EvaluationProgress(console, 2)
    progress.begin(name, 2)
    progress.say(name)
    progress.finish(name, SimpleNamespace(num_items=2, seconds=1.0))
    progress.close()


PRINTERS: dict[str, Callable[[str, Console], None]] = {
    "line": lambda name, console: say(name, console, "italic"),
    "summary": lambda name, console: print_summary(summary(name), console),
    "results": results,
    "scores": scores,
    "steps": steps,
    "evaluation": evaluation,
}


@pytest.mark.parametrize("is_terminal", [False, True])
@pytest.mark.parametrize("printer", PRINTERS)
@pytest.mark.parametrize("name", NAMES)
def test_names_are_shown_as_they_are(name: str, printer: str, is_terminal: bool) -> None:
    file = io.StringIO()
    console = Console(
        file=file, width=1000, force_terminal=is_terminal, color_system=None, legacy_windows=False
    )
    PRINTERS[printer](NAMES[name], console)
    shown = OURS.sub("", file.getvalue()) if is_terminal else file.getvalue()
    foreign = {sign for sign in shown if not sign.isprintable()}
    assert foreign <= ({"\n", "\r"} if is_terminal else {"\n"})
    words = plain(NAMES[name]).split()
    assert all(word in shown for word in words)
    shown.encode("utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_lines_without_a_console(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    say(NAMES[name])
    complain(NAMES[name])
    with pytest.raises(SystemExit):
        fail(NAMES[name])
    printed = capsys.readouterr()
    assert printed.out == plain(NAMES[name]) + "\n"
    first, second = printed.err.splitlines()
    assert first == f"error: {plain(NAMES[name])}"
    assert second == f"error: {plain(' '.join(NAMES[name].split()))}"


@given(text=st.text(st.characters(exclude_categories=())))
def test_plain_texts_are_printable_and_stay_plain(text: str) -> None:
    assert plain(text).isprintable()
    assert plain(plain(text)) == plain(text)
    assert plain(text) == text or not text.isprintable()


def printing(source: str) -> list[str]:
    """Calls of a module that print, and its imports of what prints."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else ""
            method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            call = ast.unparse(node)
            if "print" in (name, method) or call.startswith("sys.std") or "{task.desc" in call:
                found.append(call)
        elif isinstance(node, ast.ImportFrom) and node.module in ("rich.table", "rich"):
            found.append(ast.unparse(node))
    return found


def test_nothing_else_prints() -> None:
    sources = project_sources()
    printers = {module for module, source in sources.items() if printing(source)}
    assert printers <= {"duquant.terminal", "duquant.terminal_table", TRAINS, IMPORTS_NOTHING}
    assert "duquant.terminal" in printers


@pytest.mark.parametrize(
    "source",
    [
        "print(name)",
        "console.print(name, markup=False)",
        "sys.stderr.write(name)",
        "from rich.table import Table",
        "from rich import print",
        "TextColumn('{task.description}')",
    ],
)
def test_the_search_finds_what_prints(source: str) -> None:
    assert printing(source)


def test_the_project_is_read() -> None:
    assert Path(REPOSITORY, "duquant", "terminal.py").is_file()
