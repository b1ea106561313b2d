"""Progress with the time that is left: a bar on terminals, a line per step elsewhere."""

import time
from types import TracebackType

from rich.console import Console

from duquant.interruption import ToldInterrupt
from duquant.progress_bar import clock, progress_bar
from duquant.terminal import say


class StepProgress:
    """Counts steps of about equal length; a context manager.

    Args:
        what: what is being done, "answering".
        total: steps of the whole job.
        done: steps that an earlier run did; they do not count for the time that is left.
        console: where to print (default: standard error).
    """

    def __init__(
        self, what: str, total: int, done: int = 0, console: Console | None = None
    ) -> None:
        self.what = what
        self.total = total
        self.done = done
        self.console = console or Console(stderr=True)
        self._first = done
        self._bar = progress_bar(self.console, counts_steps=True)

    def __enter__(self) -> "StepProgress":
        """Begin."""
        self._started = time.monotonic()
        if self._first:
            self._say(f"{self._first} of {self.total} are done already")
        self._task = self._bar.add_task(self.what, total=self.total, completed=self._first)
        self._bar.start()
        return self

    def step(self, name: str) -> None:
        """Count one step, called ``name``."""
        self.done += 1
        self._bar.update(self._task, advance=1, description=f"{self.what}: {name}")
        if not self.console.is_terminal:
            elapsed = time.monotonic() - self._started
            left = elapsed / (self.done - self._first) * (self.total - self.done)
            self._say(f"{self.what}: {name}; {self.done}/{self.total}, about {clock(left)} left")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End; after an interruption, say how to continue."""
        self._bar.stop()
        if error is not None:
            kept = f"{self.done} of {self.total} are kept"
            self._say(f"interrupted: {kept}; the same command continues")
        if isinstance(error, KeyboardInterrupt):
            raise ToldInterrupt from None

    def _say(self, line: str) -> None:
        say(line, self.console)
