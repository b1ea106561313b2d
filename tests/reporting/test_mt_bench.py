"""MT-Bench in reports: the runs' columns first, every comparison once."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from duquant.atomic_files import write_json
from duquant.json_shapes import shaped
from duquant.reporting.mt_bench import mt_bench_tables
from duquant.reporting.report import report
from duquant.reporting.run_contents import RunContents, read_run
from duquant.reporting.run_files import Judged
from duquant.scores.mt_bench import SCORES_FOLDER, ModelScore, PairScore, Tally
from tests.in_process import LIGHTNING_WARNINGS, FinishedRun

pytestmark = LIGHTNING_WARNINGS


def score(model: str, average: float) -> dict[str, Any]:
    categories = {"math": average, "writing": average}
    return asdict(ModelScore(model, categories, average, average, average, 2, 4, 0))


def judged(model: str, *opponents: str, judge: str = "gpt-4") -> dict[str, Any]:
    """What a judge found of three models: ``a``, ``b``, and ``full`` precision."""
    tally = Tally(win=1, tie=2, loss=1)
    pair = asdict(PairScore(model, tally, {"math": tally}))
    return {
        "judge": judge,
        "prompts": "given judge prompts",
        "questions": 80,
        "model": model,
        "asked": dict.fromkeys(("a", "b", "full"), "chat template mistral"),
        "single": [score("full", 7.0), score("a", 6.5), score("b", 6.0)],
        "pairwise": dict.fromkeys(opponents, pair),
    }


def run(name: str, *found: dict[str, Any]) -> RunContents:
    return RunContents(name, {}, None, [], shaped(list(found), list[Judged]), [], {})


def test_the_run_stands_first_and_categories_in_their_order() -> None:
    scores, pairs = mt_bench_tables([run("a", judged("a", "full"))])
    assert scores.columns == ["category", "a", "full", "b"]
    assert [row[:3] for row in scores.rows] == [
        ["writing", "6.50", "7.00"],
        ["math", "6.50", "7.00"],
        ["turn 1", "6.50", "7.00"],
        ["turn 2", "6.50", "7.00"],
        ["average", "6.50", "7.00"],
        ["questions", "2", "2"],
        ["turns judged", "4", "4"],
        ["malformed", "0", "0"],
    ]
    assert scores.notes == (
        "judge gpt-4; given judge prompts; a bench of 80 questions",
        *(f"{name}: chat template mistral" for name in ("a", "b", "full")),
    )
    assert pairs.columns == ["category", "a against full"]
    assert pairs.rows == [
        ["math", "1/2/1"],
        ["all", "1/2/1"],
        ["win rate", "50.0 %"],
        ["malformed", "0"],
    ]


def test_two_runs_share_a_table_and_meet_once() -> None:
    scores, pairs = mt_bench_tables(
        [run("a", judged("a", "b", "full")), run("tuned", judged("b", "a", "full"))]
    )
    assert scores.columns == ["category", "a", "tuned (b)", "full"]
    assert pairs.columns == ["category", "a against b", "a against full", "tuned (b) against full"]


def test_judges_are_not_mixed() -> None:
    tables = mt_bench_tables([run("a", judged("a"), judged("a", judge="claude"))])
    assert [table.notes[0].partition(";")[0] for table in tables] == ["judge gpt-4", "judge claude"]


def test_no_scores_no_tables() -> None:
    assert mt_bench_tables([run("a")]) == []


def test_both_files_show_them(finished_run: FinishedRun, tmp_path: Path) -> None:
    file = finished_run.output / SCORES_FOLDER / "gpt-4-0.json"
    try:
        write_json(file, judged("a", "full"))
        report([str(finished_run.output)], str(tmp_path))
        for name in ("report.html", "report.md"):
            text = (tmp_path / name).read_text(encoding="utf-8")
            assert "MT-Bench scores, 1 to 10" in text
            assert "(a) against full" in text
        write_json(file, {})
        with pytest.raises(ValueError, match=r"gpt-4-0\.json is damaged: .* mtbench show writes"):
            read_run(finished_run.output)
    finally:
        file.unlink()
        file.parent.rmdir()
