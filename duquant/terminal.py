"""Everything that is printed: lines, errors and tables, whatever they quote.

Rich would read ``[red]`` in a model's name as a color, and a terminal would obey the escapes in it.
Here every text is made plain and is printed as it is. Nothing else in the project prints.
"""

import sys
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from duquant.plain_text import plain


def say(line: object, console: Console | None = None, style: str = "") -> None:
    """Print one line, unbroken.

    Args:
        line: what to say.
        console: where (default: standard output).
        style: how it looks on a terminal, "italic".
    """
    if console is None:
        print(plain(line))
    else:
        console.print(Text(plain(line), style), soft_wrap=True)


def complain(line: str) -> None:
    """Print one line of an error."""
    note(f"error: {line}")


def note(line: str) -> None:
    """Print one line where errors go: results alone belong on standard output."""
    print(plain(line), file=sys.stderr, flush=True)


def show_table(table: "PlainTable", console: Console | None = None) -> None:
    """Print a table.

    Args:
        table: what to show.
        console: where (default: standard output).
    """
    (console or Console()).print(table)


class PlainTable(Table):
    """A table of texts that are shown as they are."""

    def __init__(self, title: str | None = None, caption: str | None = None) -> None:
        super().__init__(title=_text(title), caption=_text(caption))

    def add_column(self, header: RenderableType = "", *args: Any, **kwargs: Any) -> None:
        """Add a column under a heading."""
        super().add_column(_text(header) or "", *args, **kwargs)

    def add_row(self, *cells: RenderableType | None, **kwargs: Any) -> None:
        """Add a row."""
        super().add_row(*map(_text, cells), **kwargs)


def _text(value: Any) -> Any:
    """A text without markup; what is none stays as it is."""
    return Text(plain(value)) if isinstance(value, str) else value
