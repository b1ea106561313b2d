"""Where the largest entries of a product can be, found in small integers.

A rotation search asks at every step for the largest entry among millions, and needs to know exactly
only the few that come near it. ``screen.c`` rounds rows once and the rotation at every step,
multiplies integers, and knows what error this can have made.

All tensors are contiguous on the CPU.
"""

import ctypes
import functools

import torch
from torch import Tensor

from duquant.ops.kernels.compiler import load_library

PLACES = 1 << 12
"""Room for entries, to begin with."""


def serves(rows: Tensor) -> bool:
    """Whether the kernel can screen these rows, ``(searches, n, b)``."""
    if rows.device.type != "cpu" or rows.dtype != torch.float32 or not rows.numel():
        return False
    library = _library()
    return library is not None and rows.shape[-1] % library.columns_at_once() == 0


class RoundedRows:
    """The longest rows of several searches in 8 bits, in the order of their ranking.

    Args:
        rows: float32 ``(searches, n, b)``.
        ranking: int64 ``(searches, n)``, numbers of rows.
    """

    def __init__(self, rows: Tensor, ranking: Tensor) -> None:
        self._rows, self._ranking = rows.contiguous(), ranking.contiguous()
        self._integers = torch.empty_like(self._rows, dtype=torch.int8)
        self._measures = [rows.new_empty(rows.shape[:2]) for _ in range(3)]
        self._start = torch.empty_like(ranking, dtype=torch.int32)
        self._places = torch.empty(PLACES, 3, dtype=torch.int32)
        self.count = 0

    def take(self, count: int) -> None:
        """Round more rows, up to the first ``count`` of every ranking."""
        library = _library()
        assert library is not None
        assert self.count <= count <= self._ranking.shape[1]
        pointers = (self._rows.data_ptr(), self._ranking.data_ptr(), ctypes.byref(self._struct()))
        library.round_rows(*pointers, *self._rows.shape, self.count, count, torch.get_num_threads())
        self.count = count

    def extremes(self, matrices: Tensor, *, both: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Entries of the rows times their search's matrix that may be its largest.

        Args:
            matrices: float32 ``(searches, b, b)``, orthogonal.
            both: search for the largest and for the smallest, not for the largest magnitude.

        Returns:
            Search, place in its ranking and channel of every such entry, in no order; none of a
            search in nothing.
        """
        library = _library()
        assert library is not None
        searches, _, size = self._rows.shape
        assert matrices.shape == (searches, size, size)
        matrices, places = matrices.contiguous(), self._places
        sizes = (*self._rows.shape, self.count, both)
        pointers = (ctypes.byref(self._struct()), matrices.data_ptr())
        room = (places.data_ptr(), len(places), torch.get_num_threads())
        found = library.find_extremes(*pointers, *sizes, *room)
        if found < 0:
            raise MemoryError(f"no memory to search rows of {size} channels")
        if found > len(places):
            self._places = torch.empty(2 * found, 3, dtype=torch.int32)
            return self.extremes(matrices, both=both)
        search, place, channel = places[:found].long().unbind(dim=1)
        return search, place, channel

    def _struct(self) -> "_Rows":
        tensors = (self._integers, *self._measures, self._start)
        return _Rows(*[tensor.data_ptr() for tensor in tensors])


class _Rows(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_void_p) for name in ("integers", "scale", "residual", "norm", "start")
    ]


@functools.cache
def _library() -> ctypes.CDLL | None:
    library = load_library("screen")
    if library is None:
        return None
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    library.round_rows.argtypes = [*[pointer] * 3, *[size] * 5, ctypes.c_int]
    library.round_rows.restype = None
    library.find_extremes.argtypes = [*[pointer] * 2, *[size] * 4, ctypes.c_int]
    library.find_extremes.argtypes += [pointer, size, ctypes.c_int]
    library.find_extremes.restype = size
    return library
