"""Values on their way from a device to the host: stored while the next are computed.

Two pinned buffers take turns. A copy into one waits for what computes the values, and only then;
the host stores them, in memory or in a file, when it has asked for the next:

    compute   values
    copies    values -> pinned buffer, once they are computed
    host      put(next), then wait for the copy and store what is in the buffer

The values are held until they are copied, so nobody else gets their memory before. Tensors that
are wanted all together, such as those of a block's file, go at once (:func:`downloaded`).
"""

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Protocol

import torch
from torch import Tensor

from duquant.ops import copy_stream
from duquant.ops.copy_stream import CopyStream, Mark

ALIGNMENT = 64
"""Bytes; where a tensor begins in a piece of memory that holds many."""


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
        mark.wait()
        if stores:
            target[where] = self._buffer[: len(values)]


def downloaded(tensors: Mapping[str, Tensor]) -> Callable[[], dict[str, Tensor]]:
    """Ask for tensors in the host's memory; those that lie there stay as they are.

    The host waits only when what is returned is called, perhaps in another thread: that gives all
    of them. Until then whoever asks leaves ``tensors`` as they are.
    """
    found = {name: tensor.detach() for name, tensor in tensors.items()}
    away = {name: x.contiguous() for name, x in found.items() if x.device.type != "cpu"}
    copies = CopyStream.of(next(iter(away.values())).device) if away else None
    if copies is None:
        return lambda: {name: tensor.cpu() for name, tensor in found.items()}
    room = _in_one_piece(away)
    mark = copies.copy([(room[name], away[name]) for name in away], after=copies.computed())

    def fetch() -> dict[str, Tensor]:
        mark.wait()
        away.clear()  # they had to be kept until here
        return found | room

    return fetch


def _in_one_piece(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Pinned room for every tensor; what is pinned is rounded up, so it is pinned at once."""
    sizes = [-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in tensors.values()]
    buffer = copy_stream.pinned_memory(torch.empty(sum(sizes), dtype=torch.uint8, device="meta"))
    pieces = zip(tensors.items(), buffer.split(sizes), strict=True)
    return {
        name: piece[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for (name, tensor), piece in pieces
    }
