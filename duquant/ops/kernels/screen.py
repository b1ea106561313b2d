"""Where the largest entries of a product can be, found in small integers.

A rotation search asks at every step for the largest entry among millions, and needs to know exactly
only the few that come near it. ``screen.c`` rounds rows once and the rotation at every step,
multiplies integers, and knows what error this can have made.

All tensors are on the CPU; a row's channels are neighbours, rows may lie anywhere.
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
    if library is None or rows.stride(2) != 1:
        return False
    size = rows.shape[2]
    return bool(size % library.columns_at_once() == 0 and size <= library.largest_size())


class RoundedRows:
    """The longest rows of several searches in 8 bits, in the order of their ranking.

    Args:
        rows: float32 ``(searches, n, b)``, the last dimension contiguous; their largest magnitude
            should be near 1, or squares may overflow or vanish.
        ranking: int64 ``(searches, n)``, numbers of rows.
        library: the kernel, if it is being tried.
    """

    def __init__(self, rows: Tensor, ranking: Tensor, library: ctypes.CDLL | None = None) -> None:
        library = library or _library()
        assert library is not None
        self._library, self._rows, self._ranking = library, rows, ranking.contiguous()
        self._integers = rows.new_empty(rows.shape, dtype=torch.int8)
        self._scale_residual_norm = [rows.new_empty(rows.shape[:2]) for _ in range(3)]
        self._start = torch.empty_like(self._ranking, dtype=torch.int32)
        self._places = torch.empty(PLACES, 3, dtype=torch.int32, device="cpu")
        self.count = 0

    def take(self, count: int) -> None:
        """Round more rows, up to the first ``count`` of every ranking."""
        assert self.count <= count <= self._ranking.shape[1]
        rows = (self._rows.data_ptr(), *self._rows.stride()[:2])
        pointers = (self._ranking.data_ptr(), ctypes.byref(self._struct()))
        sizes = (*self._rows.shape, self.count, count, torch.get_num_threads())
        self._library.round_rows(*rows, *pointers, *sizes)
        self.count = count

    def extremes(self, matrices: Tensor, *, both: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Entries of the rows times their search's matrix that may be its largest.

        Args:
            matrices: float32 ``(searches, b, b)``, orthogonal.
            both: search for the largest and for the smallest, not for the largest magnitude.

        Returns:
            Search, place in its ranking and channel of every such entry, in no order; at least one
            of each search.
        """
        searches, _, size = self._rows.shape
        assert matrices.shape == (searches, size, size)
        matrices, places = matrices.contiguous(), self._places
        sizes = (*self._rows.shape, self.count, both)
        pointers = (ctypes.byref(self._struct()), matrices.data_ptr())
        room = (places.data_ptr(), len(places), torch.get_num_threads())
        found = self._library.find_extremes(*pointers, *sizes, *room)
        if found < 0:
            raise MemoryError(f"no memory to search rows of {size} channels")
        if found > len(places):
            self._places = torch.empty(2 * found, 3, dtype=torch.int32, device="cpu")
            return self.extremes(matrices, both=both)
        search, place, channel = places[:found].long().unbind(dim=1)
        return search, place, channel

    def _struct(self) -> "_Rows":
        tensors = (self._integers, *self._scale_residual_norm, self._start)
        return _Rows(*[tensor.data_ptr() for tensor in tensors])


class _Rows(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_void_p) for name in ("integers", "scale", "residual", "norm", "start")
    ]


@functools.cache
def _library() -> ctypes.CDLL | None:
    return load_library("screen", _is_right)


def _is_right(library: ctypes.CDLL) -> bool:
    """Two extremes among whole numbers that change places: found where they are, and no others."""
    _declare(library)
    size, count = library.columns_at_once(), 19
    rows = torch.arange(count * size, dtype=torch.float32, device="cpu").view(1, count, size) % 50
    rows[0, 7, 3], rows[0, 11, 5] = 127, -126
    ranking = torch.arange(count, device="cpu").flip(0).view(1, count)
    turned = torch.eye(size, device="cpu").roll(1, dims=1)
    rounded = RoundedRows(rows, ranking, library)
    rounded.take(count)
    places = torch.stack(rounded.extremes(turned.unsqueeze(0), both=True), dim=1).tolist()
    fits = size <= library.largest_size()
    return fits and sorted(places) == [[0, count - 1 - 11, 6], [0, count - 1 - 7, 4]]


def _declare(library: ctypes.CDLL) -> None:
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    library.round_rows.argtypes = [pointer, size, size, pointer, pointer, *[size] * 5, ctypes.c_int]
    library.round_rows.restype = None
    library.find_extremes.argtypes = [*[pointer] * 2, *[size] * 4, ctypes.c_int]
    library.find_extremes.argtypes += [pointer, size, ctypes.c_int]
    library.find_extremes.restype = size
