"""Tables that are printed, their texts made plain as in :mod:`duquant.terminal`."""

from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from duquant.plain_text import plain


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
