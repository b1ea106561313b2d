"""Fake quantization with its gradient written out: the inner loop of LWC.

Autograd can differentiate :func:`duquant.ops.affine.fake_quantize`, through some fifteen
elementwise operations on every weight and activation at every step. The same gradient has a short
closed form. With ``n = 2**bits - 1``, ``t = x / s``, rounding of ``t`` differentiated as the
identity, the zero point ``z`` a constant, and an entry called *inside* when clamping to ``0 … n``
did not touch it:

    ∂x̂/∂x = [inside]        s · ∂x̂/∂s = x̂ − [inside] · x

and ``s = (high − low) / n`` passes the sum over the row on to the row's ends. The symmetric variant
has ``s = max(|high|, |low|) / (2**(bits-1) - 1)``.

The authors' zero point is a constant to the clip factors. It need not be: ``z = −low / s``, its
rounding differentiated as the identity too, moves every clamped entry. With ``o`` the sum of the
gradients that arrive at them, ``zero_point_gradient`` adds ``o`` to the gradient of ``low`` and
``−o · low / s`` to that of ``s``: clamped entries then follow the end of the range they sit at.

Values are exactly those of the reference; a test compares the gradients. On a CPU the three passes
over the rows run in C (:mod:`duquant.ops.kernels.rows`); the same in PyTorch stands below it.
"""

from typing import Any

import torch
from torch import Tensor

from duquant.ops.affine import (
    LARGEST_SCALE,
    SMALLEST_SCALE,
    UNQUANTIZED_BITS,
    WIDE_BITS,
    AffineGrid,
    dequantize,
    grid_of_range,
    largest_zero,
)
from duquant.ops.kernels import rows


def fake_quantize_rows(
    x: Tensor,
    bits: int,
    *,
    symmetric: bool = False,
    clip_high: Tensor | float = 1.0,
    clip_low: Tensor | float = 1.0,
    zero_point_gradient: bool = False,
) -> Tensor:
    """Quantize and dequantize rows, differentiable in ``x`` and in the clip factors.

    Arguments and shapes are those of :func:`duquant.ops.affine.affine_grid`. With
    ``zero_point_gradient`` the clip factors (not ``x``) learn through the zero point as well; a
    symmetric range has none to learn through.
    """
    if bits >= UNQUANTIZED_BITS:
        return x
    result: Tensor = _FakeQuantizeRows.apply(
        x, clip_high, clip_low, bits, symmetric, zero_point_gradient and not symmetric
    )
    return result


class _FakeQuantizeRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        clip_high: Tensor | float,
        clip_low: Tensor | float,
        bits: int,
        symmetric: bool,
        zero_point_gradient: bool,
    ) -> Tensor:
        x = x.contiguous()
        highest, lowest = _extremes(x)
        grid = grid_of_range(clip_high * highest, clip_low * lowest, bits, symmetric=symmetric)
        if any(ctx.needs_input_grad):
            ctx.bits, ctx.symmetric, ctx.clips = bits, symmetric, (clip_high, clip_low)
            ctx.zero_point_gradient = zero_point_gradient
            ctx.save_for_backward(x, highest, lowest, *grid)
        return _quantize_dequantize(x, grid, bits)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, highest, lowest, scale, zero = ctx.saved_tensors
        clip_high, clip_low = ctx.clips
        high, low = clip_high * highest, clip_low * lowest
        distance, clamped, to_x = _sums(
            x, grad, AffineGrid(scale, zero), ctx.bits, wants_input=ctx.needs_input_grad[0]
        )
        to_scale = distance / scale
        to_high, to_low = _gradient_of_ends(to_scale, scale, high, low, ctx.bits, ctx.symmetric)
        if to_x is not None:
            to_x.scatter_add_(-1, _position(x, highest), to_high * clip_high)
            to_x.scatter_add_(-1, _position(x, lowest), to_low * clip_low)
        if ctx.zero_point_gradient:
            clamped = clamped.masked_fill(~((low / scale).abs() < largest_zero(ctx.bits)), 0)
            if ctx.bits >= WIDE_BITS:
                clamped = clamped.masked_fill(low > 0, 0)
            more = _gradient_of_ends(-clamped * low / scale, scale, high, low, ctx.bits, False)
            to_high, to_low = to_high + more[0], to_low + more[1] + clamped
        to_clip_high = to_high * highest if ctx.needs_input_grad[1] else None
        to_clip_low = to_low * lowest if ctx.needs_input_grad[2] else None
        return to_x, to_clip_high, to_clip_low, None, None, None


def _extremes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Largest and smallest entry of every row."""
    if rows.serves(x):
        return rows.row_extremes(x)
    return x.amax(dim=-1, keepdim=True), x.amin(dim=-1, keepdim=True)


def _quantize_dequantize(x: Tensor, grid: AffineGrid, bits: int) -> Tensor:
    if rows.serves(x):
        return rows.quantize_rows(x, grid, bits)
    levels = (x / grid.scale).round_().add_(grid.zero)  # the only tensor besides x
    return levels.clamp_(0, 2**bits - 1).sub_(grid.zero).mul_(grid.scale)


def _sums(
    x: Tensor, grad: Tensor, grid: AffineGrid, bits: int, *, wants_input: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """``Σ (x̂ − [inside] x) g``, ``Σ [outside] g`` of every row, and ``[inside] g`` if wanted."""
    if rows.serves(x):
        return rows.quantize_rows_gradient(
            x, grad.contiguous(), grid, bits, wants_input=wants_input
        )
    levels = (x / grid.scale).round_().add_(grid.zero)
    q = levels.clamp(0, 2**bits - 1)
    outside = levels != q  # a mask: 0 times what is not finite would not be 0
    distance = dequantize(q, grid).sub_(torch.where(outside, 0, x)).mul_(grad)
    return (
        distance.sum(dim=-1, keepdim=True),
        torch.where(outside, grad, 0).sum(dim=-1, keepdim=True),
        torch.where(outside, 0 * grid.scale, grad) if wants_input else None,
    )


def _position(x: Tensor, extreme: Tensor) -> Tensor:
    """Column of the first entry of each row that equals the row's extreme."""
    if rows.serves(x):
        return rows.find_in_rows(x, extreme)
    return (x == extreme).to(torch.uint8).argmax(dim=-1, keepdim=True)


def _gradient_of_ends(
    to_scale: Tensor, scale: Tensor, high: Tensor, low: Tensor, bits: int, symmetric: bool
) -> tuple[Tensor, Tensor]:
    """Pass the gradient of the scale on to ``high`` and ``low``; all ``(..., rows, 1)``."""
    to_scale = to_scale.masked_fill(~((scale > SMALLEST_SCALE) & (scale < LARGEST_SCALE)), 0)
    if not symmetric:
        share = to_scale / (2**bits - 1)
        if bits >= WIDE_BITS:  # an end on the other side of zero was replaced by zero
            return share.masked_fill(high < 0, 0), -share.masked_fill(low > 0, 0)
        return share, -share
    share = to_scale / (2 ** (bits - 1) - 1)
    tie = high.abs() == low.abs()
    high_wins = torch.where(tie, 0.5, (high.abs() > low.abs()).to(share.dtype))
    return share * high_wins * high.sign(), share * (1 - high_wins) * low.sign()
