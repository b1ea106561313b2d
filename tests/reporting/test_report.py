"""Reports of a run that really happened, and of several side by side."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from duquant.atomic_files import write_json
from duquant.json_files import read_json
from duquant.reporting.measurements import perplexity_tables, task_tables
from duquant.reporting.report import report
from duquant.reporting.run_contents import read_run
from duquant.reporting.tables import cost_table, recipe_table
from tests.in_process import LIGHTNING_WARNINGS, FinishedRun

pytestmark = LIGHTNING_WARNINGS
PROTOCOL = "WikiText-2; windows of 8 tokens"


def measured(metric: str, value: float, stderr: float | None, **options: Any) -> dict[str, Any]:
    """What ``evaluate`` writes of one task."""
    number = {"value": value, "stderr": stderr, "is_share": metric == "acc"}
    return {
        "metrics": {metric: number},
        "num_items": 20,
        "available_items": 2376,
        "num_fewshot": 0,
        "backend": "integer, float32",
        "kv_cache": "none",
        **options,
    }


def results(limit: int | None = 20) -> dict[str, Any]:
    """Two models, two tasks of which one belongs to a group, and a perplexity."""
    own = {
        "arc_easy": measured("acc", 0.25, 0.05),
        "mmlu": measured("acc", 0.5, 0.1),
        "mmlu_anatomy": measured("acc", 0.5, 0.1),
        "perplexity_wikitext2": measured("perplexity", 31.5, 0.5),
    }
    full = {n: {**m, "backend": "float32"} for n, m in own.items()}
    apart = {"value": -0.05, "stderr": 0.02, "exceeds_stderr": True}
    near = {"value": 1.5, "stderr": None, "exceeds_stderr": None}
    settings = {"limit": limit, "seed": 1234, "lm_eval": "0.4.9"}
    return {
        "evaluated": {"parts": {"arc_easy": settings, "mmlu_anatomy": settings}},
        "labels": ["W4A4", "full precision"],
        "request": {"limit": limit, "perplexity": {"wikitext2": "somewhere/test.txt"}},
        "protocols": {"wikitext2": PROTOCOL},
        "groups": {"mmlu": ["mmlu_anatomy"]},
        "notes": ["0-shot; all items" if limit is None else f"0-shot; --limit {limit}: a taste"],
        "results": own,
        "compared_results": full,
        "differences": {
            **{task: {"acc": apart} for task in own},
            "perplexity_wikitext2": {"perplexity": near},
        },
    }


class Page(HTMLParser):
    """Collects tags and what they refer to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href"):
                self.references.append(value or "")


@pytest.fixture
def run(finished_run: FinishedRun, tmp_path: Path) -> Path:
    """A copy of the finished run, for tests that write into it."""
    return Path(shutil.copytree(finished_run.output, tmp_path / "copy"))


def evaluate(run: Path, limit: int | None = 20) -> Path:
    file = run / "evaluation" / "results" / f"{limit}.json"
    write_json(file, results(limit))
    return file


def test_every_run_leaves_its_report(finished_run: FinishedRun) -> None:
    summary = read_json(finished_run.output / "summary.json")
    for file in ("report.html", "report.md"):
        text = (finished_run.output / file).read_text(encoding="utf-8")
        for value in summary["perplexity"]["topics"].values():
            assert f"{value:.3f}" in text
        assert summary["protocol"] in text
        assert "rotation.block_size" in text


def test_the_page_needs_nothing_else(run: Path) -> None:
    report([str(run)])
    page = Page((run / "report.html").read_text(encoding="utf-8"))
    assert page.tags.count("svg") == 4  # error, losses, time, memory
    assert page.tags.count("img") == 2  # one picture per block
    assert page.tags.count("script") == 1
    assert not {"link", "iframe"}.intersection(page.tags)
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.references)


def test_the_same_run_gives_the_same_report(run: Path) -> None:
    report([str(run)])
    first = (run / "report.html").read_bytes()
    report([str(run)])
    assert (run / "report.html").read_bytes() == first


