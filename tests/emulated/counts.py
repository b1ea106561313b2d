"""What was asked of the emulated device, counted while somebody wants to know."""

import collections
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OWN = ("counts.py", "device.py", "backend.py", "queues.py")
"""Files of this folder through which every operation passes."""


@dataclass
class Counts:
    """What was asked of the device.

    Attributes:
        kernels: by the operation's name.
        waits: by the place that waited, ``file:line operation``.
        uploads: likewise; copies that the host waits for.
        marks: waits for one place in a queue, not for all that was asked for.
        unordered: likewise, what CUDA may compute in another order the next time.
    """

    kernels: collections.Counter[str] = field(default_factory=collections.Counter)
    waits: collections.Counter[str] = field(default_factory=collections.Counter)
    uploads: collections.Counter[str] = field(default_factory=collections.Counter)
    unordered: collections.Counter[str] = field(default_factory=collections.Counter)
    marks: collections.Counter[str] = field(default_factory=collections.Counter)

    def totals(self) -> dict[str, Any]:
        """The sums, and where the host waited."""
        return {
            "kernels": self.kernels.total(),
            "waits": self.waits.total(),
            "uploads": self.uploads.total(),
            "marks": self.marks.total(),
            "waited_at": {place: count for place, count in self.waits.items() if count},
            "unordered": {place: count for place, count in self.unordered.items() if count},
        }


_counting: list[Counts] = []


@contextmanager
def counting() -> Iterator[Counts]:
    """Count what is asked of the device meanwhile, by all threads."""
    counts = Counts()
    _counting.append(counts)
    try:
        yield counts
    finally:
        _counting.remove(counts)


def record(
    operation: str, *, is_kernel: bool, waits: bool, uploads: bool, is_ordered: bool = True
) -> None:
    """Count one operation."""
    if not _counting:
        return
    place = f"{_place()} {operation}" if waits or uploads or not is_ordered else ""
    for counts in _counting:
        counts.kernels[operation] += is_kernel
        counts.waits[place] += waits
        counts.uploads[place] += uploads
        counts.unordered[place] += not is_ordered


def record_mark() -> None:
    """Count a wait for a mark."""
    for counts in _counting:
        counts.marks[_place()] += 1


def _place() -> str:
    """The innermost line that is neither PyTorch's nor the device's."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        is_own = file.parent == Path(__file__).parent and file.name in OWN
        if "/torch/" not in str(file) and not is_own:
            return f"{file}:{frame.f_lineno}"
        frame = frame.f_back
    return "a thread of PyTorch"
