"""The page of a report as a screen reader, a keyboard and a strict browser see it.

Read as text: what only a browser can tell is in ``test_in_browser.py``.
"""

import base64
import hashlib
import itertools
import re
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest

from tests.in_process import LIGHTNING_WARNINGS, FinishedRun
from tests.reporting.pages import write_page

pytestmark = LIGHTNING_WARNINGS
LEAST_CONTRAST = 4.5
"""Of text, by the Web Content Accessibility Guidelines, level AA."""
Tag = tuple[str, dict[str, str]]


class Page(HTMLParser):
    """Tags with their attributes in order, and the text behind every tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[Tag] = []
        self.texts: list[str] = []
        self.source = text
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        self.texts.append("")

    def handle_data(self, data: str) -> None:
        if self.texts:
            self.texts[-1] += data

    def named(self, *names: str) -> list[dict[str, str]]:
        return [attributes for tag, attributes in self.tags if tag in names]


@pytest.fixture(scope="module")
def page(finished_run: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Page:
    file = write_page(finished_run, tmp_path_factory.mktemp("page"))
    return Page(file.read_text(encoding="utf-8"))


def test_every_identifier_is_there_once(page: Page) -> None:
    names = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(names) > 50
    assert len(set(names)) == len(names)


def test_every_reference_leads_somewhere(page: Page) -> None:
    names = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    links = [a.get("href") or a.get("xlink:href", "") for a in page.named("a", "use")]
    labels = [a["aria-labelledby"] for _, a in page.tags if "aria-labelledby" in a]
    assert {"#main", "#run-1", "#run-2", "#run-2-block-1"} <= set(links)
    assert {link.removeprefix("#") for link in links} | set(labels) <= names
    assert "#cost" in links


def test_headings_are_in_order(page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_there_are_landmarks_and_a_language(page: Page) -> None:
    for landmark in ("header", "nav", "main"):
        assert len(page.named(landmark)) == 1
    assert page.named("html") == [{"lang": "en"}]
    first = next(tag for tag in page.tags if tag[0] == "a")
    assert first == ("a", {"class": "skip", "href": "#main"})


def test_tables_have_captions_and_scopes(page: Page) -> None:
    tables = len(page.named("table"))
    assert tables > 10
    captions = [t for (tag, _), t in zip(page.tags, page.texts, strict=True) if tag == "caption"]
    assert len(set(captions)) == len(captions) == tables
    assert {attributes["scope"] for attributes in page.named("th")} == {"col", "row"}
    rows = len(page.named("tr")) - tables
    assert sum(attributes["scope"] == "row" for attributes in page.named("th")) == rows


def test_the_worst_block_is_first_and_its_column_says_so(page: Page) -> None:
    sorted_by = [
        text
        for (tag, attributes), text in zip(page.tags, page.texts, strict=True)
        if tag == "th" and attributes.get("aria-sort") == "descending"
    ]
    assert sorted_by == ["error", "× typical"] * 2
    assert len([a for a in page.named("table") if "data-sortable" in a]) == 5


def test_pictures_and_charts_say_what_they_show(page: Page) -> None:
    pictures = [attributes["alt"] for attributes in page.named("img")]
    assert len(pictures) == 4
    assert all("before and" in words and "mlp output" in words for words in pictures)
    charts = page.named("svg")
    assert len(charts) == 8
    assert all(c["role"] == "img" and len(c["aria-label"]) > 20 for c in charts)


def test_the_picture_of_the_worst_block_is_open(page: Page) -> None:
    opened = []
    for place, (tag, attributes) in enumerate(page.tags):
        if tag == "details" and "open" in attributes:
            opened.append(next(a["id"] for t, a in page.tags[place:] if t == "img"))
    assert opened == ["run-1-block-1", "run-2-block-1"]


def test_only_our_script_may_run_and_nothing_is_loaded(page: Page) -> None:
    (policy,) = (a["content"] for a in page.named("meta") if "http-equiv" in a)
    (script,) = re.findall("<script>(.*?)</script>", page.source, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == f"'sha256-{digest}'"
    assert rules["img-src"] == "data:"


def luminance(color: str) -> float:
    """Relative luminance of ``#rgb`` or ``#rrggbb``, by the guidelines' formula."""
    digits = color.removeprefix("#")
    digits = "".join(2 * d for d in digits) if len(digits) == 3 else digits
    shares = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return sum(w * s for w, s in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(scheme: str) -> None:
    style = (files("duquant.reporting") / "templates" / "report.css").read_text(encoding="utf-8")
    light, dark = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    colors = dict(re.findall(r"--(\w+): (#\w+)", light if scheme == "light" else dark))
    for text in ("ink", "soft", "accent"):
        for behind in ("back", "panel"):
            pair = sorted((luminance(colors[text]), luminance(colors[behind])))
            assert (pair[1] + 0.05) / (pair[0] + 0.05) >= LEAST_CONTRAST, (text, behind)
    assert (luminance(colors["back"]) > 0.5) is (scheme == "light")


def test_colors_are_those_of_the_page(page: Page, finished_run: FinishedRun) -> None:
    """A chart with colors of its own would be unreadable in one of the schemes."""
    text = Path(finished_run.output / "report.html").read_text(encoding="utf-8")
    charts = re.findall(r"<svg .*?</svg>", text, re.DOTALL)
    assert charts
    for chart in charts:
        assert re.findall(r"(?:fill|stroke|color): ?#\w+", chart) == []
