"""Sums over rows that make up the gradient of :mod:`duquant.ops.fake_quantize`."""

from typing import Any

import torch
from torch import Tensor

from duquant.ops.affine import AffineGrid, dequantize
from duquant.ops.precision import widen

RowGradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""See :func:`gradient_in_steps`."""


def gradient_in_steps(
    x: Tensor,
    grad: Tensor,
    highest: Tensor,
    lowest: Tensor,
    scale: Tensor,
    zero: Tensor,
    bits: int,
    wants_input: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Sums that make up the gradient.

    Args:
        x: as it was quantized, ``(..., rows, columns)``.
        grad: the gradient ``g`` that arrives at the quantized values, in the dtype of ``x``.
        highest: largest entry of every row, ``(..., rows, 1)``.
        lowest: smallest entry.
        scale: of every row.
        zero: zero point of every row.
        bits: width of the integers.
        wants_input: compute the last three results; without it they have no entries.

    Returns:
        ``Σ (x̂ − [inside] x) g`` and ``Σ [outside] g`` of every row, in float32 or wider;
        ``[inside] g``, shape and dtype of ``x``; the first column that holds the row's largest
        entry and its smallest, int64.
    """
    given, grid = x, AffineGrid(scale, zero)
    x, grad = widen(x).contiguous(), widen(grad)
    levels = (x / scale).round_().add_(zero)
    q = levels.clamp(0, 2**bits - 1)
    outside = levels != q  # a mask: 0 times what is not finite would not be 0
    distance = dequantize(q, grid).sub_(torch.where(outside, 0, x)).mul_(grad)
    to_scale = distance.sum(dim=-1, keepdim=True)
    clamped = torch.where(outside, grad, 0).sum(dim=-1, keepdim=True)
    if not wants_input:
        return to_scale, clamped, *nothing_for_input(given)
    to_x = torch.where(outside, 0 * scale, grad.contiguous()).to(given.dtype)
    at_high, at_low = (
        (x == end).to(torch.uint8).argmax(dim=-1, keepdim=True) for end in (highest, lowest)
    )
    return to_scale, clamped, to_x, at_high, at_low


def per_row(x: Tensor) -> Tensor:
    """An empty tensor ``(..., rows, 1)`` for ``x (..., rows, columns)``, in float32 or wider."""
    return x.new_empty(*x.shape[:-1], 1, dtype=torch.promote_types(x.dtype, torch.float32))


def nothing_for_input(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Results that are not wanted."""
    at_high, at_low = (x.new_empty(0, dtype=torch.int64) for _ in range(2))
    return x.new_empty(0), at_high, at_low


rows_gradient = torch.library.custom_op(
    "duquant::quantize_rows_gradient", gradient_in_steps, mutates_args=()
)


@rows_gradient.register_fake
def _(x: Tensor, grad: Tensor, *others: Any) -> RowGradients:
    to_scale, clamped = (per_row(x) for _ in range(2))
    if not others[-1]:
        return to_scale, clamped, *nothing_for_input(x)
    at_high, at_low = (x.new_empty(*x.shape[:-1], 1, dtype=torch.int64) for _ in range(2))
    to_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    return to_scale, clamped, to_x, at_high, at_low
