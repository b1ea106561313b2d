"""The C kernel for what comes after an integer product (``scaled_sums.c``): one pass over it."""

import ctypes
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from duquant.ops.affine import AffineGrid
from duquant.ops.kernels.compiler import load_library
from duquant.ops.quantized_tokens import GRID_BYTES, encode_tokens
from duquant.ops.scaled_sums import scaled_sums_in_steps


class _Output(ctypes.Structure):
    """As the C source has it."""

    _fields_ = (
        *[(name, ctypes.c_void_p) for name in ("scale", "zero", "sums", "bias", "to")],
        *[(name, ctypes.c_int64) for name in ("columns", "is_bfloat16")],
    )


def is_available() -> bool:
    """Whether this machine has the kernel; compiles it when asked for the first time."""
    return _library() is not None


def scaled_sums(
    product: Tensor,
    tokens: Tensor,
    scale: Tensor,
    zero: Tensor,
    sums: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """:func:`duquant.ops.scaled_sums.scaled_sums_in_steps` on a processor."""
    library = _library()
    if library is None or product.dtype != torch.float32:
        return scaled_sums_in_steps(product, tokens, scale, zero, sums, bias, dtype)
    return _run(library, product, tokens, [scale, zero, sums, bias], dtype)


def _run(
    library: ctypes.CDLL,
    product: Tensor,
    tokens: Tensor,
    columns: Sequence[Tensor | None],
    dtype: torch.dtype,
) -> Tensor:
    product, tokens = product.contiguous(), tokens.contiguous()
    rows = [None if row is None else row.float().contiguous() for row in columns]
    assert all(row is None or row.shape == product.shape[1:] for row in rows)
    assert tokens.dtype == torch.uint8
    assert len(tokens) == len(product)
    written = dtype if dtype == torch.bfloat16 else torch.float32
    output = torch.empty_like(product, dtype=written)
    pointers = [None if row is None else row.data_ptr() for row in rows]
    to = _Output(*pointers, output.data_ptr(), product.shape[1], written == torch.bfloat16)
    sizes = (tokens.shape[1], tokens.shape[1] - GRID_BYTES)
    library.scale_sums(
        *(product.data_ptr(), tokens.data_ptr(), *sizes),
        *(ctypes.byref(to), len(product), torch.get_num_threads()),
    )
    return output.to(dtype)


@functools.cache
def _library() -> ctypes.CDLL | None:
    return load_library("scaled_sums", _is_right)


def _is_right(library: ctypes.CDLL) -> bool:
    """Compare a few tokens with the operator's definition."""
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    library.scale_sums.argtypes = [
        *(pointer, pointer, size, size),
        *(ctypes.POINTER(_Output), size, ctypes.c_int),
    ]
    library.scale_sums.restype = None
    rows, columns, inputs = 3, 1030, 65
    counted = torch.arange(rows * columns, dtype=torch.float32, device="cpu")
    product = counted.view(rows, columns) * 5 - 7000
    column, row = counted[:columns], counted[:rows].view(rows, 1)
    q = counted[: rows * inputs].view(rows, inputs).remainder(256)
    tokens = encode_tokens(q, AffineGrid(row / 7 + 0.1, row - 1))
    scales = column / 3, column - 8, column * 11, column.remainder(5)
    for dtype in (torch.float32, torch.bfloat16):
        expected = scaled_sums_in_steps(product, tokens, *scales, dtype)
        if not torch.equal(_run(library, product, tokens, scales, dtype), expected):
            return False
    return True
