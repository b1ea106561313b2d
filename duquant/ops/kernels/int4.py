"""The C kernel for packed 4-bit weights.

PyTorch's int8 products need weights of a byte each, laid out beforehand. ``int4_linear.c`` reads
the packed weights as they lie in the file, half a byte each: nothing is laid out, nothing is kept
twice, and decoding, which waits for memory, waits half as long. Sums are corrected, scaled and
converted while they are still in the cache. Processors with AMX multiply tiles of them.
"""

import ctypes
import functools

import torch
from torch import Tensor

from duquant.ops.affine import AffineGrid
from duquant.ops.kernels.compiler import load_library
from duquant.ops.packed_product import (
    LARGEST_ON_PROCESSORS,
    OFFSET,
    linear_in_steps,
    product_in_steps,
)
from duquant.ops.packing import pack
from duquant.ops.quantized_tokens import GRID_BYTES, encode_tokens

TESTED_ROWS = (3, 40)
"""Few and many: processors with AMX multiply many otherwise."""


class _Output(ctypes.Structure):
    """Where results go and what they are multiplied by, as the C source has it."""

    _fields_ = (
        *[(name, ctypes.c_void_p) for name in ("scale", "zero", "sums", "bias", "to")],
        *[(name, ctypes.c_int64) for name in ("rows", "is_bfloat16")],
    )


def is_available() -> bool:
    """Whether this machine has the kernel; compiles it when asked for the first time."""
    return _library() is not None


def packed_product(q: Tensor, packed: Tensor, largest: int) -> Tensor:
    """:func:`duquant.ops.packed_product.product_in_steps` on a processor."""
    library = _library()
    if library is None or not _takes(q.shape[1], packed, largest):
        return product_in_steps(q, packed, largest)
    product = q.new_empty(q.shape[0], packed.shape[0], dtype=torch.float32)
    _run(library, q, packed, largest, product)
    return product


def packed_linear(
    tokens: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero: Tensor,
    sums: Tensor,
    bias: Tensor | None,
    largest: int,
    dtype: torch.dtype,
) -> Tensor:
    """:func:`duquant.ops.packed_product.linear_in_steps` on a processor."""
    library = _library()
    if library is None or not _takes(tokens.shape[1] - GRID_BYTES, packed, largest):
        return linear_in_steps(tokens, packed, scale, zero, sums, bias, largest, dtype)
    output = tokens.new_empty(tokens.shape[0], packed.shape[0], dtype=_written(dtype))
    rows = [None if row is None else row.float().contiguous() for row in (scale, zero, sums, bias)]
    assert all(row is None or row.shape == (packed.shape[0],) for row in rows)
    _run(library, tokens, packed, largest, output, rows)
    return output.to(dtype)


def _written(dtype: torch.dtype) -> torch.dtype:
    """What C writes for a result of ``dtype``."""
    return dtype if dtype == torch.bfloat16 else torch.float32


def _takes(columns: int, packed: Tensor, largest: int) -> bool:
    return 0 < columns == 2 * packed.shape[1] and 1 <= largest <= LARGEST_ON_PROCESSORS


def _run(
    library: ctypes.CDLL,
    q: Tensor,
    packed: Tensor,
    largest: int,
    output: Tensor,
    rows: list[Tensor | None] | None = None,
) -> None:
    q, packed = q.contiguous(), packed.contiguous()
    assert q.dtype == packed.dtype == torch.uint8
    pointers = [None if row is None else row.data_ptr() for row in rows or [None] * 4]
    to = _Output(*pointers, output.data_ptr(), packed.shape[0], output.dtype == torch.bfloat16)
    sizes = (q.shape[0], 2 * packed.shape[1], largest, torch.get_num_threads())
    if library.int4_linear(q.data_ptr(), q.shape[1], packed.data_ptr(), ctypes.byref(to), *sizes):
        raise MemoryError(f"no memory for the integer product of {tuple(q.shape)} activations")


@functools.cache
def _library() -> ctypes.CDLL | None:
    return load_library("int4_linear", _is_right)


def _is_right(library: ctypes.CDLL) -> bool:
    """Compare small products, integers at their largest, with plain arithmetic."""
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    library.int4_linear.argtypes = [
        *(pointer, size, pointer, ctypes.POINTER(_Output)),
        *(size, size, size, ctypes.c_int),
    ]
    library.int4_linear.restype = ctypes.c_int
    return all(_is_exact(library, rows) for rows in TESTED_ROWS)


def _is_exact(library: ctypes.CDLL, rows: int) -> bool:
    out, columns = 11, 2306
    counted = torch.arange(columns, device="cpu")
    ones = torch.ones(out, dtype=torch.float32, device="cpu")  # an engine may set the default
    q = torch.full((rows, columns), LARGEST_ON_PROCESSORS, dtype=torch.uint8, device="cpu")
    w = torch.full((out, columns), 15, dtype=torch.uint8, device="cpu")
    q[1::2], w[1] = counted.remainder(16), counted.remainder(15)
    packed = pack(w, 4)
    expected = q.long() @ (w.long() - OFFSET).T
    product, scaled = ones.new_empty(rows, out), ones.new_empty(rows, out)
    _run(library, q, packed, LARGEST_ON_PROCESSORS, product)
    zero = counted[:rows].unsqueeze(1)
    tokens = encode_tokens(q, AffineGrid(torch.full_like(zero, 0.5, dtype=torch.float32), zero))
    _run(
        library,
        tokens,
        packed,
        LARGEST_ON_PROCESSORS,
        scaled,
        [ones, torch.zeros_like(ones), ones, ones],
    )
    corrected = (expected - zero).float() * 0.5 + 1
    return torch.equal(product.long(), expected) and torch.equal(scaled, corrected)
