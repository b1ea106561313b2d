"""Progress of an evaluation: one bar with an ETA on a terminal, one line per part elsewhere."""

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from duquant.evaluation.statistics import Measurement


class EvaluationProgress:
    """Counts requests over all parts.

    Args:
        console: where to print.
        total: requests expected in all.
    """

    def __init__(self, console: Console, total: int) -> None:
        self.console = console
        self._started = time.monotonic()
        self._total = max(1, total)
        self._done = self._expected = 0
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeElapsedColumn(),
                TextColumn("ETA"),
                TimeRemainingColumn(elapsed_when_finished=True),
                console=console,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._task = self._bar.add_task("evaluating", total=self._total)
            self._bar.start()

    def begin(self, label: str, requests: int) -> None:
        """A part with about so many requests begins."""
        self._expected = self._done + requests
        if self._bar is not None:
            self._bar.update(self._task, description=label)

    def advance(self, count: int = 1) -> None:
        """Requests were answered; never more than the part was expected to have."""
        self._done = min(self._done + count, self._expected)
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done)

    def finish(self, label: str, measured: Measurement) -> None:
        """A part is measured."""
        self.advance(self._expected - self._done)
        if self._bar is not None:
            return
        elapsed = time.monotonic() - self._started
        left = elapsed * (self._total - self._done) / max(1, self._done)
        self.say(
            f"{label}: {measured.num_items} items in {measured.seconds:.1f} s; "
            f"{elapsed:.0f} s elapsed, about {left:.0f} s left"
        )

    def say(self, line: str) -> None:
        """Print one line above the bar."""
        self.console.print(line, soft_wrap=True, highlight=False)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
