"""Files that cannot be written: which one, why, and what helps.

An ``OSError`` of a full disk names no file, safetensors hides the reason in its text, and
``torch.save`` speaks of positions instead. What fails inside of :func:`naming` ends as one
:class:`CannotWriteError`, whoever wrote.
"""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

ANOTHER = "choose another directory"
MORE_ROOM = f"free some space there or {ANOTHER}; what is finished is kept"
DISK = {
    errno.ENOSPC: MORE_ROOM,
    errno.EDQUOT: MORE_ROOM,
    errno.EFBIG: f"raise the limit of a file's size (ulimit -f) or {ANOTHER}",
    errno.EROFS: f"its file system is mounted for reading only; {ANOTHER}",
    errno.EIO: f"look for the disk's fault in the system's log, or {ANOTHER}",
}
"""Remedies for what is wrong with a disk, whichever file shows it."""
REMEDIES = {
    **DISK,
    errno.EACCES: f"change the permissions there or {ANOTHER}",
    errno.EPERM: f"change the permissions there or {ANOTHER}",
    errno.ENOENT: "its directory is gone; leave it alone while a command runs",
    errno.ENOTDIR: f"a file stands where its directory should be; {ANOTHER}",
    errno.EEXIST: f"a file stands where its directory should be; {ANOTHER}",
    errno.EISDIR: "a directory stands in its place; move that away",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ESTALE: "the file server has lost it; the same command continues",
    errno.EMFILE: "allow more open files (ulimit -n)",
}
PROBE_BYTES = 1 << 20


class CannotWriteError(OSError):
    """A file could not be written; the message names it, the reason and a remedy."""


@contextmanager
def naming(path: Path, written: Path | None = None) -> Iterator[None]:
    """Let whatever fails to write ``path`` say so.

    Args:
        path: the file that is meant.
        written: where its bytes go, if that is another.

    Raises:
        CannotWriteError: naming ``path``, in one line.
    """
    try:
        yield
    except CannotWriteError:
        raise
    except OSError as error:
        if error.errno is None:
            raise
        raise _explained(path, error.errno) from error
    except (RuntimeError, SafetensorError) as error:
        number = _hidden_number(error, written or path)
        if number is None:
            raise
        raise _explained(path, number) from error


@contextmanager
def naming_full_disks(directory: Path) -> Iterator[None]:
    """Let a disk's error that names no file name the directory that all files go to.

    Raises:
        CannotWriteError: in its place.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in DISK or isinstance(error, CannotWriteError):
            raise
        place = error.filename or f"a file in {directory}"
        raise _explained(place, error.errno) from error


def _explained(path: Path | str, number: int) -> CannotWriteError:
    remedy = REMEDIES.get(number)
    reason = os.strerror(number) + (f": {remedy}" if remedy else "")
    explained = CannotWriteError(f"{path} cannot be written: {reason}")
    explained.errno = number
    return explained


def _hidden_number(error: Exception, path: Path) -> int | None:
    """Error number of a library that does not tell it: the file system is asked once more."""
    told = re.search(r"\(os error (\d+)\)", str(error))
    if told:
        return int(told[1])
    try:
        with path.open("ab") as opened:
            opened.write(bytes(PROBE_BYTES))
            opened.flush()
            os.fsync(opened.fileno())
    except OSError as refused:
        return refused.errno
    return None
