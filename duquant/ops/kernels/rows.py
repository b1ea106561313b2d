"""Quantization of rows in C: what LWC spends its time on beside matrix products, and running too.

PyTorch needs some twenty passes over a weight to quantize it and to learn from it, each as slow as
memory; ``fake_quantize.c`` needs three. Values are equal to the last bit; the sums over a row that
make up a gradient are added in another order. Scales and zero points stay PyTorch's: there is one
definition of them, in :mod:`duquant.ops.affine`.

They take float32 on the CPU; the operators' definitions do the rest.
"""

import ctypes
import functools

import torch
from torch import Tensor

from duquant.ops.affine import AffineGrid, affine_grid, dequantize, grid_of_range, quantize
from duquant.ops.fake_quantize import Quantized, clipped_grid, quantize_in_steps
from duquant.ops.kernels.compiler import load_library
from duquant.ops.precision import widen
from duquant.ops.quantized_tokens import GRID_BYTES, quantize_tokens_in_steps
from duquant.ops.rows_gradient import RowGradients, gradient_in_steps, nothing_for_input, per_row

BYTE = 8
FUNCTIONS = (
    *("row_extremes", "quantize_rows", "quantize_rows_gradient"),
    *("find_in_rows", "encode_rows"),
)


def fake_quantize_rows(
    x: Tensor,
    clip_high: Tensor | None,
    clip_low: Tensor | None,
    high_ratio: float,
    low_ratio: float,
    bits: int,
    symmetric: bool,
    zero_point_gradient: bool,
) -> Quantized:
    """:func:`duquant.ops.fake_quantize.quantize_in_steps` on a processor."""
    clips, ratios = (clip_high, clip_low), (high_ratio, low_ratio)
    if not _takes(x):
        return quantize_in_steps(x, *clips, *ratios, bits, symmetric, zero_point_gradient)
    x = x.contiguous()
    extremes = row_extremes(x)
    grid = clipped_grid(*extremes, clips, ratios, bits, symmetric)
    return quantize_rows(x, grid, bits), *extremes, *grid


def quantize_rows_gradient(
    x: Tensor,
    grad: Tensor,
    highest: Tensor,
    lowest: Tensor,
    scale: Tensor,
    zero: Tensor,
    bits: int,
    wants_input: bool,
) -> RowGradients:
    """:func:`duquant.ops.rows_gradient.gradient_in_steps` on a processor."""
    if not _takes(x):
        return gradient_in_steps(x, grad, highest, lowest, scale, zero, bits, wants_input)
    x, grad = x.contiguous(), grad.contiguous()
    to_scale, clamped = per_row(x), per_row(x)
    to_x = torch.empty_like(x) if wants_input else None
    _call("quantize_rows_gradient", x, (x, grad, scale, zero, to_scale, clamped, to_x), bits)
    if to_x is None:
        return to_scale, clamped, *nothing_for_input(x)
    return to_scale, clamped, to_x, find_in_rows(x, highest), find_in_rows(x, lowest)


def quantize_tokens(
    x: Tensor, bits: int, clip_ratio: float, clip_ends: Tensor | None, symmetric: bool
) -> Tensor:
    """:func:`duquant.ops.quantized_tokens.quantize_tokens_in_steps` on a processor."""
    x = widen(x)
    if bits > BYTE or not _takes(x):
        return quantize_tokens_in_steps(x, bits, clip_ratio, clip_ends, symmetric)
    x = x.contiguous()
    high, low = row_extremes(x)
    of_high, of_low = (clip_ratio, clip_ratio) if clip_ends is None else clip_ends
    grid = grid_of_range(of_high * high, of_low * low, bits, symmetric=symmetric)
    out = x.new_empty(*x.shape[:-1], x.shape[-1] + GRID_BYTES, dtype=torch.uint8)
    _call("encode_rows", x, (x, *grid, out), bits)
    return out


def row_extremes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Largest and smallest entry of every row of ``(..., rows, columns)``, ``(..., rows, 1)``."""
    high, low = per_row(x), per_row(x)
    _call("row_extremes", x, (x, high, low))
    return high, low


def quantize_rows(x: Tensor, grid: AffineGrid, bits: int) -> Tensor:
    """Quantized and dequantized ``x``; the grid's tensors are ``(..., rows, 1)``."""
    out = torch.empty_like(x)
    _call("quantize_rows", x, (x, *grid, out), bits)
    return out


def find_in_rows(x: Tensor, values: Tensor) -> Tensor:
    """First column of each row that holds the row's value; int64 ``(..., rows, 1)``."""
    at = torch.empty_like(values, dtype=torch.int64)
    _call("find_in_rows", x, (x, values, at))
    return at


def is_available() -> bool:
    """Whether this machine has the kernels; compiles them when asked for the first time."""
    return _library() is not None


def _takes(x: Tensor) -> bool:
    return x.dtype == torch.float32 and x.numel() > 0 and is_available()


def _call(
    name: str, x: Tensor, tensors: tuple[Tensor | None, ...], bits: int | None = None
) -> None:
    library = _library()
    assert library is not None
    columns = x.shape[-1]
    pointers = [None if t is None else ctypes.c_void_p(t.data_ptr()) for t in tensors]
    sizes = [ctypes.c_int64(x.numel() // columns), ctypes.c_int64(columns)]
    largest = [] if bits is None else [ctypes.c_float(2**bits - 1)]
    getattr(library, name)(*pointers, *sizes, *largest, ctypes.c_int(torch.get_num_threads()))


@functools.cache
def _library() -> ctypes.CDLL | None:
    return load_library("fake_quantize", _is_right)


def _is_right(library: ctypes.CDLL) -> bool:
    """Compare one small row with plain arithmetic; all functions must be there."""
    x = torch.linspace(-3, 5, 77, dtype=torch.float32, device="cpu").square().reshape(7, 11) - 4
    grid, out = affine_grid(x, 4, clip_high=0.8, clip_low=0.7), torch.empty_like(x)
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (x, *grid, out)]
    sizes = [ctypes.c_int64(size) for size in x.shape]
    library.quantize_rows(*pointers, *sizes, ctypes.c_float(15), ctypes.c_int(1))
    has_all = all(getattr(library, name) for name in FUNCTIONS)
    return has_all and torch.equal(out, dequantize(quantize(x, grid, 4), grid))
