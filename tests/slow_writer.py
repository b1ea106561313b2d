"""A fit whose writing thread is killed at work, as a script: ``slow_writer.py NUMBER fit …``.

Before or behind its NUMBER-th rename the thread waits until the run can go no further without it,
then SIGKILL ends the process: all that the run could do ahead of its files is done, and they are
not there. A rename has two such moments, so even numbers are before one, odd ones behind it.
"""

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import cli
from duquant import atomic_files, write_behind
from duquant.data import stream_files

PATIENCE = 60.0
"""Seconds; only a run that goes on without its files needs them."""


class SlowWriter(write_behind.WriteBehind):
    """Tells when somebody waits for it."""

    waited_for = threading.Event()

    def _finish(self) -> BaseException | None:
        if self._pending:
            self.waited_for.set()
        error = super()._finish()
        self.waited_for.clear()
        return error


class Killer:
    """Counts the moments of the writing threads, and ends the process in one."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.count = 0
        self._counting = threading.Lock()
        self._publish = atomic_files.publish

    def publish(self, path: Path) -> None:
        """What every file is put in its place by."""
        self._step()
        self._publish(path)
        self._step()

    def _step(self) -> None:
        if not threading.current_thread().name.startswith("write-behind"):
            return
        with self._counting:
            self.count += 1
            if self.count - 1 == self.at:
                SlowWriter.waited_for.wait(PATIENCE)
                os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Run the command line with such a thread; says how many moments there were."""
    killer: Any = Killer(int(sys.argv.pop(1)))
    for module in (atomic_files, stream_files):
        module.publish = killer.publish  # type: ignore[attr-defined]
    for name in ("defaults", "tensorboard_views", "block_progression", "preflight"):
        vars(sys.modules[f"callbacks.{name}"])["WriteBehind"] = SlowWriter
    cli.main()
    print(f"moments: {killer.count}", file=sys.stderr)


if __name__ == "__main__":
    main()
