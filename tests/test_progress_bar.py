"""Bars look alike on terminals, and times are written as on a clock."""

import io

import pytest
from rich.console import Console

from duquant.progress_bar import clock, progress_bar


def drawn(*, is_terminal: bool, counts_steps: bool = False) -> str:
    file = io.StringIO()
    console = Console(file=file, force_terminal=is_terminal, width=100, color_system=None)
    with progress_bar(console, counts_steps=counts_steps) as bar:
        bar.add_task("working", total=80, completed=20)
        bar.refresh()
    return file.getvalue()


def test_a_bar_says_what_how_far_and_how_long() -> None:
    shown = drawn(is_terminal=True)
    for words in ("working", " 25%", "0:00:00", "ETA"):
        assert words in shown
    assert "20/80" in drawn(is_terminal=True, counts_steps=True)


def test_without_a_terminal_there_is_no_bar() -> None:
    assert drawn(is_terminal=False) == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (83, "1:23"), (3723, "1:02:03")]
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
