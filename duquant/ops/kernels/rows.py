"""Quantization of rows in C: what LWC spends its time on beside matrix products, and running too.

PyTorch needs some twenty passes over a weight to quantize it and to learn from it, each as slow as
memory; ``fake_quantize.c`` needs three. Values are equal to the last bit; the sums over a row that
make up a gradient are added in another order. Scales and zero points stay PyTorch's: there is one
definition of them, in :mod:`duquant.ops.affine`.

All tensors are contiguous float32 on the CPU.
"""

import ctypes
import functools

import torch
from torch import Tensor

from duquant.ops.affine import AffineGrid, affine_grid, dequantize, grid_of_range, quantize
from duquant.ops.kernels.compiler import load_library
from duquant.ops.quantized_tokens import GRID_BYTES

BYTE = 8
FUNCTIONS = (
    *("row_extremes", "quantize_rows", "quantize_rows_gradient"),
    *("find_in_rows", "encode_rows"),
)


def serves(x: Tensor) -> bool:
    """Whether the kernels can take ``x``, never while a graph is compiled: that has its own."""
    return (
        x.dtype == torch.float32
        and x.device.type == "cpu"
        and x.numel() > 0
        and not torch.compiler.is_compiling()
        and _library() is not None
    )


def row_extremes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Largest and smallest entry of every row of ``(..., rows, columns)``, ``(..., rows, 1)``."""
    high, low = _per_row(x), _per_row(x)
    _call("row_extremes", x, (x, high, low))
    return high, low


def quantize_rows(x: Tensor, grid: AffineGrid, bits: int) -> Tensor:
    """Quantized and dequantized ``x``; the grid's tensors are ``(..., rows, 1)``."""
    out = torch.empty_like(x)
    _call("quantize_rows", x, (x, *grid, out), 2**bits - 1)
    return out


def quantize_rows_gradient(
    x: Tensor, gradient: Tensor, grid: AffineGrid, bits: int, *, wants_input: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Sums that make up the gradient, see the formulas of :mod:`duquant.ops.fake_quantize`.

    Args:
        x: as it was quantized.
        gradient: what arrives at the quantized values.
        grid: scales and zero points.
        bits: width of the integers.
        wants_input: compute the third result.

    Returns:
        ``Σ (x̂ − [inside] x) g`` and ``Σ [outside] g`` of every row, and ``[inside] g``.
    """
    to_scale, clamped = _per_row(x), _per_row(x)
    to_x = torch.empty_like(x) if wants_input else None
    tensors = (x, gradient, *grid, to_scale, clamped, to_x)
    _call("quantize_rows_gradient", x, tensors, 2**bits - 1)
    return to_scale, clamped, to_x


def find_in_rows(x: Tensor, values: Tensor) -> Tensor:
    """First column of each row that holds the row's value; int64 ``(..., rows, 1)``."""
    at = torch.empty_like(values, dtype=torch.int64)
    _call("find_in_rows", x, (x, values, at))
    return at


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def is_available() -> bool:
    """Whether this machine has the kernels; compiles them when asked for the first time."""
    return _library() is not None


def can_encode(x: Tensor, bits: int) -> bool:
    """Whether :func:`encode_rows` takes ``x``."""
    is_float = x.dtype == torch.float32 and x.device.type == "cpu" and x.numel() > 0
    return bool(is_float and bits <= BYTE and is_available())


@torch.library.custom_op("duquant::encode_rows", mutates_args=())
def encode_rows(x: Tensor, bits: int, clip_ratio: float, symmetric: bool) -> Tensor:
    """Quantized rows as :func:`duquant.ops.quantized_tokens.encode_tokens` lays them.

    Args:
        x: ``(..., width)``.
        bits: width of the integers, at most 8.
        clip_ratio: factor on both ends of every row's range.
        symmetric: centre the range on zero.

    Returns:
        ``uint8 (..., width + 6)``.
    """
    x = x.contiguous()
    high, low = row_extremes(x)
    grid = grid_of_range(clip_ratio * high, clip_ratio * low, bits, symmetric=symmetric)
    out = x.new_empty(*x.shape[:-1], x.shape[-1] + GRID_BYTES, dtype=torch.uint8)
    _call("encode_rows", x, (x, *grid, out), 2**bits - 1)
    return out


@encode_rows.register_fake
def _(x: Tensor, bits: int, clip_ratio: float, symmetric: bool) -> Tensor:
    return x.new_empty(*x.shape[:-1], x.shape[-1] + GRID_BYTES, dtype=torch.uint8)


def _per_row(x: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], 1)


def _call(name: str, x: Tensor, tensors: tuple[Tensor | None, ...], *numbers: float) -> None:
    library = _library()
    assert library is not None
    columns = x.shape[-1]
    pointers = [None if t is None else ctypes.c_void_p(t.data_ptr()) for t in tensors]
    sizes = [ctypes.c_int64(x.numel() // columns), ctypes.c_int64(columns)]
    floats = [ctypes.c_float(number) for number in numbers]
    getattr(library, name)(*pointers, *sizes, *floats, ctypes.c_int(torch.get_num_threads()))


@functools.cache
def _library() -> ctypes.CDLL | None:
    return load_library("fake_quantize", _is_right)


def _is_right(library: ctypes.CDLL) -> bool:
    """Compare one small row with plain arithmetic; all functions must be there."""
    x = torch.linspace(-3, 5, 77, device="cpu").square().reshape(7, 11) - 4
    grid, out = affine_grid(x, 4, clip_high=0.8, clip_low=0.7), torch.empty_like(x)
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (x, *grid, out)]
    sizes = [ctypes.c_int64(size) for size in x.shape]
    library.quantize_rows(*pointers, *sizes, ctypes.c_float(15), ctypes.c_int(1))
    has_all = all(getattr(library, name) for name in FUNCTIONS)
    return has_all and torch.equal(out, dequantize(quantize(x, grid, 4), grid))
