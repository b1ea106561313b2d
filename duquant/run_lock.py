"""One command at a time writes into a directory: a run, an evaluation, a bench, a model.

The lock is the kernel's (``flock``, on POSIX systems, across machines too where their file system
shares locks): it goes when its process ends, however that happens, so a killed run never stands in
the way of the next. ``run.lock`` names the process that holds it, and is removed when a run ends by
itself. Of many processes of one job only the first locks, for all of them.
"""

import errno
import fcntl
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO

LOCK_FILE = "run.lock"
HELD = {errno.EAGAIN, errno.EACCES}
"""What a system answers where another process holds the lock."""


class RunLock:
    """The right to write into a directory; as a context manager it is given back at the end.

    Args:
        directory: the directory.
        is_owner: whether this process locks at all, as one of many of a job does.
    """

    def __init__(self, directory: Path, is_owner: bool = True) -> None:
        self.path = directory / LOCK_FILE
        self.is_owner = is_owner
        self._file: IO[str] | None = None

    def acquire(self) -> None:
        """Take the lock; the directory is made if it is not there.

        Raises:
            ValueError: if another run holds it, naming the directory and that run's process.
        """
        if not self.is_owner:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while self._file is None:
            file = self.path.open("a+", encoding="utf-8")
            try:
                self._lock(file)
            except BaseException:
                file.close()
                raise
            if self._is_at_path(file):
                self._file = file
            else:  # removed by the run that held it, after it was opened here
                file.close()
        self._file.truncate(0)
        self._file.write(f"process {os.getpid()} on {platform.node()}\n")
        self._file.flush()

    def release(self) -> None:
        """Give the lock back."""
        if self._file is None:
            return
        try:
            if self._is_at_path(self._file):
                self.path.unlink()
        finally:
            self._file.close()
            self._file = None

    def __enter__(self) -> "RunLock":
        """Nothing is locked yet: see :meth:`acquire`."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Release the lock if it was taken."""
        self.release()

    def _lock(self, file: IO[str]) -> None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in HELD:
                file.seek(0)
                holder = file.readline(200).strip()
                raise ValueError(
                    f"another run is writing into {self.path.parent}"
                    f"{f' ({holder})' if holder else ''}: wait for its end, or choose another "
                    f"output_dir"
                ) from error
            logging.getLogger(__name__).warning(
                "%s cannot be locked (%s): start no second run in it", self.path.parent, error
            )

    def _is_at_path(self, file: IO[str]) -> bool:
        try:
            return os.path.samestat(os.fstat(file.fileno()), self.path.stat())
        except FileNotFoundError:
            return False


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold a directory's lock.

    Raises:
        ValueError: as :meth:`RunLock.acquire`.
    """
    with RunLock(directory) as lock:
        lock.acquire()
        yield
