"""Reports show every text of a run's files as it is, and embed nothing but the run's pictures."""

import os
import re
import shutil
import socket
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from duquant.config import Recipe
from duquant.export.model_card import write_model_card
from duquant.json_shapes import shaped
from duquant.model.checkpoint import read_json
from duquant.plain_text import in_markdown, line_in_markdown, plain
from duquant.reporting import report
from duquant.reporting.markdown import as_markdown
from duquant.reporting.pictures import LARGEST, SIGNATURE, read_pictures
from duquant.reporting.run_contents import RunContents, read_run
from duquant.reporting.run_files import Judged
from duquant.reporting.tables import Table
from tests.foreign_names import NAMES
from tests.in_process import LIGHTNING_WARNINGS, FinishedRun
from tests.reporting.test_mt_bench import judged
from tests.reporting.test_report import results

pytestmark = LIGHTNING_WARNINGS
OURS = ("topics", "wikitext2", "arc_easy", "mmlu", "mmlu_anatomy", "a", "b", "full")
"""Corpora, tasks and models, which are called the same in several places."""
JUDGED = [judged("a", "full")]
anything = st.text(st.characters(exclude_categories=()))


class Page(HTMLParser):
    """Tags, attributes and words of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.names: set[str] = set()
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.names |= {name for name, _ in attrs}

    def handle_comment(self, data: str) -> None:
        self.tags["comment"] += 1

    def handle_data(self, data: str) -> None:
        self.words.append(data)


class Markdown:
    """Kinds of elements of a Markdown text, and its words."""

    def __init__(self, text: str) -> None:
        parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
        tokens = [
            child for token in parser.parse(text) for child in (token, *(token.children or []))
        ]
        self.kinds = Counter(token.type for token in tokens)
        self.words = "\n".join(t.content for t in tokens if t.type == "inline")
        self.texts = "\n".join(
            "".join(c.content for c in t.children or []) for t in tokens if t.type == "inline"
        )


def planted(value: Any, name: str) -> Any:
    """The same values with a name in every text, and in the place of every corpus and task."""
    if isinstance(value, dict):
        return {_replaced(key, name): planted(inner, name) for key, inner in value.items()}
    if isinstance(value, list):
        return [planted(inner, name) for inner in value]
    if isinstance(value, str) and value:  # a text that is not there stays away
        named = _replaced(value, name)
        return named if named != value else f"{value} {name}"
    return value


def _replaced(key: str, name: str) -> str:
    return key + name if key.removeprefix("perplexity_") in OURS else key


@pytest.fixture(scope="module")
def run(finished_run: FinishedRun) -> RunContents:
    """The finished run with everything that a report can show."""
    read = read_run(finished_run.output)
    return replace(read, evaluations=[results()], mt_bench=shaped(JUDGED, list[Judged]))


@pytest.fixture(autouse=True)
def _no_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take long, and nothing in them is a text of somebody else's."""
    monkeypatch.setattr(report, "_charts", lambda run: [("Heading", "<svg></svg>")])


