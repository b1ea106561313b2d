"""One failure, one message: whichever of many processes fails, the job says why once and ends.

A process that fails claims the word in the job's key-value store before it ends. The others notice
when their connection to it breaks, find the word taken, and end without one. A process that was
killed cannot speak; then the first to notice does.

Gloo breaks a connection when its other end is gone. NCCL does not always, and neither does for a
machine without power: a process may wait in a collective operation until its time is over. So each
has a thread that counts in the store while the process lives, and looks whether the word was taken,
the store is gone, or the next process counts no more; then it ends its process. The store is
process 0's: if its machine loses power, nobody notices before the time is over.
"""

import os
import socket
import threading
from collections.abc import Callable, Iterable
from datetime import timedelta
from subprocess import Popen

from torch import distributed
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from duquant.interruption import how_to_continue
from duquant.terminal import complain

KEY = "duquant/failed"
ALIVE = "duquant/alive/{}"
"""Where a process counts, by its rank."""
LEFT = "left"
"""What stands there once it needs the others no more."""
PATIENCE = timedelta(seconds=5)
"""From one look, and one count, to the next."""
SILENCE = 24
"""Looks, two minutes, in which a process that lives has counted. They are counted, not timed: a
machine may be halted with all that runs on it."""
LOST = ("gloo", "NCCL communicator")
"""What errors of a lost connection name that are of no class of their own."""

_speaking = threading.Lock()


def claim_the_word(speaker: str | None = None) -> bool:
    """Whether ``speaker`` is the first to report a failure; asking twice changes nothing.

    Args:
        speaker: who asks (default: this process). Without a job, everyone may speak.
    """
    if not distributed.is_available() or not distributed.is_initialized():
        return True
    name = speaker or f"process {distributed.get_rank()}"
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        with socket.create_connection((address, port), PATIENCE.total_seconds()):
            pass  # the store would try for long, and say so
        store = TCPStore(address, port, is_master=False, timeout=PATIENCE)
        return bool(store.compare_set(KEY, "", name).decode() == name)
    except (OSError, RuntimeError):  # the store is process 0's, which was killed
        return True


def speak_once(message: str, speaker: str | None = None) -> None:
    """Say in one line why the job fails, unless it was said; returns when it has been said.

    Args:
        message: what is wrong.
        speaker: as for :func:`claim_the_word`.
    """
    with _speaking:  # a thread that has the word must be heard before another ends the process
        if claim_the_word(speaker):
            complain(message)


def is_lost_connection(error: BaseException) -> bool:
    """Whether an error only says that another process is gone."""
    return isinstance(error, distributed.DistError) or any(name in str(error) for name in LOST)


def end_with_the_others(
    rank: int, count: int, leave: Callable[[int], object] = os._exit
) -> threading.Event:
    """Watch from now on whether another process of this job has failed, and leave behind it.

    Args:
        rank: of this process, which the one before it watches from now on.
        count: number of processes.
        leave: ends this process with a status.

    Returns:
        What ends the watch once it is set.
    """
    is_over = threading.Event()
    watcher = (rank, count, leave, is_over)
    threading.Thread(target=_leave_behind_others, args=watcher, daemon=True).start()
    return is_over


def _leave_behind_others(
    rank: int, count: int, leave: Callable[[int], object], is_over: threading.Event
) -> None:
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        store = TCPStore(address, port, is_master=False, timeout=PATIENCE)
        must_speak = _wait_for_failure(store, rank, count, is_over)
    except (OSError, RuntimeError):  # the store is process 0's
        must_speak = True
    if is_over.wait(2 * PATIENCE.total_seconds()):  # who can end by itself does so better
        return
    if must_speak:
        complain(f"lost the connection to another process of this job; {how_to_continue()}")
    leave(2)


def _wait_for_failure(store: TCPStore, rank: int, count: int, is_over: threading.Event) -> bool:
    """Count until another process has failed; whether it is up to this one to say so."""
    own, watched = ALIVE.format(rank), ALIVE.format((rank + 1) % count)
    number, heard, silence = 0, "", 0
    while not store.check([KEY]):
        number += 1
        store.set(own, str(number))
        word = store.get(watched).decode() if store.check([watched]) else ""
        silence = silence + 1 if word == heard != LEFT else 0
        heard = word
        if silence >= SILENCE:
            name = f"process {rank}"
            return bool(store.compare_set(KEY, "", name).decode() == name)
        if is_over.wait(PATIENCE.total_seconds()):
            store.set(own, LEFT)
            break
    return False


def watch(processes: Iterable[Popen[bytes]]) -> None:
    """Report processes started here, with local ranks from 1, the moment one of them is killed."""
    for rank, process in enumerate(processes, start=1):
        threading.Thread(target=_report_killed, args=(process, rank), daemon=True).start()


def _report_killed(process: Popen[bytes], rank: int) -> None:
    status = process.wait()
    if status < 0:
        words = f"process {rank} was killed (signal {-status}); {how_to_continue()}"
        speak_once(words, f"watcher of process {rank}")
