"""Several requests at a time, each result as soon as it is there.

Threads that wait for a server are left behind when the run is interrupted: nobody waits for answers
that nobody reads.
"""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Outcome = tuple[Item, Result | None, BaseException | None]


def in_parallel(
    work: Callable[[Item], Result], items: Sequence[Item], parallel: int
) -> Iterator[tuple[Item, Result]]:
    """What work makes of each item, in the order it is done.

    The first error begins no further item. What is being done then is finished and given back, and
    after that the error is raised.

    Args:
        work: called in threads.
        items: what there is to do.
        parallel: calls at a time.
    """
    left: queue.SimpleQueue[Item] = queue.SimpleQueue()
    for item in items:
        left.put(item)
    done: queue.SimpleQueue[Outcome[Item, Result] | None] = queue.SimpleQueue()
    stopped = threading.Event()

    def take_items() -> None:
        while not stopped.is_set():
            try:
                item = left.get_nowait()
            except queue.Empty:
                break
            try:
                done.put((item, work(item), None))
            except BaseException as error:
                stopped.set()
                done.put((item, None, error))
        done.put(None)

    num_working = min(parallel, len(items))
    for _ in range(num_working):
        threading.Thread(target=take_items, daemon=True).start()
    failure: BaseException | None = None
    try:
        while num_working:
            outcome = done.get()
            if outcome is None:
                num_working -= 1
            elif outcome[2] is not None:
                failure = failure or outcome[2]
            else:
                yield outcome[0], outcome[1]  # type: ignore[misc]
    finally:
        stopped.set()
    if failure is not None:
        raise failure
