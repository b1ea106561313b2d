"""One row: its commands run one after the other, and what they print becomes plain values."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from duquant.scores.statistics import PERPLEXITY
from tests.assets import REPOSITORY
from tests.benchmarks.real_models.rows import FULL_PRECISION, Job

Row = dict[str, Any]


class RowFailedError(Exception):
    """A command of a row ended with another status than 0, after saying why."""


def measure(job: Job, recipe: str, setting: str) -> Row:
    """Run a row's commands.

    Raises:
        RowFailedError: if one of them fails.
    """
    commands, ended = job.commands(recipe, setting), []
    for command in commands:
        print(f"$ {printable(command)}", file=sys.stderr, flush=True)
        ended.append(_run(command))
    first, last = ended[0][0], ended[-1][0]
    is_fitted = recipe != FULL_PRECISION
    directory = job.run(recipe, setting) / "model" if is_fitted else job.model
    tasks = last.get("results", {})
    return {
        "recipe": recipe,
        "setting": setting,
        "commands": [printable(command) for command in commands],
        "perplexity": _perplexities(first, is_fitted),
        "tasks": {n: r["metrics"] for n, r in tasks.items() if not n.startswith(PERPLEXITY)},
        "calibration_seconds": first["seconds"]["total"] if is_fitted else 0.0,
        "cpu_seconds": sum(seconds for _, seconds, _ in ended),
        "peak_memory_bytes": max(peak for _, _, peak in ended),
        "model_bytes": sum(file.stat().st_size for file in directory.glob("*.safetensors")),
        "versions": first["versions"],
    }


def printable(command: Sequence[str]) -> str:
    """A command as it is typed."""
    return shlex.join(["python", "cli.py", *command])


def _perplexities(document: dict[str, Any], is_fitted: bool) -> dict[str, float]:
    if is_fitted:
        return {name: values["quantized"] for name, values in document["perplexity"].items()}
    return {
        name.removeprefix(PERPLEXITY): result["metrics"]["perplexity"]["value"]
        for name, result in document["results"].items()
        if name.startswith(PERPLEXITY)
    }


def _run(command: Sequence[str]) -> tuple[dict[str, Any], float, int]:
    """The document that a command prints, its CPU seconds and its largest resident memory."""
    process = subprocess.Popen(
        [sys.executable, str(REPOSITORY / "cli.py"), *command, "--json"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process.stdout as opened:
        printed = opened.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RowFailedError(f"status {process.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024
    return json.loads(printed), usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit


def is_measured(row: Row, job: Job, recipe: str, setting: str) -> bool:
    """Whether a stored row is of these very commands."""
    return bool(row["commands"] == [printable(c) for c in job.commands(recipe, setting)])


def stored_rows(file: Path) -> list[Row]:
    """Rows of a results file; none if there is no file yet."""
    if not file.is_file():
        return []
    rows: list[Row] = json.loads(file.read_text(encoding="utf-8"))["rows"]
    return rows