def reports(run: RunContents, directory: Path) -> tuple[Page, Markdown]:
    html, markdown = report.write_report(directory, [run])
    return Page(html.read_text(encoding="utf-8")), Markdown(markdown.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", NAMES)
def test_every_text_of_a_run(name: str, run: RunContents, tmp_path: Path) -> None:
    page, markdown = reports(run, tmp_path)
    foreign = RunContents(
        name=NAMES[name],
        summary=planted(run.summary, NAMES[name]),
        validation=planted(run.validation, NAMES[name]),
        evaluations=planted(run.evaluations, NAMES[name]),
        mt_bench=shaped(planted(JUDGED, NAMES[name]), list[Judged]),
        pictures=run.pictures,
        sizes={f"{kind} {NAMES[name]}": size for kind, size in run.sizes.items()},
    )
    foreign_page, foreign_markdown = reports(foreign, tmp_path)
    assert foreign_page.tags == page.tags
    assert foreign_page.names == page.names
    assert set(foreign_markdown.kinds) - {"text_special"} == set(markdown.kinds)
    for kind in ("table_open", "heading_open", "paragraph_open", "td_open", "th_open"):
        assert foreign_markdown.kinds[kind] == markdown.kinds[kind], kind
    for word in plain(NAMES[name]).split():
        assert sum(word in text for text in foreign_page.words) > 20
        assert foreign_markdown.texts.count(word) > 20


@pytest.mark.parametrize("name", NAMES)
def test_model_cards(name: str, finished_run: FinishedRun, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for file in (finished_run.output / "model").iterdir():
        (model / file.name).symlink_to(file)
    summary, kinds = read_json(finished_run.output / "summary.json"), []
    for corpus in ("topics", NAMES[name]):
        said = {corpus: {"full_precision": 2.0, "quantized": 3.0}}
        values = {**summary, "protocol": corpus, "perplexity": said}
        pretrained = corpus.translate({0: "", ord("/"): ""}).encode("utf-8", "ignore").decode()
        write_model_card(model, pretrained, Recipe(), values)
        text = (model / "README.md").read_text(encoding="utf-8").split("---\n", 2)[2]
        kinds.append(Markdown(text).kinds)
    assert set(kinds[1]) - {"text_special"} == set(kinds[0])
    assert kinds[0]["td_open"] == kinds[1]["td_open"]


@given(text=anything)
def test_any_text_in_markdown(text: str) -> None:
    """Read again, it is what is printed, in a cell and in a line of its own."""
    table = Table([f"a{text}", text], [[text, f"{text}b"]], f"c{text}", (f"d{text}", text))
    markdown = Markdown(as_markdown(f"e{text}", [table]))
    assert set(markdown.kinds) <= {
        *("heading_open", "heading_close", "paragraph_open", "paragraph_close", "inline", "text"),
        *("table_open", "table_close", "thead_open", "thead_close", "tbody_open", "tbody_close"),
        *("tr_open", "tr_close", "th_open", "th_close", "td_open", "td_close"),
        *("text_special", "hardbreak", "softbreak"),
    }
    assert markdown.kinds["td_open"] == markdown.kinds["th_open"] == 2
    shown, said = (re.sub(r"\s", "", words) for words in (markdown.texts, plain(text)))
    assert not said or shown.count(said) >= 7
    assert "<" not in in_markdown(text) + line_in_markdown(text)


SECRET = b"the contents of another file, which nobody wants to pass on"


def plant_link(file: Path, elsewhere: Path) -> None:
    file.symlink_to(elsewhere)


def plant_relative_link(file: Path, elsewhere: Path) -> None:
    file.symlink_to(os.path.relpath(elsewhere, file.parent))


def plant_chain(file: Path, elsewhere: Path) -> None:
    (file.parent / "between").symlink_to(elsewhere)
    file.symlink_to("between")


def plant_loop(file: Path, elsewhere: Path) -> None:
    file.symlink_to(file.name)


def plant_dangling(file: Path, elsewhere: Path) -> None:
    file.symlink_to("nowhere")


def plant_linked_folder(file: Path, elsewhere: Path) -> None:
    moved = elsewhere.parent / "blocks"
    file.parent.rename(moved)
    file.parent.symlink_to(moved)


def plant_fifo(file: Path, elsewhere: Path) -> None:
    os.mkfifo(file)


def plant_socket(file: Path, elsewhere: Path) -> None:
    here = Path.cwd()
    os.chdir(file.parent)  # the path of a socket must be short
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(file.name)
    finally:
        os.chdir(here)


def plant_folder(file: Path, elsewhere: Path) -> None:
    file.mkdir()


def plant_other_kind(file: Path, elsewhere: Path) -> None:
    file.write_bytes(SECRET)


def plant_nothing(file: Path, elsewhere: Path) -> None:
    file.write_bytes(b"")


def plant_half_a_signature(file: Path, elsewhere: Path) -> None:
    file.write_bytes(SIGNATURE[:-1])


def plant_device(file: Path, elsewhere: Path) -> None:
    file.symlink_to("/dev/zero")


def plant_large(file: Path, elsewhere: Path) -> None:
    file.write_bytes(SIGNATURE)
    os.truncate(file, LARGEST + 1)


def plant_huge(file: Path, elsewhere: Path) -> None:
    file.write_bytes(SIGNATURE)
    os.truncate(file, 2**40)


PLANTS = {name: plant for name, plant in globals().items() if name.startswith("plant_")}


@pytest.mark.parametrize("has_signature", [False, True])
@pytest.mark.parametrize("place", ["outliers_0.png", "outliers_1.png", "outliers_x.png"])
@pytest.mark.parametrize("plant", PLANTS)
def test_only_pictures_of_the_run(
    plant: str, place: str, has_signature: bool, tmp_path: Path
) -> None:
    elsewhere, run = tmp_path / "secret.png", tmp_path / "run"
    elsewhere.write_bytes(SIGNATURE * has_signature + SECRET)
    (run / "blocks").mkdir(parents=True)
    for block in range(2):
        (run / "blocks" / f"outliers_{block}.png").write_bytes(SIGNATURE + b"a picture")
    file = run / "blocks" / place
    file.unlink(missing_ok=True)
    PLANTS[plant](file, elsewhere)
    with pytest.raises(ValueError, match=r"blocks/\S+\.png is .*: delete it\Z"):
        read_pictures(run)


def test_a_report_looks_at_its_pictures(finished_run: FinishedRun, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(finished_run.output, tmp_path / "copy"))
    (tmp_path / "link").symlink_to(copy)
    assert len(read_run(tmp_path / "link").pictures) == 2, "a run may be reached by a link"
    sizes = [file.stat().st_size for file in (copy / "blocks").glob("*.png")]
    assert max(sizes) < LARGEST / 32
    (copy / "blocks" / "outliers_2.png").symlink_to("/etc/hostname")
    with pytest.raises(ValueError, match=r"outliers_2\.png is a link that leads out of the run"):
        report.report([str(copy)])
