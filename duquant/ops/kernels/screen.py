"""Screening rows in integers of 8 bits, see :mod:`duquant.ops.screen`.

``screen.c`` rounds rows once and the rotation at every step, multiplies integers, and knows what
error this can have made. All tensors are on the CPU; a row's channels are neighbours, rows may lie
anywhere.
"""

import ctypes
import functools

import torch
from torch import Tensor

from duquant.ops.kernels.compiler import load_library
from duquant.ops.screen import screen_in_steps

PLACES = 1 << 12
"""Room for entries, to begin with."""


def is_available() -> bool:
    """Whether this machine has the kernel; compiles it when asked for the first time."""
    return _library() is not None


def screen_rows(
    rows: Tensor, ranking: Tensor, matrices: Tensor, both: bool, prepared: list[Tensor]
) -> list[Tensor]:
    """:func:`duquant.ops.screen.screen_in_steps` on a processor.

    Prepared are the rows' integers, their scales, the norms of what rounding left, the rows' own
    norms and what a product begins with.
    """
    library = _library()
    if library is None or not _takes(library, rows):
        return screen_in_steps(rows, ranking, matrices, both, prepared)
    done = prepared[0].shape[1] if prepared else 0
    if done == ranking.shape[1]:
        return [_find_extremes(library, matrices, both, prepared)]
    state = _round_rows(library, rows, ranking[:, done:].contiguous())
    if prepared:
        state = [torch.cat(parts, dim=1) for parts in zip(prepared, state, strict=True)]
    return [_find_extremes(library, matrices, both, state), *state]


def _takes(library: ctypes.CDLL, rows: Tensor) -> bool:
    if rows.dtype != torch.float32 or not rows.numel() or rows.stride(2) != 1:
        return False
    size = rows.shape[2]
    return bool(size % library.columns_at_once() == 0 and size <= library.largest_size())


def _round_rows(library: ctypes.CDLL, rows: Tensor, ranking: Tensor) -> list[Tensor]:
    searches, _, size = rows.shape
    count = ranking.shape[1]
    integers = rows.new_empty(searches, count, size, dtype=torch.int8)
    scale_residual_norm = [rows.new_empty(searches, count) for _ in range(3)]
    state = [integers, *scale_residual_norm, rows.new_empty(searches, count, dtype=torch.int32)]
    pointers = (ranking.data_ptr(), ctypes.byref(_struct(state)))
    sizes = (searches, count, size, 0, count, torch.get_num_threads())
    library.round_rows(rows.data_ptr(), *rows.stride()[:2], *pointers, *sizes)
    return state


def _find_extremes(
    library: ctypes.CDLL, matrices: Tensor, both: bool, state: list[Tensor], room: int = PLACES
) -> Tensor:
    searches, count, size = state[0].shape
    assert matrices.shape == (searches, size, size)
    matrices = matrices.contiguous()
    places = torch.empty(room, 3, dtype=torch.int32, device="cpu")
    pointers = (ctypes.byref(_struct(state)), matrices.data_ptr())
    sizes = (searches, count, size, count, both)
    found = library.find_extremes(
        *pointers, *sizes, places.data_ptr(), room, torch.get_num_threads()
    )
    if found < 0:
        raise MemoryError(f"no memory to search rows of {size} channels")
    if found > room:
        return _find_extremes(library, matrices, both, state, found)
    return places[:found].long()


def _struct(state: list[Tensor]) -> "_Rows":
    return _Rows(*[tensor.data_ptr() for tensor in state])


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
    turned = torch.eye(size, dtype=torch.float32, device="cpu").roll(1, dims=1)
    state = _round_rows(library, rows, ranking)
    places = _find_extremes(library, turned.unsqueeze(0), True, state).tolist()
    fits = size <= library.largest_size()
    return fits and sorted(places) == [[0, count - 1 - 11, 6], [0, count - 1 - 7, 4]]


def _declare(library: ctypes.CDLL) -> None:
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    library.round_rows.argtypes = [pointer, size, size, pointer, pointer, *[size] * 5, ctypes.c_int]
    library.round_rows.restype = None
    library.find_extremes.argtypes = [*[pointer] * 2, *[size] * 4, ctypes.c_int]
    library.find_extremes.argtypes += [pointer, size, ctypes.c_int]
    library.find_extremes.restype = size
