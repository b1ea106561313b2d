"""Tables of blocks: what hurts most comes first, old runs have less to say."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from duquant.json_files import read_json
from duquant.model.massive_tokens import MassiveSite
from duquant.reporting.block_tables import block_tables, compared_errors
from duquant.reporting.report import write_report
from duquant.reporting.run_contents import RunContents, read_run
from duquant.reporting.run_files import Summary
from duquant.reporting.tables import Linked
from tests.in_process import LIGHTNING_WARNINGS, FinishedRun

pytestmark = LIGHTNING_WARNINGS


def massive(magnitude: float, text: str = "\n") -> MassiveSite:
    return {
        "site": "mlp_output",
        "magnitude": magnitude,
        "typical": 2.0,
        "channel": 29,
        "count": 5,
        "at_start": 4,
        "tokens": [
            {"token_id": 199, "text": text, "magnitude": magnitude, "position": 0},
            {"token_id": 14, "text": ".", "magnitude": 30.0, "position": 7},
        ],
    }


def planted(run: RunContents, *blocks: dict[str, Any]) -> RunContents:
    """The run with as many blocks, each with other values; ``None`` takes a value away."""
    first, made = run.summary["blocks"][0], []
    for index, values in enumerate(blocks):
        block = {**first, "index": index, **values}
        made.append({key: value for key, value in block.items() if value is not None})
    summary: Summary = {**run.summary, "blocks": made}  # type: ignore[typeddict-item]
    return replace(run, summary=summary)


@pytest.fixture
def run(finished_run: FinishedRun) -> RunContents:
    return read_run(finished_run.output)


ERRORS = (
    {"relative_error": 0.1, "site_errors": {"mlp_input": 0.05, "attention_operands": 0.02}},
    {"relative_error": 0.9, "site_errors": {"mlp_input": 0.1, "attention_operands": 0.8}},
    {"relative_error": None, "site_errors": {}},
    {"relative_error": 0.3, "site_errors": {"mlp_input": 0.2}},
)


def test_the_largest_error_comes_first_and_its_largest_part_is_named(run: RunContents) -> None:
    table, *_ = block_tables(planted(run, *ERRORS), "run-1")
    assert table.columns == ["block", "error", "largest part", "mlp input", "attention operands"]
    assert table.rows == [
        ["1", "90.0%", "attention operands", "10.0%", "80.0%"],
        ["3", "30.0%", "mlp input", "20.0%", "–"],
        ["0", "10.0%", "mlp input", "5.0%", "2.0%"],
        ["2", "–", "–", "–", "–"],
    ]
    assert table.descends_by == "error"


def test_an_output_that_is_not_finite_is_worse_than_any_other(run: RunContents) -> None:
    broken = planted(run, ERRORS[1], {"complaint": "its output is not finite"})
    broken.summary["blocks"][1]["relative_error"] = None
    table, *_ = block_tables(broken, "run-1")
    assert [row[:2] for row in table.rows] == [["1", "not finite"], ["0", "90.0%"]]
    assert "Block 1: its output is not finite" in table.notes


def test_a_run_of_an_earlier_release_says_what_it_knows(run: RunContents) -> None:
    unknown = {"relative_error": None, "site_errors": None, "massive_tokens": None}
    tables = block_tables(planted(run, unknown), "run-1")
    assert [table.title for table in tables] == ["Blocks of run", "Training of run"]
    assert tables[0].columns == ["block", "error"]
    assert tables[0].rows == [["0", "–"]]


def test_complaints_stand_above_the_table(run: RunContents) -> None:
    words = {"complaint": "K is to blame", "damping": "damping raised to 0.1 for q"}
    table, *_ = block_tables(planted(run, *ERRORS[:1], {**ERRORS[1], **words}), "run-1")
    assert table.notes[:2] == ("Block 1: K is to blame", "Block 1: damping raised to 0.1 for q")


def test_massive_tokens_are_named_the_most_massive_first(run: RunContents) -> None:
    blocks = [{"massive_tokens": [massive(40.0)]}, {"massive_tokens": [massive(90.0, " it")]}]
    _, table, _ = block_tables(planted(run, *blocks), "run-1")
    assert [dict(zip(table.columns, row, strict=True)) for row in table.rows] == [
        {
            "block": block,
            "site": "mlp output",
            "largest": largest,
            "× typical": times,
            "channel": "29",
            "largest tokens": f'{text} (199), "." (14)',
            "massive tokens": "5",
            "at a start": "4",
        }
        for block, largest, times, text in (("1", "90", "45", '" it"'), ("0", "40", "20", '"\\n"'))
    ]


def test_a_run_without_massive_tokens_says_so(run: RunContents, tmp_path: Path) -> None:
    lean = planted(run, {"massive_tokens": []})
    _, table, _ = block_tables(lean, "run-1")
    assert table.rows == []
    for file in write_report(tmp_path, [lean]):
        assert "No token is 10 times as large as" in file.read_text(encoding="utf-8")


def test_blocks_lead_to_their_pictures(run: RunContents) -> None:
    other = planted(run, *ERRORS)
    cells = {row[0]: row[0] for table in block_tables(other, "run-7") for row in table.rows}
    assert {str(c): c.target for c in cells.values() if isinstance(c, Linked)} == {
        "0": "run-7-block-0",
        "1": "run-7-block-1",
    }


def test_errors_of_runs_stand_side_by_side(run: RunContents) -> None:
    one, two = planted(run, *ERRORS[:2]), planted(replace(run, name="two"), *ERRORS)
    two.summary["blocks"][0]["relative_error"] = 2.0
    table = compared_errors([one, two])
    assert table.columns == ["block", "run", "two"]
    assert table.rows == [
        ["0", "10.0%", "200.0%"],
        ["1", "90.0%", "90.0%"],
        ["3", "–", "30.0%"],
        ["2", "–", "–"],
    ]


def test_a_finished_run_has_all_of_it(finished_run: FinishedRun, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(finished_run.output, tmp_path / "copy"))
    blocks = read_json(copy / "summary.json", Summary)["blocks"]
    table, _, training = block_tables(read_run(copy), "run-1")
    errors = sorted((block["relative_error"] for block in blocks), reverse=True)  # type: ignore[typeddict-item]
    assert [row[1] for row in table.rows] == [f"{error:.1%}" for error in errors]  # type: ignore[str-format]
    assert len(table.columns) == 3 + 5
    assert [row[0] for row in training.rows] == ["0", "1"]
