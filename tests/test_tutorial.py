"""The tutorial: every cell runs, in order, and shows what its words say."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import duquant
from duquant.json_files import read_json
from tests.assets import REPOSITORY

NOTEBOOK = Path(duquant.__file__).parent / "quickstart" / "tutorial.ipynb"
SHOWN = """
import json as _json
def _show(value):
    if value is not None:
        print(repr(value))
"""
"""What a notebook does with the last expression of a cell."""


@pytest.fixture(scope="module")
def cells() -> list[dict[str, Any]]:
    notebook = read_json(NOTEBOOK)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    return list(notebook["cells"])


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def as_script(cells: list[dict[str, Any]]) -> str:
    """The code of all cells, the value of each cell's last expression printed."""
    parts = [SHOWN]
    for cell in cells:
        if cell["cell_type"] != "code":
            continue
        tree = ast.parse(source(cell))
        if isinstance(tree.body[-1], ast.Expr):
            last = tree.body[-1]
            shown = ast.Call(ast.Name("_show", ast.Load()), [last.value], [])
            tree.body[-1] = ast.copy_location(ast.Expr(shown), last)
        parts.append(ast.unparse(ast.fix_missing_locations(tree)))
    return "\n".join(parts)


def test_it_is_a_notebook_without_outputs(cells: list[dict[str, Any]]) -> None:
    identifiers = [cell["id"] for cell in cells]
    assert len(set(identifiers)) == len(identifiers)
    for cell in cells:
        assert cell["cell_type"] in ("code", "markdown")
        assert cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


def test_its_links_lead_somewhere(cells: list[dict[str, Any]]) -> None:
    text = "\n".join(source(cell) for cell in cells if cell["cell_type"] == "markdown")
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert links
    assert [link for link in links if not (NOTEBOOK.parent / link).is_file()] == []


def test_every_cell_runs_and_shows_what_it_says(
    cells: list[dict[str, Any]], tmp_path: Path
) -> None:
    script = tmp_path / "tutorial.py"
    script.write_text(as_script(cells), encoding="utf-8")
    environment = {"MPLBACKEND": "Agg", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(REPOSITORY)}
    ran = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", str(script)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, **environment},
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    runs = tmp_path / "runs" / "tutorial"
    found = {name: read_json(runs / name / "summary.json") for name in ("integers", "nvfp4")}
    for summary in found.values():
        measured = summary["perplexity"]["python_topics"]
        assert measured["full_precision"] < measured["quantized"] < measured["round_to_nearest"]
        assert summary["blocks"][0]["massive_tokens"]
    assert found["nvfp4"]["recipe"]["weights"]["format"] == "nvfp4"
    assert (runs / "report.html").is_file()
    steps = [float(share) for share in re.findall(r"^[a-z ]+ {2,}([\d.]+)%$", ran.stdout, re.M)]
    assert len(steps) == 4
    assert steps == sorted(steps, reverse=True), "every step of the method helps"
    assert steps[-1] < steps[0] / 2
    assert "massive tokens at mlp_output" in ran.stdout
    assert "The with statement is used to" in ran.stdout
    assert json.dumps(str((runs / "integers" / "report.html").resolve()))[1:-1] in ran.stdout
