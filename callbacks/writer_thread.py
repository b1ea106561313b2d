"""TensorBoard writes from a thread of its own, which says of a full disk what is said again.

Its error is kept and raised where the next event is written, so the traceback that Python prints
for a failed thread is too much. Only the last events have nobody after them; of those a line tells.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from duquant.terminal import note


@contextmanager
def quiet_writer_threads() -> Iterator[None]:
    """Print no traceback of TensorBoard's thread; warn if nobody else had its error.

    That holds for the rest of the process: a thread whose directory was removed notices at its next
    flush, which may come after the run.
    """
    failed: list[OSError] = []
    usual = threading.excepthook

    def remember(failure: threading.ExceptHookArgs) -> None:
        is_writer = type(failure.thread).__module__.startswith("tensorboard")
        if is_writer and isinstance(failure.exc_value, OSError):
            failed.append(failure.exc_value)
        else:
            usual(failure)

    threading.excepthook = remember
    yield
    if failed:
        note(f"warning: TensorBoard's last events are lost: {failed[0].strerror}")
