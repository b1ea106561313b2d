"""Writing behind: one thread writes files in the order they were handed over; the run goes on.

What was handed over is on disk once :meth:`WriteBehind.wait` has returned, and only then may
anything say so or replace what it stands for. A job that fails stops those behind it, and its error
comes up in the thread that hands over the next one or waits.

There is no limit to what is held in memory meanwhile. Who hands over sees to that, by waiting
before the next one is ready.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from duquant.terminal import note
from duquant.write_errors import CannotWriteError


@contextmanager
def writing_behind() -> Iterator["WriteBehind"]:
    """A thread that has done its jobs when the block is left.

    Raises:
        BaseException: what a job raised.
    """
    writer = WriteBehind()
    try:
        yield writer
    except BaseException as exception:
        writer.end(exception)
        raise
    writer.wait()


class WriteBehind:
    """A thread that does jobs one after the other."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="write-behind")
        self._pending: deque[Future[None]] = deque()
        self._error: BaseException | None = None

    def submit(self, job: Callable[[], object]) -> None:
        """Hand over a job, whose data nobody changes until it is done.

        Raises:
            BaseException: what an earlier job raised; then this one is not taken.
        """
        if self._error is not None:
            self.wait()
        self._pending.append(self._executor.submit(self._do, job))

    def wait(self) -> None:
        """Return when all jobs are done.

        Raises:
            BaseException: what a job raised; those behind it were left out.
        """
        error = self._finish()
        if error is not None:
            raise error

    def end(self, exception: BaseException) -> None:
        """Return when all jobs are done, in a run that ends with ``exception``.

        A warning tells of a job that failed, unless a file that cannot be written ends the run.
        """
        error = self._finish()
        if error is not None and not isinstance(exception, CannotWriteError):
            note(f"warning: {error}")

    def _finish(self) -> BaseException | None:
        while self._pending:
            self._pending[0].result()
            self._pending.popleft()
        error, self._error = self._error, None
        return error

    def _do(self, job: Callable[[], object]) -> None:
        if self._error is None:
            try:
                job()
            except BaseException as error:
                self._error = error
