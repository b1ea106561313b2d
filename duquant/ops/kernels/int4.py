"""The C kernel for packed 4-bit weights.

PyTorch's int8 products need weights of a byte each, laid out beforehand. ``int4_linear.c`` reads
the packed weights as they lie in the file, half a byte each: nothing is laid out, nothing is kept
twice, and decoding, which waits for memory, waits half as long. Sums are corrected, scaled and
converted while they are still in the cache. Where the kernel is missing, or fails its own test,
PyTorch's products serve.
"""

import ctypes
import functools

import torch
from torch import Tensor

from duquant.ops.affine import AffineGrid
from duquant.ops.kernels.compiler import load_library
from duquant.ops.packing import pack
from duquant.ops.quantized_tokens import GRID_BYTES, encode_tokens

OFFSET = 8
"""The kernel multiplies by weights minus this: signed 4-bit integers."""
LARGEST_ACTIVATION = 127


class _Output(ctypes.Structure):
    """Where results go and what they are multiplied by, as the C source has it."""

    _fields_ = (
        *[(name, ctypes.c_void_p) for name in ("scale", "zero", "sums", "bias", "to")],
        *[(name, ctypes.c_int64) for name in ("rows", "is_bfloat16")],
    )


def is_available() -> bool:
    """Whether this machine has the kernel; compiles it when asked for the first time."""
    return _library() is not None


@torch.library.custom_op("duquant::int4_product", mutates_args=())
def int4_product(q: Tensor, packed: Tensor, largest: int) -> Tensor:
    """Exact products of activations with packed weights.

    Args:
        q: integers ``0 … largest``, ``uint8 (rows, in)``, ``in`` even.
        packed: ``uint8 (out, in / 2)`` as :func:`duquant.ops.packing.pack` lays 4 bits.
        largest: at most 127.

    Returns:
        ``Σ q · (w − 8)``, float32 ``(rows, out)``; exact below ``2**24``.
    """
    library = _library()
    assert library is not None
    assert packed.shape[1] * 2 == q.shape[1]
    product = q.new_empty(q.shape[0], packed.shape[0], dtype=torch.float32)
    _run(library, q, packed, largest, product)
    return product


@int4_product.register_fake
def _(q: Tensor, packed: Tensor, largest: int) -> Tensor:
    return q.new_empty(q.shape[0], packed.shape[0], dtype=torch.float32)


@torch.library.custom_op("duquant::int4_linear", mutates_args=())
def int4_linear(
    tokens: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero: Tensor,
    sums: Tensor,
    bias: Tensor | None,
    largest: int,
    dtype: torch.dtype,
) -> Tensor:
    """A linear layer of encoded tokens, by the formula of :mod:`duquant.ops.integer_product`.

    Args:
        tokens: rows of :mod:`duquant.ops.quantized_tokens`, ``uint8 (rows, in + 6)``, ``in`` even.
        packed: ``uint8 (out, in / 2)``.
        scale: ``s_w`` of every weight row, float32 ``(out,)``.
        zero: ``z'_w``, likewise.
        sums: ``Σ (q'_w − z'_w)``, likewise.
        bias: likewise, or ``None``.
        largest: largest integer of a token, at most 127.
        dtype: of the result, float32 or bfloat16.

    Returns:
        ``(rows, out)``.
    """
    library = _library()
    assert library is not None
    assert packed.shape[1] * 2 == tokens.shape[1] - GRID_BYTES
    output = tokens.new_empty(tokens.shape[0], packed.shape[0], dtype=dtype)
    rows = [None if row is None else row.float().contiguous() for row in (scale, zero, sums, bias)]
    assert all(row is None or row.shape == (packed.shape[0],) for row in rows)
    _run(library, tokens, packed, largest, output, rows)
    return output


@int4_linear.register_fake
def _(
    tokens: Tensor,
    packed: Tensor,
    scale: Tensor,
    zero: Tensor,
    sums: Tensor,
    bias: Tensor | None,
    largest: int,
    dtype: torch.dtype,
) -> Tensor:
    return tokens.new_empty(tokens.shape[0], packed.shape[0], dtype=dtype)


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
    assert output.dtype in (torch.float32, torch.bfloat16)
    assert 1 <= largest <= LARGEST_ACTIVATION
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
    rows, out, columns = 7, 11, 2306
    counted = torch.arange(columns, device="cpu")
    q = torch.full((rows, columns), LARGEST_ACTIVATION, dtype=torch.uint8, device="cpu")
    w = torch.full((out, columns), 15, dtype=torch.uint8, device="cpu")
    q[1::2], w[1] = counted.remainder(16), counted.remainder(15)
    packed = pack(w, 4)
    expected = q.long() @ (w.long() - OFFSET).T
    product, scaled = (torch.empty(rows, out, device="cpu") for _ in range(2))
    _run(library, q, packed, LARGEST_ACTIVATION, product)
    zero = counted[:rows].unsqueeze(1)
    tokens = encode_tokens(q, AffineGrid(torch.full_like(zero, 0.5, dtype=torch.float32), zero))
    ones, zeros = torch.ones(out, device="cpu"), torch.zeros(out, device="cpu")
    _run(library, tokens, packed, LARGEST_ACTIVATION, scaled, [ones, zeros, ones, ones])
    corrected = (expected - zero) * 0.5 + 1
    return torch.equal(product.long(), expected) and torch.equal(scaled, corrected)
