"""The emulated device's queues: what it was asked for and has not done yet.

Copies that nobody waits for lie in a queue until a mark is waited for: by the host, or by the queue
that computes. There are two ways in which a device may take its time:

* **late** (the usual one here): computation is never late, and copies always are, as late as marks
  allow. A buffer that is written again too early then holds the wrong values.
* **random**: copies, and clones in the queue that computes, are done in any order that marks allow,
  drawn from a seed, some of them between any two lines of the host.

Memory that is given back goes to whoever computes next, so to computation that was asked for before
it is still there. A queue for copies keeps none alive, as on a GPU: a copy of what the product has
dropped by then brings 88, and a copy into it is noted in ``LOST``.
"""

import random
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tests.emulated.clock import TimedMark
from tests.emulated.counts import record, record_mark
from tests.emulated.pinned import is_pinned, weak

aten = torch.ops.aten
NO_WORK = {aten.detach.default, aten.alias.default, aten.empty_like.default}


class Event(TimedMark):
    """A mark in a queue."""

    def synchronize(self) -> None:
        """Let the host wait for it."""
        record_mark()
        run_until(self)

    def query(self) -> bool:
        """Whether the queue has reached it."""
        return self.is_reached


class Stream:
    """A queue.

    Attributes:
        tasks: what is to be done; an event is reached, or waited for, in its turn.
    """

    def __init__(self, device: Any = None) -> None:
        self.tasks: deque[Callable[[], bool]] = deque()
        ALL.append(self)

    def record_event(self, event: Event | None = None) -> Event:
        """A mark behind what was asked for."""
        event = event or Event()
        self._add(event.reach)
        return event

    def wait_event(self, event: Event) -> None:
        """Do what comes now only when ``event`` is reached."""
        if self is COMPUTING and SCHEDULE.seed is None:
            run_until(event)  # it is never late, so what it waits for is done now
        else:
            self._add(lambda: event.is_reached)

    def ask(self, task: Callable[[], object]) -> None:
        """Do something in its turn."""

        def do() -> bool:
            task()
            return True

        self._add(do)

    def step(self) -> bool:
        """Do the next thing, if there is one and it need not wait."""
        with LOCK:
            if self.tasks and self.tasks[0]():
                self.tasks.popleft()
                return True
            return False

    def _add(self, task: Callable[[], bool]) -> None:
        with LOCK:
            self.tasks.append(task)
            if self is COMPUTING and SCHEDULE.seed is None:
                assert self.step()
        SCHEDULE.dawdle()


class Schedule:
    """When queues do what they are asked for, computation rather than copies or the reverse.

    Attributes:
        seed: of the random orders; ``None``: late copies.
    """

    def __init__(self) -> None:
        self.seed: int | None = None
        self._random = random.Random(0)
        self._most, self._favourite = 0, 0

    def begin(self, seed: int | None) -> None:
        """Draw from ``seed`` from now on."""
        self.seed = seed
        self._random = random.Random(seed)
        self._most = self._random.choice((0, 1, 4))
        self._favourite = self._random.choice((-1, 0, 1))

    def dawdle(self) -> None:
        """The host takes its time, or not."""
        if self.seed is not None:
            for _ in range(self._random.randint(0, self._most)):
                self.step_one()

    def step_one(self) -> bool:
        """Let one queue do one thing."""
        queues = list(ALL)
        if self.seed is not None:
            self._random.shuffle(queues)
            queues.sort(key=lambda queue: self._favourite * (queue is COMPUTING))
        return any(queue.step() for queue in queues)


LOCK = threading.RLock()
"""Of all queues: the thread that writes files asks and waits as well."""
ALL: list[Stream] = []
LOST: list[str] = []
SCHEDULE = Schedule()
COMPUTING = Stream()


class Current(threading.local):
    """In which queue a thread asks.

    Attributes:
        queues: that one last; before it those in which it will ask again.
    """

    def __init__(self) -> None:
        self.queues = [COMPUTING]


CURRENT = Current()


@contextmanager
def stream(queue: Stream) -> Iterator[None]:
    """Ask in another queue meanwhile."""
    CURRENT.queues.append(queue)
    try:
        yield
    finally:
        CURRENT.queues.pop()


@contextmanager
def random_order(seed: int) -> Iterator[None]:
    """Meanwhile do things in random orders that marks allow; what is left is done at the end."""
    SCHEDULE.begin(seed)
    try:
        yield
        drain()
    finally:
        SCHEDULE.begin(None)


def run_until(event: Event) -> None:
    with LOCK:
        while not event.is_reached:
            assert SCHEDULE.step_one(), "a queue waits for what nobody was asked for"


def drain() -> None:
    """Do all that is left."""
    while SCHEDULE.step_one():
        pass


def asked(
    function: Any, numbers: list[Any], options: dict[str, Any], given: tuple[Any, ...]
) -> Tensor | None:
    """What comes of a copy or a clone that is only asked for; ``None`` if it is to be done now.

    Args:
        function: any operation of the device.
        numbers: its arguments, tensors as those of the CPU that hold their numbers.
        options: those with a name.
        given: its arguments as they were given.
    """
    if function.is_view or function in NO_WORK:
        return None
    queue, pair = CURRENT.queues[-1], None
    if function is aten.copy_.default and queue is not COMPUTING:
        non_blocking = options.get("non_blocking", len(numbers) > 2 and numbers[2])
        hosted = [ours for ours, theirs in zip(numbers[:2], given, strict=False) if ours is theirs]
        if non_blocking and len(hosted) == 1 and is_pinned(hosted[0]):
            pair = numbers[0], numbers[1]
    elif function is aten.clone.default and queue is COMPUTING and SCHEDULE.seed is not None:
        pair = torch.full_like(numbers[0], 99), numbers[0]
    if pair is None:
        assert queue is COMPUTING, f"{function} would compute in a queue for copies, or wait there"
        while COMPUTING.tasks:  # what is done now comes behind what was asked for
            assert SCHEDULE.step_one()
        return None
    record(function.name(), is_kernel=True, waits=False, uploads=False)
    queue.ask(_copy(*pair, keeps=queue is COMPUTING))
    return pair[0]


def _copy(target: Tensor, source: Tensor, *, keeps: bool) -> Callable[[], object]:
    if keeps:
        return lambda: target.copy_(source)
    ends = [weak(each) for each in (target, source)]

    def copy() -> None:
        there, here = (end() for end in ends)
        if there is None:
            LOST.append("a copy wrote into memory that was given back")
        else:
            there.copy_(here) if here is not None else there.fill_(88)

    return copy
