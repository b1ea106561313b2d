"""Which dtypes the emulated device has: all, unless a scenario takes one away."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_missing: list[torch.dtype] = []


@contextmanager
def without(dtype: torch.dtype) -> Iterator[None]:
    """Meanwhile refuse tensors of a dtype, as MPS does those of float64."""
    _missing.append(dtype)
    try:
        yield
    finally:
        _missing.remove(dtype)


def require(dtype: torch.dtype) -> None:
    """Refuse what the device does not have."""
    if dtype in _missing:
        raise TypeError(f"the device has no {dtype}")
