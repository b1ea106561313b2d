"""Measured times in the user's cache directory, beside the compiled kernels: a small file each.

A file holds what was measured, on which machine and with how many threads; its name is a digest of
that. What is damaged, of another version or of something else is measured again and replaced. That
the machine was too busy to measure is kept too: results do not change on the day when it is not.
Where a candidate failed, nothing is kept: perhaps memory was short that day.
While one process measures, others wait for its file, so that all processes of a job decide alike
and none disturbs the clock of another. To measure again, delete the files ``times-*.json``.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from duquant.atomic_files import write_json
from duquant.json_files import read_json
from duquant.nn.choice import Times
from duquant.ops.integer_weight import ROW_COUNTS
from duquant.ops.kernels.library_cache import cache_directory
from duquant.ops.turns import Timing

VERSION = 2
"""To be raised when a kernel or what is measured changes."""
SECONDS_TO_WAIT = 20.0
"""For another process that measures; then this one measures beside it."""

logger = logging.getLogger(__name__)


class _Kept(TypedDict):
    version: int
    measured: dict[str, Any]
    seconds: dict[str, list[list[float]]]


def kept_times(
    measured: Mapping[str, Any], names: Sequence[str], measure: Callable[[], Times]
) -> Times:
    """Times from the cache, or measured now and put there.

    Args:
        measured: plain values that say what, where and how.
        names: the candidates, whose times there must be.
        measure: takes the times.
    """
    try:
        directory = cache_directory()
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home directory
        logger.info("measured times are not kept: %s", error)
        return measure()
    identity = {**measured, "candidates": list(names), "tokens": list(ROW_COUNTS)}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    path = directory / f"times-{digest[:16]}.json"
    kept = _read(path, identity)
    if kept is not None:
        return kept
    with _alone(directory):
        kept = _read(path, identity)  # another process may have measured meanwhile
        if kept is not None:
            return kept
        times = measure()
        if not all(times.values()):
            return times
        seconds = {name: [list(timing) for timing in each] for name, each in times.items()}
        try:
            write_json(path, {"version": VERSION, "measured": identity, "seconds": seconds})
        except OSError as error:
            logger.info("measured times are not kept: %s", error)
        return times


def _read(path: Path, identity: Mapping[str, Any]) -> Times | None:
    try:
        kept = read_json(path, _Kept)
    except ValueError:
        return None
    is_same = kept["version"] == VERSION and kept["measured"] == identity
    seconds = kept["seconds"]
    if not is_same or (seconds and sorted(seconds) != sorted(identity["candidates"])):
        return None
    timings = [timing for each in seconds.values() for timing in each]
    has_all = all(len(each) == len(ROW_COUNTS) for each in seconds.values())
    is_sound = all(len(timing) == len(Timing._fields) and min(timing) > 0 for timing in timings)
    return seconds if has_all and is_sound else None


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Hold the lock of a directory; without one where that takes too long or is impossible."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            file = stack.enter_context((directory / "times.lock").open("a"))
            end = time.monotonic() + SECONDS_TO_WAIT
            while not _locked(file.fileno()) and time.monotonic() < end:
                time.sleep(0.02)
        yield


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
