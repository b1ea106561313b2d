"""Reports of a run that really happened, and of several side by side."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from duquant.model.checkpoint import read_json
from duquant.reporting.report import report
from duquant.reporting.run_contents import read_run
from duquant.reporting.tables import cost_table, perplexity_table, recipe_table, task_table
from tests.in_process import LIGHTNING_WARNINGS, FinishedRun

pytestmark = LIGHTNING_WARNINGS
RESULTS = {
    "results": {
        "arc_easy": {"metrics": {"acc": {"value": 0.25, "stderr": 0.05}}},
        "lambada": {"metrics": {"perplexity": {"value": 31.5, "stderr": None}}},
    }
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


def evaluate(run: Path) -> None:
    (run / "evaluation").mkdir()
    (run / "evaluation" / "results.json").write_text(json.dumps(RESULTS), encoding="utf-8")


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
    assert page.tags.count("svg") == 3  # losses, time, memory
    assert page.tags.count("img") == 2  # one picture per block
    assert not {"script", "link", "iframe"}.intersection(page.tags)
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
    evaluate(other)
    runs = [read_run(run), read_run(other)]
    assert recipe_table(runs).rows[0] == ["rotation.block_size", "16", "8"]
    assert ["elsewhere, quantized", "–", "3.000"] in perplexity_table(runs).rows
    assert task_table(runs).rows == [
        ["arc_easy, acc", "0.25 ± 0.05"],
        ["lambada, perplexity", "31.5"],
    ]
    report([str(run), str(other)], str(tmp_path / "together"))
    text = (tmp_path / "together" / "report.md").read_text(encoding="utf-8")
    assert "| perplexity | copy | other |" in text


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


def test_names_are_escaped(run: Path) -> None:
    summary = read_json(run / "summary.json")
    summary["pretrained"] = "<script>alert(1)</script>|"
    (run / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    report([str(run)])
    assert "<script>" not in (run / "report.html").read_text(encoding="utf-8")
