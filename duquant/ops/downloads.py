"""Values on their way from a device to the host: stored while the next are computed.

Two pinned buffers take turns. A copy into one waits for what computes the values, and only then;
the host stores them, in memory or in a file, when it has asked for the next:

    compute   values
    copies    values -> pinned buffer, once they are computed
    host      put(next), then wait for the copy and store what is in the buffer

The values are held until they are copied, so nobody else gets their memory before.
"""

from types import TracebackType
from typing import Protocol

import torch
from torch import Tensor

from duquant.ops import copy_stream
from duquant.ops.copy_stream import CopyStream, Mark


class Store(Protocol):
    """Where values end: a tensor, or one in a file."""

    @property
    def device(self) -> torch.device:
        """Where it lies."""

    def __setitem__(self, where: slice, values: Tensor) -> None:
        """Write entries of the first dimension."""


class Downloads:
    """Stores values of a device, all of them when its ``with`` block ends.

    Args:
        copies: the device's queue for copies; ``None`` where there is none: values are then stored
            at once, as are those that stay on their device.
    """

    def __init__(self, copies: CopyStream | None) -> None:
        self._copies = copies
        self._slots = [_Slot(), _Slot()]

    def __enter__(self) -> "Downloads":
        """Begin."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Store what is left; after an error only wait until no copy needs the buffers."""
        for slot in self._slots:
            slot.finish(stores=error is None)

    def put(self, target: Store, where: slice, values: Tensor) -> None:
        """Write ``values``, which nobody changes any more, into ``target[where]``.

        Args:
            target: where they end.
            where: consecutive entries of the first dimension.
            values: of the shape and dtype of the first ones, or with fewer entries.
        """
        if self._copies is None or values.device.type == "cpu" or target.device.type != "cpu":
            target[where] = values
            return
        free, busy = self._slots
        free.start(self._copies, target, where, values.detach().contiguous())
        busy.finish()
        self._slots = [busy, free]


class _Slot:
    """A pinned buffer and what is on its way through it."""

    def __init__(self) -> None:
        self._buffer: Tensor | None = None
        self._under_way: tuple[Mark, Store, slice, Tensor] | None = None

    def start(self, copies: CopyStream, target: Store, where: slice, values: Tensor) -> None:
        """Ask for a copy of ``values`` into the buffer, which is free."""
        assert self._under_way is None
        if self._buffer is None:
            self._buffer = copy_stream.pinned_memory(values)
        pairs = [(self._buffer[: len(values)], values)]
        mark = copies.copy(pairs, after=copies.computed())
        self._under_way = mark, target, where, values

    def finish(self, *, stores: bool = True) -> None:
        """Wait for the copy, and store what it brought."""
        if self._under_way is None:
            return
        assert self._buffer is not None
        (mark, target, where, values), self._under_way = self._under_way, None
        mark.synchronize()
        if stores:
            target[where] = self._buffer[: len(values)]
