"""A report with everything that a page can show: two runs, massive tokens, a block that fails."""

import shutil
from pathlib import Path
from typing import Any

from duquant.atomic_files import write_json
from duquant.json_files import read_json
from duquant.reporting.report import report
from tests.in_process import FinishedRun
from tests.reporting.test_block_tables import massive
from tests.reporting.test_report import evaluate

ERRORS = {"one": (0.11, 0.24), "two": (0.35, None)}
"""Of the two blocks of two runs."""


def write_page(finished: FinishedRun, directory: Path) -> Path:
    """Write the report of two copies of a run; returns the page."""
    for name, errors in ERRORS.items():
        copy = Path(shutil.copytree(finished.output, directory / name))
        summary: dict[str, Any] = read_json(copy / "summary.json")
        for block, error in zip(summary["blocks"], errors, strict=True):
            block["relative_error"] = error
            block["complaint"] = "" if error else "its output is not finite"
            block["massive_tokens"] = [massive(40.0 + block["index"])]
        write_json(copy / "summary.json", summary)
        evaluate(copy)
        evaluate(copy, None)
    report([str(directory / name) for name in ERRORS], str(directory))
    return directory / "report.html"
