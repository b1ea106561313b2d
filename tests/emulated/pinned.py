"""Memory of the host that the emulated device reads by itself, and memory that nobody keeps."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

PINNED: list[Tensor] = []
"""All memory that was ever pinned: its addresses are never given to others."""


def pinned_memory(like: Tensor) -> Tensor:
    """Memory of the host that the device knows."""
    PINNED.append(torch.full(like.shape, 77, dtype=like.dtype, device="cpu"))
    return PINNED[-1]


def is_pinned(host: Tensor) -> bool:
    address = host.untyped_storage().data_ptr()
    return any(each.untyped_storage().data_ptr() == address for each in PINNED)


def weak(tensor: Tensor) -> Callable[[], Tensor | None]:
    """A tensor as a queue knows it: ``None`` once the product has dropped it, unless pinned."""
    if is_pinned(tensor):
        return lambda: tensor
    storage = StorageWeakRef(tensor.untyped_storage())
    place = tensor.storage_offset(), tensor.shape, tensor.stride()
    dtype = tensor.dtype

    def found() -> Tensor | None:
        if storage.expired():
            return None
        held = torch.UntypedStorage._new_with_weak_ptr(storage.cdata)  # type: ignore[attr-defined]
        return torch.empty(0, dtype=dtype, device="cpu").set_(held, *place)

    return found
