"""One look for every progress bar: what happens, how far it is, and the time that is left.

Bars are for terminals. Elsewhere (a log file, a batch queue) whoever works prints a line per step,
with times by :func:`clock`.
"""

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from duquant.plain_text import plain


def progress_bar(console: Console, *, counts_steps: bool = False) -> Progress:
    """A bar with description, time elapsed and ETA; it shows itself on terminals alone.

    Args:
        console: where it is drawn.
        counts_steps: show steps (3/80) instead of percent.
    """
    percent = TextColumn("{task.percentage:>3.0f}%")
    done: ProgressColumn = MofNCompleteColumn() if counts_steps else percent
    return Progress(
        _Description(),
        BarColumn(),
        done,
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
        disable=not console.is_terminal,
    )


class _Description(ProgressColumn):
    """What happens, which may quote names from anywhere."""

    def render(self, task: Task) -> Text:
        """The description without markup."""
        return Text(plain(task.description))


def clock(seconds: float) -> str:
    """``1:23``, or ``1:02:03`` from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
