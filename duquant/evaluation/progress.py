"""Progress of an evaluation: one bar with an ETA on a terminal, one line per part elsewhere."""

import time

from rich.console import Console

from duquant.progress_bar import clock, progress_bar
from duquant.scores.statistics import Measurement
from duquant.terminal import say


class EvaluationProgress:
    """Counts requests over all parts.

    Args:
        console: where to print; one with a file of its own, since what is measured in
            :func:`duquant.evaluation.silence.silence` has standard error taken away.
        total: requests expected in all.
    """

    def __init__(self, console: Console, total: int) -> None:
        self.console = console
        self._started = time.monotonic()
        self._total = max(1, total)
        self._done = self._expected = 0
        self._bar = progress_bar(console)
        self._task = self._bar.add_task("evaluating", total=self._total)
        self._bar.start()

    def begin(self, label: str, requests: int) -> None:
        """A part with about so many requests begins."""
        self._expected = self._done + requests
        self._bar.update(self._task, description=label)

    def advance(self, count: int = 1) -> None:
        """Requests were answered; never more than the part was expected to have."""
        self._done = min(self._done + count, self._expected)
        self._bar.update(self._task, completed=self._done)

    def finish(self, label: str, measured: Measurement) -> None:
        """A part is measured."""
        self.advance(self._expected - self._done)
        if self.console.is_terminal:
            return
        elapsed = time.monotonic() - self._started
        left = elapsed * (self._total - self._done) / max(1, self._done)
        self.say(
            f"{label}: {measured.num_items} items in {measured.seconds:.1f} s; "
            f"{clock(elapsed)} elapsed, about {clock(left)} left"
        )

    def say(self, line: str) -> None:
        """Print one line above the bar."""
        say(line, self.console)

    def close(self) -> None:
        """End the bar."""
        self._bar.stop()
