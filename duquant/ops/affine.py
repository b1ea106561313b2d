"""Affine quantization: a row of floats becomes small unsigned integers, one scale, one zero point.

A row is whatever shares a scale: a token of an activation, an output channel of a weight, or a
group of consecutive inputs of an output channel. With ``b`` bits the integers are ``0 … 2**b - 1``
and

    scale = (high - low) / (2**b - 1)        zero = round(-low / scale)
    q     = clamp(round(x / scale) + zero, 0, 2**b - 1)
    x     ≈ (q - zero) * scale

``high`` and ``low`` are the row's extremes times a clip factor: shrinking the range trades a larger
error on a few extremes for a smaller step everywhere. The zero point is an integer but may lie
outside ``0 … 2**b - 1`` (a row without a sign change needs that), up to 1e4, the authors' limit.
From 14 bits on integers go beyond that limit, and 16 bits hold no zero point outside of 15: there
the range of every row includes zero.

*Fake quantization* applies both lines at once and stays in floating point. Rounding ``x / scale``
passes its gradient straight through, so clip factors can be learned (DuQuant, Lin et al. 2024,
section 3.1); they learn through the scale alone, the zero point is a constant to them.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from duquant.ops.straight_through import straight_through

SMALLEST_SCALE = 1e-5
LARGEST_SCALE = 1e4
LARGEST_ZERO = 10_000
WIDE_BITS = 14
"""From this width on a range includes zero."""
UNQUANTIZED_BITS = 16
"""A width of 16 bits means: leave the tensor alone."""


class AffineGrid(NamedTuple):
    """Where the integers of each row lie: ``x = (q - zero) * scale``.

    Attributes:
        scale: step between two neighbouring integers, shape ``(..., rows, 1)``.
        zero: the integer that stands for 0.0, same shape, stored as a float.
    """

    scale: Tensor
    zero: Tensor


def round_straight_through(x: Tensor) -> Tensor:
    """Round to the nearest integer (infinities stay), with the gradient of the identity."""
    return straight_through(x, x.detach().round())


def affine_grid(
    x: Tensor,
    bits: int,
    *,
    symmetric: bool = False,
    clip_high: Tensor | float = 1.0,
    clip_low: Tensor | float = 1.0,
) -> AffineGrid:
    """Choose scale and zero point for every row of ``x``.

    Args:
        x: values, shape ``(..., rows, columns)``; the last dimension shares a scale.
        bits: width of the integers, 2 to 8 in practice.
        symmetric: centre the range on zero instead of fitting both ends.
        clip_high: factor on the row's maximum, a number or a tensor of shape ``(..., rows, 1)``.
        clip_low: factor on the row's minimum, likewise.

    Returns:
        The grid, with ``scale`` and ``zero`` of shape ``(..., rows, 1)``.
    """
    high = clip_high * x.amax(dim=-1, keepdim=True)
    low = clip_low * x.amin(dim=-1, keepdim=True)
    return grid_of_range(high, low, bits, symmetric=symmetric)


def grid_of_range(high: Tensor, low: Tensor, bits: int, *, symmetric: bool = False) -> AffineGrid:
    """The grid of rows whose range, clipped already, is ``low … high``, both ``(..., rows, 1)``."""
    if symmetric:
        largest = torch.maximum(high.abs(), low.abs())
        middle = 2 ** (bits - 1) - 1
        scale = (largest / middle).clamp(SMALLEST_SCALE, LARGEST_SCALE)
        return AffineGrid(scale, torch.full_like(scale, middle))
    if bits >= WIDE_BITS:
        high, low = high.clamp(min=0), low.clamp(max=0)
    scale = ((high - low) / (2**bits - 1)).clamp(SMALLEST_SCALE, LARGEST_SCALE)
    limit = largest_zero(bits)
    zero = (-low / scale).clamp(-limit, limit).round()
    return AffineGrid(scale, zero)


def largest_zero(bits: int) -> int:
    """Largest magnitude of an asymmetric zero point: 1e4, or the last integer if that is more."""
    last: int = 2**bits - 1
    return max(LARGEST_ZERO, last)


def quantize(x: Tensor, grid: AffineGrid, bits: int) -> Tensor:
    """Map ``x`` to the integers of its grid, returned as floats ``0 … 2**bits - 1``."""
    return (round_straight_through(x / grid.scale) + grid.zero).clamp(0, 2**bits - 1)


def dequantize(q: Tensor, grid: AffineGrid) -> Tensor:
    """Map integers back to the values they stand for."""
    return (q - grid.zero) * grid.scale


def fake_quantize(
    x: Tensor,
    bits: int,
    *,
    symmetric: bool = False,
    clip_high: Tensor | float = 1.0,
    clip_low: Tensor | float = 1.0,
) -> Tensor:
    """Quantize and dequantize the rows of ``x``; with 16 bits, return ``x`` itself.

    Args and shapes are those of :func:`affine_grid`. The arithmetic runs in the dtype of ``x``.

    Example:
        >>> fake_quantize(torch.tensor([[0.0, 0.4, 1.0, 3.0]]), bits=2)
        tensor([[0., 0., 1., 3.]])
    """
    if bits >= UNQUANTIZED_BITS:
        return x
    grid = affine_grid(x, bits, symmetric=symmetric, clip_high=clip_high, clip_low=clip_low)
    return dequantize(quantize(x, grid, bits), grid)
