"""Tensors on their way from the host to a device: the next while one is computed with.

Two slots take turns. A slot is a pinned buffer of the host and a buffer of the device; what comes
out of it is a copy that belongs to whoever asked, as long as it is wanted:

    host      fill      wait until the slot's last copy is over, write into the pinned buffer
    copies    pinned -> device buffer, once the last values have been taken from there
    compute   take      wait for the copy, copy out of the device buffer

So the order of a slot is fill, copy, take, fill, … whatever the queues' speed, and the host is two
items ahead of the device at most.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle

import torch
from torch import Tensor

from duquant.ops import copy_stream
from duquant.ops.copy_stream import CopyStream, Mark


def uploaded(
    items: Iterable[Sequence[Tensor]], device: torch.device
) -> Iterator[tuple[Tensor, ...]]:
    """Items on ``device``, in their order; the next is read before one is given out.

    Args:
        items: each the same number of tensors; those on the host have the dtypes and shapes of the
            first item's, or fewer entries in the first dimension.
        device: where they shall lie. On the CPU, and where they lie there already, they are given
            out as they are.
    """
    copies = CopyStream.of(device)
    if copies is None:
        for item in items:
            yield tuple(part.to(device) for part in item)
        return
    slots = _Slot(copies, device), _Slot(copies, device)
    filled: _Slot | None = None
    try:
        for slot, item in zip(cycle(slots), items, strict=False):
            slot.fill(item)
            if filled is not None:
                yield filled.take()
            filled = slot
        if filled is not None:
            yield filled.take()
    finally:
        for slot in slots:
            slot.settle()


class _Slot:
    """Buffers of one item; those of its tensors that lie on the device need none."""

    def __init__(self, copies: CopyStream, device: torch.device) -> None:
        self._copies, self._device = copies, device
        self._item: Sequence[Tensor] = ()
        self._pinned: list[Tensor] = []
        self._staged: list[Tensor] = []
        self._taken: Mark | None = None
        self._copied: Mark | None = None

    def fill(self, item: Sequence[Tensor]) -> None:
        """Ask for an item, whose predecessor was taken."""
        self.settle()  # the pinned buffers have been read
        self._item, hosted = item, [part for part in item if part.device.type == "cpu"]
        if not hosted:
            return
        if self._taken is None:
            self._pinned = [copy_stream.pinned_memory(part) for part in hosted]
            self._staged = [torch.empty_like(part, device=self._device) for part in hosted]
            self._taken = self._copies.computed()  # what had their memory before is over by then
        buffers = zip(self._staged, self._pinned, hosted, strict=True)
        pairs = [(there[: len(part)], here[: len(part)]) for there, here, part in buffers]
        for (_, pinned), part in zip(pairs, hosted, strict=True):
            pinned.copy_(part)
        self._copied = self._copies.copy(pairs, after=self._taken)

    def take(self) -> tuple[Tensor, ...]:
        """The item, on the device."""
        if self._copied is None:
            return tuple(part.to(self._device) for part in self._item)
        self._copies.compute_after(self._copied)
        staged = iter(self._staged)
        found = tuple(
            next(staged)[: len(part)].clone()
            if part.device.type == "cpu"
            else part.to(self._device)
            for part in self._item
        )
        self._taken = self._copies.computed()
        return found

    def settle(self) -> None:
        """Wait until no copy needs the buffers."""
        if self._copied is not None:
            self._copied.wait()
