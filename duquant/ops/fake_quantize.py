"""Fake quantization with its gradient written out: the inner loop of LWC.

Autograd can differentiate :func:`duquant.ops.affine.fake_quantize`, through some fifteen
elementwise operations on every weight and activation at every step. The same gradient has a short
closed form. With ``n = 2**bits - 1``, ``t = x / s``, rounding of ``t`` differentiated as the
identity, the zero point ``z`` a constant, and an entry called *inside* when clamping to ``0 … n``
did not touch it:

    ∂x̂/∂x = [inside]        ∂x̂/∂s = (q − z) − [inside] · t

and ``s = (high − low) / n`` passes the sum over the row on to the row's ends. The symmetric variant
has ``s = max(|high|, |low|) / (2**(bits-1) - 1)``.

Values are exactly those of the reference; a test compares the gradients.
"""

from typing import Any

import torch
from torch import Tensor

from duquant.ops.affine import (
    LARGEST_SCALE,
    SMALLEST_SCALE,
    UNQUANTIZED_BITS,
    affine_grid,
    dequantize,
)


def fake_quantize_rows(
    x: Tensor,
    bits: int,
    *,
    symmetric: bool = False,
    clip_high: Tensor | float = 1.0,
    clip_low: Tensor | float = 1.0,
) -> Tensor:
    """Quantize and dequantize rows, differentiable in ``x`` and in the clip factors.

    Args and shapes are those of :func:`duquant.ops.affine.affine_grid`.
    """
    if bits >= UNQUANTIZED_BITS:
        return x
    result: Tensor = _FakeQuantizeRows.apply(x, clip_high, clip_low, bits, symmetric)
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
    ) -> Tensor:
        grid = affine_grid(x, bits, symmetric=symmetric, clip_high=clip_high, clip_low=clip_low)
        levels = (x / grid.scale).round_().add_(grid.zero)
        q = levels.clamp(0, 2**bits - 1)
        ctx.bits, ctx.symmetric, ctx.clips = bits, symmetric, (clip_high, clip_low)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(x, q, levels == q, grid.scale, grid.zero)
        return dequantize(q, grid)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, q, inside, scale, zero = ctx.saved_tensors
        clip_high, clip_low = ctx.clips
        highest, lowest = x.max(dim=-1, keepdim=True), x.min(dim=-1, keepdim=True)
        high, low = clip_high * highest.values, clip_low * lowest.values
        steps = (q - zero).sub_((x / scale).mul_(inside))
        to_scale = (grad * steps).sum(dim=-1, keepdim=True)
        to_high, to_low = _gradient_of_ends(to_scale, scale, high, low, ctx.bits, ctx.symmetric)
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = grad * inside
            to_x.scatter_add_(-1, highest.indices, to_high * clip_high)
            to_x.scatter_add_(-1, lowest.indices, to_low * clip_low)
        to_clip_high = to_high * highest.values if ctx.needs_input_grad[1] else None
        to_clip_low = to_low * lowest.values if ctx.needs_input_grad[2] else None
        return to_x, to_clip_high, to_clip_low, None, None


def _gradient_of_ends(
    to_scale: Tensor, scale: Tensor, high: Tensor, low: Tensor, bits: int, symmetric: bool
) -> tuple[Tensor, Tensor]:
    """Pass the gradient of the scale on to ``high`` and ``low``; all ``(..., rows, 1)``."""
    to_scale = to_scale * ((scale > SMALLEST_SCALE) & (scale < LARGEST_SCALE))
    if not symmetric:
        share = to_scale / (2**bits - 1)
        return share, -share
    share = to_scale / (2 ** (bits - 1) - 1)
    tie = high.abs() == low.abs()
    high_wins = torch.where(tie, 0.5, (high.abs() > low.abs()).to(share.dtype))
    return share * high_wins * high.sign(), share * (1 - high_wins) * low.sign()
