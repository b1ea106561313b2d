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

Values are exactly those of the reference; a test compares the gradients. Half precision is
computed in float32; values and the gradient of ``x`` are rounded to it. Two operators do what
passes over whole rows, ``duquant::fake_quantize_rows`` and ``duquant::quantize_rows_gradient``;
their kernels are listed in :mod:`duquant.ops.kernels.table`.
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
    fake_quantize,
    grid_of_range,
    largest_zero,
)
from duquant.ops.kernel_presence import call
from duquant.ops.precision import widen
from duquant.ops.rows_gradient import per_row, rows_gradient

Quantized = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""Values; the largest and the smallest entry, the scale and the zero point of every row."""


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
    moves_zero = zero_point_gradient and not symmetric
    if torch.compiler.is_compiling() and not moves_zero:  # a compiler fuses the operations
        return fake_quantize(
            widen(x), bits, symmetric=symmetric, clip_high=clip_high, clip_low=clip_low
        ).to(x.dtype)
    high, high_ratio = (clip_high, 1.0) if isinstance(clip_high, Tensor) else (None, clip_high)
    low, low_ratio = (clip_low, 1.0) if isinstance(clip_low, Tensor) else (None, clip_low)
    result: Tensor = call(
        quantize_rows, x.contiguous(), high, low, high_ratio, low_ratio, bits, symmetric, moves_zero
    )[0]
    return result


def quantize_in_steps(
    x: Tensor,
    clip_high: Tensor | None,
    clip_low: Tensor | None,
    high_ratio: float,
    low_ratio: float,
    bits: int,
    symmetric: bool,
    zero_point_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The definition of the operator.

    Args:
        x: ``(..., rows, columns)``.
        clip_high: factor on every row's maximum, ``(..., rows, 1)``.
        clip_low: factor on every row's minimum, likewise.
        high_ratio: the same as a number, where ``clip_high`` is ``None``.
        low_ratio: the same as a number, where ``clip_low`` is ``None``.
        bits: width of the integers.
        symmetric: centre the range on zero.
        zero_point_gradient: whether clip factors learn through the zero point.

    Returns:
        Values, shape and dtype of ``x``; then the largest and the smallest entry, the scale and the
        zero point of every row, ``(..., rows, 1)``, in float32 or wider, which take no gradient.
    """
    dtype, x = x.dtype, widen(x).contiguous()
    highest, lowest = x.amax(dim=-1, keepdim=True), x.amin(dim=-1, keepdim=True)
    grid = clipped_grid(
        highest, lowest, (clip_high, clip_low), (high_ratio, low_ratio), bits, symmetric
    )
    levels = (x / grid.scale).round_().add_(grid.zero)  # the only tensor besides x
    values = levels.clamp_(0, 2**bits - 1).sub_(grid.zero).mul_(grid.scale)
    return values.to(dtype), highest, lowest, grid.scale, grid.zero


def clipped_grid(
    highest: Tensor,
    lowest: Tensor,
    clips: tuple[Tensor | None, Tensor | None],
    ratios: tuple[float, float],
    bits: int,
    symmetric: bool,
) -> AffineGrid:
    """The grid of rows with these extremes, by the clip factors of :func:`quantize_in_steps`."""
    factors = (ratio if clip is None else clip for clip, ratio in zip(clips, ratios, strict=True))
    high, low = (factor * end for factor, end in zip(factors, (highest, lowest), strict=True))
    return grid_of_range(high, low, bits, symmetric=symmetric)


quantize_rows = torch.library.custom_op(
    "duquant::fake_quantize_rows", quantize_in_steps, mutates_args=()
)


@quantize_rows.register_fake
def _(x: Tensor, *_: Any) -> Quantized:
    high, low, scale, zero = (per_row(x) for _ in range(4))
    values = torch.empty_like(x, memory_format=torch.contiguous_format)
    return values, high, low, scale, zero


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Quantized) -> None:
    x, clip_high, clip_low, *ctx.ratios, ctx.bits, ctx.symmetric, ctx.zero_point_gradient = inputs
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, clip_high, clip_low, *output[1:])


def _backward(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor | None, ...]:
    x, *clips, highest, lowest, scale, zero = ctx.saved_tensors
    clip_high, clip_low = (
        ratio if clip is None else clip for clip, ratio in zip(clips, ctx.ratios, strict=True)
    )
    high, low = clip_high * highest, clip_low * lowest
    wants_input, wants_high, wants_low = ctx.needs_input_grad[:3]
    distance, clamped, to_x, at_high, at_low = rows_gradient(
        x, grad, highest, lowest, scale, zero, ctx.bits, wants_input
    )
    to_scale = distance / scale
    to_high, to_low = _gradient_of_ends(to_scale, scale, high, low, ctx.bits, ctx.symmetric)
    if wants_input:
        to_x.scatter_add_(-1, at_high, (to_high * clip_high).to(x.dtype))
        to_x.scatter_add_(-1, at_low, (to_low * clip_low).to(x.dtype))
    if ctx.zero_point_gradient:
        clamped = clamped.masked_fill(~((low / scale).abs() < largest_zero(ctx.bits)), 0)
        if ctx.bits >= WIDE_BITS:
            clamped = clamped.masked_fill(low > 0, 0)
        more = _gradient_of_ends(-clamped * low / scale, scale, high, low, ctx.bits, False)
        to_high, to_low = to_high + more[0], to_low + more[1] + clamped
    to_clip_high = to_high * highest if wants_high else None
    to_clip_low = to_low * lowest if wants_low else None
    return to_x if wants_input else None, to_clip_high, to_clip_low, *[None] * 5


quantize_rows.register_autograd(_backward, setup_context=_keep_for_backward)


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
