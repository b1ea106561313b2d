"""The page of a report in a real browser: sorted by keyboard, light and dark, wide and narrow."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser import EXECUTABLE, Browser, browser
from tests.in_process import LIGHTNING_WARNINGS, FinishedRun
from tests.reporting.pages import write_page

pytestmark = [
    *LIGHTNING_WARNINGS,
    pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium is installed"),
]
SORTABLE = "document.querySelectorAll('table[data-sortable]')"
BLOCKS = "[...document.querySelectorAll('h3')].find(h => h.textContent === 'Blocks of one')"
ROWS = "[...table.tBodies[0].rows].map(row => row.cells[0].textContent.trim())"
CONTRASTS = """
(() => {
  const shares = (color) => color.match(/[\\d.]+/g).map(Number);
  const luminance = (color) => {
    const [r, g, b] = shares(color).map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const parts = shares(getComputedStyle(e).backgroundColor);
      if (parts.length < 4 || parts[3] > 0) return getComputedStyle(e).backgroundColor;
    }
    return "rgb(255, 255, 255)";
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !element.getClientRects().length) continue;
    const style = getComputedStyle(element);
    const color = element.closest("svg") ? style.fill : style.color;
    const pair = [luminance(color), luminance(behind(element))].sort((a, b) => a - b);
    found.push([(pair[1] + 0.05) / (pair[0] + 0.05), walker.currentNode.textContent.trim()]);
  }
  return found.sort((a, b) => a[0] - b[0]);
})()
"""


@pytest.fixture(scope="module")
def file(finished_run: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(finished_run, tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def started() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


@pytest.fixture
def page(started: Browser, file: Path) -> Browser:
    started.prefer("light")
    started.open(file)
    return started


def tab_to(page: Browser, words: str, most: int = 200) -> None:
    """Press the tabulator until something with these words has the focus."""
    for _ in range(most):
        page.press("Tab", 9)
        if page.value("document.activeElement.textContent.trim()") == words:
            return
    raise AssertionError(f"{words} cannot be reached by keyboard")


def test_it_loads_nothing_and_complains_about_nothing(page: Browser) -> None:
    asked = [event for event in page.events if event["method"] == "Network.requestWillBeSent"]
    urls = [event["params"]["request"]["url"].partition(":")[0] for event in asked]
    assert urls.count("file") == 1
    assert set(urls) <= {"file", "data"}
    complaints = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
    assert [event for event in page.events if event["method"] in complaints] == []


def test_the_first_tab_skips_to_the_results(page: Browser) -> None:
    page.press("Tab", 9)
    assert page.value("document.activeElement.className") == "skip"
    left = "document.activeElement.getBoundingClientRect().left"
    assert page.value(left) >= 0, "it is seen as soon as it has the focus"
    page.press("Enter", 13, "\r")
    assert page.value("location.hash") == "#main"
    assert page.value("document.activeElement.id") == "main"


def test_a_table_is_sorted_by_keyboard(page: Browser) -> None:
    page.value(f"{BLOCKS}.scrollIntoView()")
    page.value(f"var table = {SORTABLE}[1]; table.querySelector('button').focus()")
    assert page.value(ROWS) == ["1", "0"], "the worst block is first before anything is pressed"
    tab_to(page, "error")
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.value(outline) != "none", "what has the focus is seen"
    orders = []
    for _ in range(2):
        page.press("Enter", 13, "\r")
        orders.append((page.value(ROWS), page.value("table.tHead.rows[0].cells[1].ariaSort")))
    assert orders == [(["0", "1"], "ascending"), (["1", "0"], "descending")]
    page.press("Tab", 9)
    page.press(" ", 32, " ")
    heads = "[...table.tHead.rows[0].cells].map(head => head.getAttribute('aria-sort'))"
    assert page.value(heads)[1:3] == [None, "descending"], "one column at a time"
    assert page.value("document.getElementById('sorted').textContent") == (
        "sorted by largest part, descending"
    )


def test_what_is_not_finite_is_larger_and_what_is_unknown_comes_last(page: Browser) -> None:
    page.value(f"var table = {SORTABLE}[3]; var cells = [...table.tBodies[0].rows]")
    assert page.value("cells[0].cells[1].textContent") == "not finite"
    page.value("cells[1].cells[1].textContent = '–'")
    errors = "[...table.tBodies[0].rows].map(row => row.cells[1].textContent)"
    for _ in range(2):
        page.value("table.tHead.rows[0].cells[1].querySelector('button').click()")
        assert page.value(errors) == ["not finite", "–"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_can_be_read(page: Browser, scheme: str) -> None:
    page.prefer(scheme)
    contrasts = page.value(CONTRASTS)
    assert len(contrasts) > 300
    assert contrasts[0][0] >= 4.5, contrasts[:5]
    background = page.value("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") is (scheme == "light")


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_the_page_itself_never_scrolls_sideways(page: Browser, width: int) -> None:
    page.prefer("light", width)
    assert page.value("document.documentElement.scrollWidth") <= width
    assert page.value("document.querySelector('table').offsetWidth") > 0


def test_a_block_leads_to_its_picture_although_it_is_closed(page: Browser) -> None:
    picture = "document.getElementById('run-1-block-0')"
    assert not page.value(f"{picture}.closest('details').open")
    page.value("document.querySelector('td a, th a[href=\"#run-1-block-0\"]').click()")
    assert page.value("location.hash") == "#run-1-block-0"
    assert page.value(f"{picture}.closest('details').open")


def test_a_screen_reader_finds_names_and_landmarks(page: Browser) -> None:
    nodes = page.send("Accessibility.getFullAXTree")["nodes"]
    found = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if not node["ignored"]
    ]
    roles = [role for role, _ in found]
    for landmark in ("banner", "navigation", "main"):
        assert roles.count(landmark) == 1
    for named in ("table", "image", "button", "link", "region"):
        names = [name for role, name in found if role == named]
        assert names, named
        assert all(names), f"a {named} has no name"
    tables = [name for role, name in found if role == "table"]
    assert "Blocks of one; press a heading to sort by it" in tables
    assert roles.count("rowheader") > 50
    assert {role for role, name in found if name == "× typical"} >= {"columnheader", "button"}