def test_runs_stand_side_by_side(run: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other"))
    summary = read_json(other / "summary.json")
    summary["recipe"]["rotation"]["block_size"] = 8
    summary["perplexity"] = {"elsewhere": {"full_precision": 2.0, "quantized": 3.0}}
    (other / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    runs = [read_run(run), read_run(other)]
    assert recipe_table(runs).rows[0] == ["rotation.block_size", "16", "8"]
    report([str(run), str(other)], str(tmp_path / "together"))
    text = (tmp_path / "together" / "report.md").read_text(encoding="utf-8")
    assert "| rotation.block_size | 16 | 8 |" in text


def test_every_number_stands_under_its_own_protocol(run: Path) -> None:
    """Fit's, validate's and evaluate's perplexities are of other windows, texts and backends."""
    summary = read_json(run / "summary.json")
    later = {
        "perplexity": {"topics": {"quantized": 3.0}},
        "protocol": "windows of 5 tokens",
        "protocols": {"topics": "whole text"},
        "corpora": {"topics": "elsewhere/other.txt"},
    }
    write_json(run / "validation.json", {**summary, **later})
    evaluate(run)
    first, second, third = perplexity_tables([read_run(run)])
    name = Path(summary["corpora"]["topics"]).name
    own = "backend reference, KV cache none"
    assert first.notes == (f"topics ({name}): whole text", summary["protocol"], own)
    assert first.rows[-1] == [
        "topics, quantized",
        f"{summary['perplexity']['topics']['quantized']:.3f}",
    ]
    assert second.notes == ("topics (other.txt): whole text", "windows of 5 tokens", own)
    assert second.rows == [["topics, quantized", "3.000"]]
    assert third.notes == (
        f"wikitext2 (test.txt): {PROTOCOL}",
        "W4A4: backend integer, float32, KV cache none",
        "full precision: backend float32, KV cache none",
    )
    assert third.rows == [
        ["wikitext2, W4A4", "31.50 ± 0.50"],
        ["wikitext2, full precision", "31.50 ± 0.50"],
        ["wikitext2, difference", "+1.50"],
    ]


def test_tasks_are_in_percent_and_say_how_they_were_asked(run: Path) -> None:
    evaluate(run)
    evaluate(run, None)
    taste, parts, whole, _ = task_tables([read_run(run)])
    assert taste.columns == ["task", "items", "W4A4", "full precision", "difference"]
    assert taste.rows == [
        ["arc_easy, acc", "20 of 2376", "25.00 ± 5.00", "25.00 ± 5.00", "-5.00 ± 2.00 *"],
        ["mmlu, acc", "20 of 2376", "50.00 ± 10.00", "50.00 ± 10.00", "-5.00 ± 2.00 *"],
    ]
    assert (taste.folded, parts.folded) == ("", "Single tasks of the groups above")
    assert [row[0] for row in parts.rows] == ["mmlu_anatomy, acc"]
    said = " ".join(taste.notes)
    for words in ("0-shot", "--limit 20: a taste", "seed 1234", "lm-eval 0.4.9", "marked *", "KV"):
        assert words in said
    assert "all items" in whole.notes[0]
    assert "limit" not in whole.notes[0]
    report([str(run)])
    for file in ("report.html", "report.md"):
        text = (run / file).read_text(encoding="utf-8")
        assert "--limit 20" in text
        assert "W4A4: backend integer, float32, KV cache none" in text


def test_tasks_of_two_runs_share_a_table_where_they_were_asked_alike(
    run: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other"))
    evaluate(run)
    evaluate(other)
    evaluate(other, None)
    together, _, alone, _ = task_tables([read_run(run), read_run(other)])
    assert together.columns[:3] == ["task", "items", "copy: W4A4"]
    assert "other: W4A4" in together.columns
    assert not any(name.startswith("copy") for name in alone.columns)


def test_damaged_results_are_named(run: Path) -> None:
    file = evaluate(run)
    file.write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match=r"20\.json is damaged: .*; delete it"):
        report([str(run)])


def test_runs_of_one_name_are_told_apart(run: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(run, tmp_path / "elsewhere" / "copy"))
    report([str(run), str(other)], str(tmp_path))
    assert str(other) in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_the_size_of_every_part_is_counted(run: Path) -> None:
    contents = read_run(run)
    stored = sum(file.stat().st_size for file in (run / "model").glob("*.safetensors"))
    assert 0.8 * stored < sum(contents.sizes.values()) < stored
    assert any(re.match("packed weights, MB", row[0]) for row in cost_table([contents]).rows)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no finished run: it has no summary\.json"):
        report([str(tmp_path)])


def test_a_baseline_that_is_not_calibrated_is_said_above_the_perplexities(run: Path) -> None:
    words = "round to nearest is not calibrated: the tensor scales of its activations are those"
    assert words not in perplexity_tables([read_run(run)])[0].notes
    summary = read_json(run / "summary.json")
    write_json(run / "summary.json", {**summary, "baseline": words})
    assert words in perplexity_tables([read_run(run)])[0].notes


def test_names_are_escaped(run: Path) -> None:
    summary = read_json(run / "summary.json")
    summary["pretrained"] = "<script>alert(1)</script>|"
    (run / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    report([str(run)])
    text = (run / "report.html").read_text(encoding="utf-8")
    assert text.count("<script>") == 1
    assert "&lt;script&gt;alert" in text
