"""Every line that is printed, results and errors, whatever it quotes.

Rich would read ``[red]`` in a model's name as a color, and a terminal would obey the escapes in it.
Here every text is made plain and is printed as it is. Nothing else in the project prints but
:mod:`duquant.terminal_table`. Rich comes with an extra, so it is imported where a console is given.
"""

import sys
from typing import TYPE_CHECKING

from duquant.plain_text import plain

if TYPE_CHECKING:
    from rich.console import Console


def say(line: object, console: "Console | None" = None, style: str = "") -> None:
    """Print one line, unbroken.

    Args:
        line: what to say.
        console: where (default: standard output).
        style: how it looks on a terminal, "italic".
    """
    if console is None:
        print(plain(line))
    else:
        from rich.text import Text

        console.print(Text(plain(line), style), soft_wrap=True)


def complain(line: str) -> None:
    """Print one line of an error."""
    note(f"error: {line}")


def note(line: str) -> None:
    """Print one line where errors go: results alone belong on standard output."""
    print(plain(line), file=sys.stderr, flush=True)
